// SPDX-License-Identifier: Apache-2.0
// Copyright The Cloister Authors.

// Package ctl drives an agent by hand: it is the body of "cloister ctl", and the end-to-end tests and the demo take the
// same steps through it. A Session has one method for each request of the agent API; Run walks the whole sequence that
// the Kata shim walks for a container (kata-containers 4.1.0, src/runtime/virtcontainers/kata_agent.go).
//
// It runs on the host or in a test. No guest code imports it.
package ctl
