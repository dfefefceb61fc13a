// SPDX-License-Identifier: Apache-2.0
// Copyright The Cloister Authors.

package qemu_test

import (
	"context"
	"errors"
	"net"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"go.uber.org/goleak"

	"github.com/cloister-cc/cloister/initramfs"
	"github.com/cloister-cc/cloister/internal/qemu"
	"github.com/cloister-cc/cloister/internal/testbed"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// bed returns the test bed that 'cloister setup' made; without one the test is skipped, or fails where the machine is
// said to have one.
func bed(t *testing.T, arch string) *testbed.Bed {
	t.Helper()
	b, err := testbed.Load(os.Getenv("CLOISTER_CACHE"), arch)
	switch {
	case err == nil:
		return b
	case os.Getenv("REQUIRE_QEMU") == "1":
		t.Fatal(err)
	default:
		t.Skip(err)
	}
	return nil
}

func config(t *testing.T, arch string) qemu.Config {
	t.Helper()
	b := bed(t, arch)
	return qemu.Config{
		Arch: arch, Dir: b.QEMUDir, Kernel: b.Kernel, Append: qemu.ConsoleArgs(arch), MemoryMiB: 256, Network: true,
		Vsock: true, VsockBackend: b.VsockBackend, WorkDir: t.TempDir(),
	}
}

// A kernel without an initramfs finds no root file system, panics, and QEMU ends instead of booting it again.
func TestBootUntilPanic(t *testing.T) {
	for _, arch := range initramfs.Architectures() {
		t.Run(arch, func(t *testing.T) {
			c := config(t, arch)
			// A comma and a colon in a file name must not end up in QEMU's options.
			disk := filepath.Join(t.TempDir(), "a,b:c.img")
			if err := os.WriteFile(disk, make([]byte, 1<<20), 0o600); err != nil {
				t.Fatal(err)
			}
			c.Disks, c.ReadOnlyDisks = []string{disk}, []string{disk + ".ro"}
			if err := os.WriteFile(disk+".ro", make([]byte, 1<<20), 0o600); err != nil {
				t.Fatal(err)
			}
			vm, err := qemu.Start(t.Context(), c)
			if err != nil {
				t.Fatal(err)
			}
			ctx, cancel := context.WithTimeout(t.Context(), 2*time.Minute)
			defer cancel()
			err = vm.Wait(ctx)
			console := vm.Console()
			if err != nil {
				t.Fatalf("%v; console:\n%s", err, console)
			}
			for _, want := range []string{"Linux version 6.", "Kernel panic"} {
				if !strings.Contains(console, want) {
					t.Errorf("console lacks %q:\n%s", want, console)
				}
			}
			if err := vm.Stop(); err != nil {
				t.Errorf("Stop after the end: %v", err)
			}
		})
	}
}

func TestStopEndsBothProcesses(t *testing.T) {
	for name, end := range map[string]func(vm *qemu.VM, cancel func()) error{
		"stop":    func(vm *qemu.VM, _ func()) error { return vm.Stop() },
		"context": func(vm *qemu.VM, cancel func()) error { cancel(); <-vm.Done(); return nil },
	} {
		t.Run(name, func(t *testing.T) {
			c := config(t, "s390x")
			ctx, cancel := context.WithCancel(t.Context())
			defer cancel()
			vm, err := qemu.Start(ctx, c)
			if err != nil {
				t.Fatal(err)
			}
			if want := "hvsock://" + c.WorkDir + "/vsock.sock:1024"; vm.AgentAddress() != want {
				t.Errorf("agent address %q, want %q", vm.AgentAddress(), want)
			}
			socket := filepath.Join(c.WorkDir, "vsock.sock")
			if conn, err := net.Dial("unix", socket); err != nil {
				t.Errorf("vsock backend does not listen: %v", err)
			} else if err := conn.Close(); err != nil {
				t.Error(err)
			}
			pid := vm.Pid()
			if err := end(vm, cancel); err != nil {
				t.Error(err)
			}
			if err := syscall.Kill(pid, 0); !errors.Is(err, syscall.ESRCH) {
				t.Errorf("QEMU (pid %d) is still there: %v", pid, err)
			}
			if conn, err := net.Dial("unix", socket); err == nil {
				t.Errorf("vsock backend still listens: %v", conn.Close())
			}
		})
	}
}

func TestEarlyEndQuotesQEMU(t *testing.T) {
	c := config(t, "s390x")
	c.CPU = "no-such-model"
	vm, err := qemu.Start(t.Context(), c)
	if err != nil {
		t.Fatal(err)
	}
	if err := vm.Wait(t.Context()); err == nil || !strings.Contains(err.Error(), "no-such-model") {
		t.Errorf("Wait: %v, want QEMU's own words about the model", err)
	}
}

// A backend that does not start must not leave Start waiting for its socket.
func TestBackendThatEnds(t *testing.T) {
	c := config(t, "s390x")
	c.VsockBackend = "/bin/false"
	if vm, err := qemu.Start(t.Context(), c); err == nil {
		t.Errorf("guest started without its vsock backend: %v", vm.Stop())
	} else if !strings.Contains(err.Error(), "vsock backend ended") {
		t.Errorf("Start: %v", err)
	}
}
