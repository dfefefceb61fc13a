// SPDX-License-Identifier: Apache-2.0
// Copyright The Cloister Authors.

package e2e

import (
	"context"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/cloister-cc/cloister/initramfs"
)

// The demo is the whole story as a user tells it, from the sealed image (on s390x) to the search of all that the host held.
func TestDemo(t *testing.T) {
	t.Parallel()
	w := need(t)
	ctx, cancel := context.WithTimeout(t.Context(), 2*bootTimeout)
	defer cancel()
	dir := filepath.Join(w.Dir, "demo")
	cmd := exec.CommandContext(ctx, "go", "run", "./test/demo", "--arch", w.Arch, "--dir", dir)
	cmd.Dir = "../.."
	cmd.Cancel = func() error { return cmd.Process.Signal(os.Interrupt) }
	cmd.WaitDelay = 20 * time.Second
	out, err := cmd.CombinedOutput()
	if err != nil {
		t.Fatalf("%v\n%s", err, out)
	}
	want := []string{"root-disk ", "registry ", "network ", "vsock ", "console ", "qemu ", "host saw   none of 6 canaries and keys"}
	if w.Arch == initramfs.ArchS390x {
		want = append(want, "sealed-image ", "header authentic")
	} else {
		want = append(want, "UNPROTECTED until keys come by attestation", "(and 3 known)")
	}
	for _, text := range want {
		if !strings.Contains(string(out), text) {
			t.Errorf("the demo does not say %q:\n%s", text, out)
		}
	}
	if _, err := os.Stat(filepath.Join(dir, "ultravisor")); !os.IsNotExist(err) {
		t.Errorf("what only the ultravisor has seen is still there: %v", err)
	}
}
