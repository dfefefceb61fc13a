// SPDX-License-Identifier: Apache-2.0
// Copyright The Cloister Authors.

// Package rpc serves the Kata agent API (grpc.AgentService and grpc.Health over ttrpc) for an agent.Sandbox.
//
// Every byte that arrives here comes from the untrusted host. One place, the guard, stands between the wire and every
// method of every service: it bounds the request before decoding it, asks the Gate, turns errors into status codes and
// keeps a panic from ending PID 1. Adapters between wire and domain types are pure functions.
//
// rpc imports agent and rpc/pb. A policy engine comes in as a Gate func.
package rpc
