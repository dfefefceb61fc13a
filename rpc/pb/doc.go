// SPDX-License-Identifier: Apache-2.0
// Copyright The Cloister Authors.

// Package pb is the wire form of the Kata agent API (kata-containers 4.1.0): the proto packages grpc (here) and types (in
// the folder types). The .proto files are written from the facts in testdata/agent-schema.txt, and a test compares what
// was compiled with those facts. Everything but this file is generated; rpc translates between these types and the domain's.
package pb

//go:generate sh generate.sh
