// SPDX-License-Identifier: Apache-2.0
// Copyright The Cloister Authors.

package oci

import (
	"fmt"
	"slices"
	"strings"

	specs "github.com/opencontainers/runtime-spec/specs-go"
)

// The OCI runtime (crun) makes device nodes and the terminal's file in a container's /dev, opens /dev/null and /dev/ptmx there
// when it has gone into the container but has not given up its privileges, and mounts the terminal from /dev/pts on
// /dev/console without looking where that leads. What an image, or a volume that another container writes to, puts there
// in the way of links would lead it to files of the guest, or show the container what is masked (CVE-2026-88264, CVE-2026-88265).
// Therefore every container has a /dev and a /dev/pts of its own, in which nothing is but what the runtime makes, and they
// are mounted when nothing more can come into their place by a link in the image.
const (
	devDir = "/dev"
	ptsDir = "/dev/pts"
)

// devTypes are the file systems that may be mounted there.
var devTypes = map[string]string{devDir: "tmpfs", ptsDir: "devpts"}

// checkDev reports an error if a mount would take the place of a container's own /dev or /dev/pts.
func checkDev(m specs.Mount, privileged bool) error {
	if want, ok := devTypes[m.Destination]; ok && m.Type != want && !privileged {
		return fmt.Errorf("a %s is offered there only; %s", want, hint)
	}
	return nil
}

// ownDev adds /dev and /dev/pts where a spec has none. A privileged container may have the guest's.
func ownDev(mounts []specs.Mount) []specs.Mount {
	for _, own := range defaultMounts() {
		on := func(m specs.Mount) bool { return m.Destination == own.Destination }
		guests := slices.ContainsFunc(mounts, func(m specs.Mount) bool { return m.Destination == devDir && m.Type == "bind" })
		if devTypes[own.Destination] != "" && !guests && !slices.ContainsFunc(mounts, on) {
			mounts = append(mounts, own)
		}
	}
	return mounts
}

// ArrangeMounts puts the mounts in /dev behind all others, /dev before what is in it, and /dev/pts last. Otherwise the order
// stays. Convert has done so; call it again when mounts have been added.
func ArrangeMounts(mounts []specs.Mount) {
	rank := func(m specs.Mount) int {
		switch {
		case m.Destination == devDir:
			return 1
		case m.Destination == ptsDir:
			return 3
		case strings.HasPrefix(m.Destination, devDir+"/"):
			return 2
		}
		return 0
	}
	slices.SortStableFunc(mounts, func(a, b specs.Mount) int { return rank(a) - rank(b) })
}
