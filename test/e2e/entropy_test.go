// SPDX-License-Identifier: Apache-2.0
// Copyright The Cloister Authors.

package e2e

import (
	"testing"

	"github.com/cloister-cc/cloister/initramfs"
	"github.com/cloister-cc/cloister/internal/qemu"
)

// Threat: the host gives the guest a machine without any source of random numbers, so that the keys it makes can be
// guessed. Observable: the boot stops before it touches a secret. Other architectures' kernels gather entropy from the
// timing of their own execution, which the host cannot switch off.
func TestNoEntropy(t *testing.T) {
	t.Parallel()
	w := need(t)
	if w.Arch != initramfs.ArchS390x {
		t.Skip("there is nothing to switch off on this architecture")
	}
	vm := w.boot(t, w.guest, func(c *qemu.Config) {
		c.CPU = "max,prno-trng=off"
		c.Disks = nil // the guest does not come that far, and another test's has its disk open
	})
	wantPowerOff(t, vm, "boot step entropy", "no random number generator", "powering off")
}
