// SPDX-License-Identifier: Apache-2.0
// Copyright The Cloister Authors.

// Package types is the wire form of the network types of the Kata agent API, generated from types.proto; see package pb.
package types
