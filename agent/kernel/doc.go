// SPDX-License-Identifier: Apache-2.0
// Copyright The Cloister Authors.

// Package kernel makes the few changes to the guest's kernel that a sandbox needs for itself: namespaces, mounts and
// kernel parameters. Linux implements agent.Kernel.
package kernel
