// SPDX-License-Identifier: Apache-2.0
// Copyright The Cloister Authors.

// Package client connects to the agent API of a guest, over vsock, over a hypervisor's hybrid vsock socket or over a unix
// socket. It is what "cloister ctl" and the tests use; no guest code imports it.
package client
