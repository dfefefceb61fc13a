// SPDX-License-Identifier: Apache-2.0
// Copyright The Cloister Authors.

package kernel

import (
	"errors"
	"os"
	"path/filepath"
	"runtime"
	"strconv"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/cloister-cc/cloister/agent"
)

var _ agent.Kernel = Linux{}

// needRoot skips a test that the kernel does not allow to this user; in the test guest it must be allowed.
func needRoot(t *testing.T) {
	t.Helper()
	if os.Geteuid() == 0 {
		return
	}
	if os.Getenv("CLOISTER_GUEST") == "1" {
		t.Fatal("not root in the test guest")
	}
	t.Skip("needs root")
}

func readlink(t *testing.T, path string) string {
	t.Helper()
	target, err := os.Readlink(path)
	if err != nil {
		t.Fatal(err)
	}
	return target
}

func TestNamespaces(t *testing.T) {
	needRoot(t)
	hostBefore, err := os.Hostname()
	if err != nil {
		t.Fatal(err)
	}
	for range 20 { // so that some begin on the main thread
		ipc, uts, err := Linux{}.Namespaces("pod-1")
		if err != nil {
			t.Fatal(err)
		}
		for name, f := range map[string]*os.File{"ipc": ipc, "uts": uts} {
			path := "/proc/self/fd/" + strconv.Itoa(int(f.Fd()))
			if got, own := readlink(t, path), readlink(t, "/proc/self/ns/"+name); got == own || !strings.HasPrefix(got, name+":[") {
				t.Errorf("%s namespace %s, the agent's is %s", name, got, own)
			}
		}
		if got := hostnameIn(t, uts); got != "pod-1" {
			t.Errorf("host name in the namespace: %q", got)
		}
		if err := ipc.Close(); err != nil {
			t.Error(err)
		}
		if err := uts.Close(); err != nil {
			t.Error(err)
		}
	}
	if got, err := os.Hostname(); err != nil || got != hostBefore {
		t.Errorf("host name of the agent: %q, %v; was %q", got, err, hostBefore)
	}
}

func TestNamespacesRefuses(t *testing.T) {
	needRoot(t)
	if _, _, err := (Linux{}).Namespaces(strings.Repeat("a", 65)); err == nil {
		t.Error("a host name of 65 bytes was set")
	}
}

func hostnameIn(t *testing.T, ns *os.File) string {
	t.Helper()
	var name string
	err := onThrowawayThread(func() error {
		if err := unix.Setns(int(ns.Fd()), unix.CLONE_NEWUTS); err != nil {
			return err
		}
		var err error
		name, err = os.Hostname()
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	return name
}

func TestMount(t *testing.T) {
	needRoot(t)
	dir := t.TempDir()
	var k Linux
	err := onThrowawayThread(func() error {
		// A mount namespace of its own, so that nothing is left on the machine, whatever happens.
		if err := unix.Unshare(unix.CLONE_FS | unix.CLONE_NEWNS); err != nil {
			return err
		}
		if err := unix.Mount("", "/", "", unix.MS_REC|unix.MS_PRIVATE, ""); err != nil {
			return err
		}
		checkMounts(t, k, dir)
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	if _, err := os.Stat(filepath.Join(dir, "tmpfs", "x")); err == nil {
		t.Error("the test's mounts are seen outside of it")
	}
}

func checkMounts(t *testing.T, k Linux, dir string) {
	t.Helper()
	tmpfs, a, b := filepath.Join(dir, "tmpfs"), filepath.Join(dir, "a"), filepath.Join(dir, "b")
	if err := os.Mkdir(tmpfs, 0o700); err != nil {
		t.Error(err)
	}
	if err := k.Mount("shm", tmpfs, "tmpfs", "mode=1777,size=65536"); err != nil {
		t.Error(err)
	}
	if err := os.WriteFile(filepath.Join(tmpfs, "x"), make([]byte, 1<<20), 0o600); err == nil {
		t.Error("a tmpfs of 64 KiB holds 1 MiB")
	}
	var fs unix.Statfs_t
	const noexec = 0x8 // ST_NOEXEC
	if err := unix.Statfs(tmpfs, &fs); err != nil || fs.Flags&noexec == 0 {
		t.Errorf("flags of the tmpfs: %#x, %v", fs.Flags, err)
	}
	if err := k.Mount("shm", tmpfs, "remount", "mode=1777,size=2097152"); err != nil {
		t.Error(err)
	}
	if err := os.WriteFile(filepath.Join(tmpfs, "x"), make([]byte, 1<<20), 0o600); err != nil {
		t.Errorf("a tmpfs that was made larger: %v", err)
	}
	if err := unix.Statfs(tmpfs, &fs); err != nil || fs.Flags&noexec == 0 {
		t.Errorf("flags of the tmpfs that was made larger: %#x, %v", fs.Flags, err)
	}
	for path, text := range map[string]string{a: "a", b: "b"} {
		if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
			t.Error(err)
		}
	}
	if err := k.Mount(a, b, "bind", ""); err != nil {
		t.Error(err)
	}
	if data, err := os.ReadFile(b); err != nil || string(data) != "a" {
		t.Errorf("bind mount: %q, %v", data, err)
	}
	checkBind(t, k, a, filepath.Join(dir, "c"))
	for range 2 {
		for _, target := range []string{b, tmpfs} {
			if err := k.Unmount(target); err != nil {
				t.Error(err)
			}
		}
	}
	if data, err := os.ReadFile(b); err != nil || string(data) != "b" {
		t.Errorf("after unmount: %q, %v", data, err)
	}
	if err := k.Unmount(filepath.Join(dir, "none")); err != nil {
		t.Error(err)
	}
	if err := k.Mount("/dev/vda", tmpfs, "ext4", ""); err == nil {
		t.Error("ext4 was mounted")
	}
}

// checkBind mounts a file that is open, though its name has come to mean another.
func checkBind(t *testing.T, k Linux, name, target string) {
	t.Helper()
	fd, err := unix.Open(name, unix.O_PATH|unix.O_CLOEXEC, 0)
	if err != nil {
		t.Error(err)
		return
	}
	f := os.NewFile(uintptr(fd), name)
	defer f.Close()
	if err := errors.Join(os.Rename(name, name+".old"), os.WriteFile(name, []byte("another"), 0o600), os.WriteFile(target, nil, 0o600)); err != nil {
		t.Error(err)
	}
	if err := k.Bind(f, target); err != nil {
		t.Error(err)
	}
	if data, err := os.ReadFile(target); err != nil || string(data) != "a" {
		t.Errorf("mount of an open file: %q, %v", data, err)
	}
	if err := k.Unmount(target); err != nil {
		t.Error(err)
	}
}

func TestSetSysctl(t *testing.T) {
	root := t.TempDir()
	dir := filepath.Join(root, "sys")
	for _, path := range []string{"net/ipv4/ip_forward", "net/ipv4/conf/eth0.100/rp_filter", "../outside"} {
		path = filepath.Join(dir, path)
		if err := os.MkdirAll(filepath.Dir(path), 0o700); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(path, nil, 0o600); err != nil {
			t.Fatal(err)
		}
	}
	k := Linux{SysctlDir: dir}
	for key, path := range map[string]string{
		"net.ipv4.ip_forward":              "net/ipv4/ip_forward",
		"net.ipv4.conf.eth0/100.rp_filter": "net/ipv4/conf/eth0.100/rp_filter",
	} {
		if err := k.SetSysctl(key, "1"); err != nil {
			t.Error(err)
		}
		if data, err := os.ReadFile(filepath.Join(dir, path)); err != nil || string(data) != "1" {
			t.Errorf("%s: %q, %v", key, data, err)
		}
	}
	for _, key := range []string{"", ".", "//.outside", "net.//.//.outside", "net..ipv4.ip_forward", "net.none", "/", "net./.ipv4.ip_forward"} {
		if err := k.SetSysctl(key, "bad"); err == nil {
			t.Errorf("%q was set", key)
		}
	}
	if data, err := os.ReadFile(filepath.Join(root, "outside")); err != nil || len(data) != 0 {
		t.Errorf("outside: %q, %v", data, err)
	}
}

// The thread that a function ran on must not be used again, and never be the main one.
func TestOnThrowawayThread(t *testing.T) {
	for range 50 {
		var tid int
		if err := onThrowawayThread(func() error {
			tid = unix.Gettid()
			return nil
		}); err != nil {
			t.Fatal(err)
		}
		if tid == unix.Getpid() {
			t.Fatal("it ran on the main thread")
		}
		runtime.Gosched()
	}
}
