// SPDX-License-Identifier: Apache-2.0
// Copyright The Cloister Authors.

// Package runtime drives an OCI runtime, crun, through its command line. It implements agent.Runtime.
//
// Most commands go through github.com/containerd/go-runc. That library kills the runtime when the context of a call
// ends, which would leave a container half made; so calls here run to their end, bounded by a time of their own. It
// also starts its commands through a package variable, which New sets once to an adapter on agent/proc: all Runtimes of
// a program must share one Reaper.
//
// What went wrong is taken from the runtime's log in JSON, never guessed from its standard error, which belongs to the
// container. The runtime itself is part of the sealed initramfs and trusted; the bundle it reads was made by agent/oci.
package runtime
