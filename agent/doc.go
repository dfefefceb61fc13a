// SPDX-License-Identifier: Apache-2.0
// Copyright The Cloister Authors.

// Package agent is the guest's domain: a sandbox, its containers, their processes and streams. It knows no protobuf,
// no ttrpc and no cryptography; images, runtime and network are behind interfaces that it declares.
//
// Every argument of its methods comes from the untrusted host.
package agent
