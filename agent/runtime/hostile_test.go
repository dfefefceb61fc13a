// SPDX-License-Identifier: Apache-2.0
// Copyright The Cloister Authors.

package runtime

import (
	"fmt"
	"os"
	"os/exec"
	"slices"
	"strings"
	"syscall"
	"testing"

	specs "github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"

	"github.com/cloister-cc/cloister/agent"
)

// attack tries, as root in a container, to reach the guest around it, and says what worked.
func attack() int {
	for name, f := range map[string]func() error{
		"core_pattern":  func() error { return opens("/proc/sys/kernel/core_pattern", unix.O_WRONLY) },
		"sysrq-trigger": func() error { return opens("/proc/sysrq-trigger", unix.O_WRONLY) },
		"kcore":         func() error { return reads("/proc/kcore") },
		"sysfs":         func() error { return unix.Access("/sys/kernel", unix.W_OK) },
		"mount":         func() error { return unix.Mount("proc", "/mnt", "proc", 0, "") },
		"memory":        func() error { return node("mem", unix.S_IFCHR, 1, 1) },
		"kernel log":    func() error { return node("kmsg", unix.S_IFCHR, 1, 11) },
		"device-mapper": func() error { return node("control", unix.S_IFCHR, 10, 236) },
		"disk":          disk,
		"file handle": func() error {
			_, err := unix.OpenByHandleAt(unix.AT_FDCWD, unix.NewFileHandle(1, make([]byte, 12)), unix.O_RDONLY)
			return is(err, unix.EPERM)
		},
		"user namespace": func() error {
			cmd := exec.Command("/proc/self/exe", inContainer, "attack-as-owner")
			cmd.SysProcAttr = &syscall.SysProcAttr{
				Cloneflags:  unix.CLONE_NEWUSER | unix.CLONE_NEWNS | unix.CLONE_NEWPID,
				UidMappings: []syscall.SysProcIDMap{{Size: 1}}, GidMappings: []syscall.SysProcIDMap{{Size: 1}},
			}
			return cmd.Run()
		},
	} {
		if f() == nil {
			_, _ = fmt.Printf("%s worked\n", name)
		}
	}
	_, _ = fmt.Println("attacked")
	return 0
}

// attackAsOwner tries from a user namespace of its own, where it has every capability, to see proc and sysfs anew.
func attackAsOwner() int {
	if unix.Mount("proc", "/mnt", "proc", 0, "") == nil || unix.Mount("sysfs", "/mnt", "sysfs", 0, "") == nil {
		return 0
	}
	return 1
}

// is turns every error but the one that must come into none.
func is(err error, want unix.Errno) error {
	if err == want { //nolint:errorlint // a system call's own
		return err
	}
	return nil
}

func opens(path string, flags int) error {
	fd, err := unix.Open(path, flags, 0)
	if err == nil {
		_ = unix.Close(fd)
	}
	return err
}

func reads(path string) error {
	data, err := os.ReadFile(path)
	if err == nil && len(data) == 0 {
		return unix.ENODATA // masked
	}
	return err
}

// node makes a device node and opens it. What stands in the way must be the container's device rules.
func node(name string, kind uint32, major, minor uint32) error {
	path := "/dev/own-" + name
	if err := unix.Mknod(path, kind|0o600, int(unix.Mkdev(major, minor))); err != nil {
		return nil //nolint:nilerr // it has the capability for it, or nothing is tested
	}
	return is(opens(path, unix.O_RDONLY), unix.EPERM)
}

// disk opens the first disk of the guest.
func disk() error {
	partitions, err := os.ReadFile("/proc/partitions")
	if err != nil {
		return nil // nothing is tested then
	}
	for line := range strings.Lines(string(partitions)) {
		var major, minor uint32
		if n, _ := fmt.Sscan(line, &major, &minor); n == 2 {
			return node("disk", unix.S_IFBLK, major, minor)
		}
	}
	return nil
}

// Threat: the host asks for a container without any protection and runs its own program there, as root. Seen: whatever
// the spec leaves out, nothing of the guest around the container can be reached.
func TestHostileContainerOverCrun(t *testing.T) {
	p := newPod(t)
	all := strings.Fields("CHOWN DAC_OVERRIDE FOWNER FSETID KILL SETGID SETUID SETPCAP LINUX_IMMUTABLE NET_ADMIN NET_RAW IPC_LOCK " +
		"IPC_OWNER SYS_CHROOT SYS_PACCT SYS_BOOT SYS_NICE SYS_RESOURCE SYS_TIME SYS_TTY_CONFIG MKNOD SETFCAP SYSLOG " +
		"AUDIT_CONTROL CHECKPOINT_RESTORE")
	for i := range all {
		all[i] = "CAP_" + all[i]
	}
	all = withinBounds(t, all)
	if err := p.CreateContainer(t.Context(), agent.ContainerConfig{
		ID: "c1",
		Spec: &specs.Spec{
			Process: &specs.Process{
				Args: []string{"/program", inContainer, "attack"}, Cwd: "/",
				Capabilities: &specs.LinuxCapabilities{Bounding: all, Effective: all, Permitted: all, Inheritable: all, Ambient: all},
			},
			Mounts: []specs.Mount{
				{Destination: "/proc", Type: "proc"},
				{Destination: "/sys", Type: "sysfs", Options: []string{"ro"}},
				{Destination: "/dev", Type: "tmpfs", Options: []string{"dev", "mode=755"}},
				{Destination: "/mnt", Type: "tmpfs"},
			},
		},
		Storages: []agent.Storage{{Driver: agent.DriverImageGuestPull, Source: "registry.example/app:1"}},
	}); err != nil {
		t.Fatal(err)
	}
	if err := p.StartContainer(t.Context(), "c1"); err != nil {
		t.Fatal(err)
	}
	if got := p.output(t, "c1", ""); got != "attacked\n" {
		t.Errorf("the container says:\n%s", got)
	}
	p.wantStatus(t, "c1", "", 0)
}

// withinBounds returns those of capabilities that this program can give away. In the test guest that is every one.
func withinBounds(t *testing.T, names []string) []string {
	t.Helper()
	bound := slices.DeleteFunc(slices.Clone(names), func(name string) bool {
		n, ok := capabilityNumbers[name]
		if !ok {
			return false
		}
		value, err := unix.PrctlRetInt(unix.PR_CAPBSET_READ, n, 0, 0, 0)
		if err != nil {
			t.Fatal(err)
		}
		return value == 0
	})
	if inGuest() && len(bound) != len(names) {
		t.Fatalf("the test guest lacks capabilities: it has %v", bound)
	}
	return bound
}

// capabilityNumbers are those that a machine for builds may lack.
var capabilityNumbers = map[string]uintptr{
	"CAP_SYS_RESOURCE": unix.CAP_SYS_RESOURCE, "CAP_SYS_TIME": unix.CAP_SYS_TIME, "CAP_AUDIT_CONTROL": unix.CAP_AUDIT_CONTROL,
	"CAP_SYS_BOOT": unix.CAP_SYS_BOOT, "CAP_SYSLOG": unix.CAP_SYSLOG, "CAP_SYS_PACCT": unix.CAP_SYS_PACCT,
}
