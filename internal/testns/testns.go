// SPDX-License-Identifier: Apache-2.0
// Copyright The Cloister Authors.

// Package testns runs tests that mount in a mount namespace of their own, so that they change nothing of the machine that
// they run on.
package testns

import (
	"errors"
	"os"
	"os/exec"
	"strings"
	"syscall"
	"testing"

	"golang.org/x/sys/unix"
)

// marker is the environment variable that names the test that a process was started for.
const marker = "CLOISTER_TEST_NAMESPACE"

// Inside runs the calling test, which must be no subtest, again in a process with a mount namespace of its own (and,
// without root, a user namespace), and returns true there. Elsewhere it reports that process's outcome and returns false.
func Inside(t *testing.T) bool {
	t.Helper()
	if os.Getenv(marker) == t.Name() {
		if err := unix.Mount("none", "/", "", unix.MS_PRIVATE|unix.MS_REC, ""); err != nil {
			t.Fatal(err)
		}
		return true
	}
	cmd := exec.CommandContext(t.Context(), "/proc/self/exe", "-test.run=^"+t.Name()+"$", "-test.v")
	cmd.Env = append(os.Environ(), marker+"="+t.Name())
	cmd.SysProcAttr = &syscall.SysProcAttr{Cloneflags: syscall.CLONE_NEWNS}
	if os.Geteuid() != 0 {
		cmd.SysProcAttr.Cloneflags |= syscall.CLONE_NEWUSER
		cmd.SysProcAttr.UidMappings = []syscall.SysProcIDMap{{ContainerID: 0, HostID: os.Getuid(), Size: 1}}
		cmd.SysProcAttr.GidMappings = []syscall.SysProcIDMap{{ContainerID: 0, HostID: os.Getgid(), Size: 1}}
	}
	out, err := cmd.CombinedOutput()
	text := string(out)
	switch {
	case errors.Is(err, unix.EPERM) && os.Getenv("CLOISTER_GUEST") != "1":
		t.Skip("this machine allows no mount namespace")
	case err != nil:
		t.Errorf("in the namespace: %v\n%s", err, text)
	case strings.Contains(text, "--- SKIP: "+t.Name()+" "):
		t.Skipf("in the namespace:\n%s", text)
	case !strings.Contains(text, "--- PASS: "+t.Name()+" "): // nothing matched
		t.Errorf("in the namespace the test did not run:\n%s", text)
	}
	return false
}
