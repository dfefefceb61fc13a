// SPDX-License-Identifier: Apache-2.0
// Copyright The Cloister Authors.

package e2e

import (
	"strings"
	"testing"

	"github.com/cloister-cc/cloister/internal/qemu"
)

// Threat: the kernel starts with other parameters than those that its owner chose. Observable: the agent names the
// parameter and powers off, before it touches a disk or a secret.
func TestOtherCommandLine(t *testing.T) {
	t.Parallel()
	w := need(t)
	for name, tt := range map[string]struct {
		change func(string) string
		want   string
	}{
		"unknown parameter": {func(s string) string { return s + " ima_policy=x" }, `with \"ima_policy=x\", which is not on the sealed command line`},
		"changed parameter": {func(s string) string { return strings.Replace(s, "init_on_free=1", "init_on_free=0", 1) }, `with \"init_on_free=0\", which is not`},
		"missing parameter": {func(s string) string { return strings.Replace(s, " init_on_free=1", "", 1) }, `without \"init_on_free=1\"`},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			vm := w.boot(t, w.guest, func(c *qemu.Config) { c.Append, c.Disks = tt.change(c.Append), nil })
			wantPowerOff(t, vm, "boot step command-line", tt.want, "powering off")
		})
	}
}
