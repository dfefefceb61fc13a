// SPDX-License-Identifier: Apache-2.0
// Copyright The Cloister Authors.

// Package attest keeps the log of what has run in the guest, for whoever attests it. A Log only grows, and its digest is
// made so that who knows the digest from evidence can tell whether a log that the host hands over is the whole of it.
//
// The log has the form of the attestation-agent's event log of Confidential Containers (trustee,
// kbs/docs/confidential-containers-eventlog.md; guest-components, attestation-agent/attestation-agent/src/eventlog): the
// lines, the first line "INIT sha384/" with 96 zeros, where the register is taken to begin, the way in which a register is
// extended by a line, and the event of a pull. What is ours: the register is this package's memory instead of one of the
// machine (Secure Execution has none), so that it counts for as much as the evidence that it goes into; the same event is
// recorded once; the log is bounded, and an event that does not fit is an error: the caller then must not do what the event
// says. An image's reference is the canonical one, and its digest the one that the policy was asked about, which may be
// that of an index.
//
// The package imports nothing of this project. Events hold texts of the host and of registries.
package attest
