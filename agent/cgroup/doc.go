// SPDX-License-Identifier: Apache-2.0
// Copyright The Cloister Authors.

// Package cgroup reads, freezes, kills, removes and watches the control groups of containers, by the files of cgroup
// version 2 alone (the kernel's Documentation/admin-guide/cgroup-v2.rst). The OCI runtime makes the groups and sets
// their limits; this package sets none.
//
// The paths come from the host and what is below a group may come from a container that is allowed to make groups of
// its own, so a path never leads out of the hierarchy nor to the group of this process, every read is bounded, and a
// group that changes meanwhile gives an error at worst. A group that is not there, or that went away half-way, is an
// error that wraps fs.ErrNotExist, except where the operation had its removal or the end of its processes as its aim.
//
// It imports nothing of this module.
package cgroup
