// SPDX-License-Identifier: Apache-2.0
// Copyright The Cloister Authors.

package dm

import (
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/anatol/devmapper.go"
	"golang.org/x/sys/unix"
)

// fakeKernel behaves like device-mapper: a device exists from create to remove, a name is taken once, and what is done
// to a device that does not exist is ENXIO.
type fakeKernel struct {
	devices map[string]*devmapper.DeviceInfo
	calls   []string
	fail    map[string]error // by call
}

func newFake() *fakeKernel {
	return &fakeKernel{devices: map[string]*devmapper.DeviceInfo{}, fail: map[string]error{}}
}

func (f *fakeKernel) step(call, name string) (*devmapper.DeviceInfo, error) {
	f.calls = append(f.calls, call)
	if err := f.fail[call]; err != nil {
		return nil, err
	}
	d := f.devices[name]
	if d == nil {
		return nil, os.NewSyscallError("dm ioctl", unix.ENXIO)
	}
	return d, nil
}

func (f *fakeKernel) kernel(dev string) kernel {
	return kernel{
		dev: dev,
		create: func(name, uuid string) error {
			switch _, err := f.step("create", name); {
			case f.fail["create"] != nil:
				return err
			case err == nil:
				return os.NewSyscallError("dm ioctl", unix.EBUSY)
			}
			f.devices[name] = &devmapper.DeviceInfo{Name: name, UUID: uuid, DevNo: unix.Mkdev(253, 7)}
			return nil
		},
		load: func(name string, flags uint32, _ ...devmapper.Table) error {
			d, err := f.step("load", name)
			if err == nil {
				d.Flags = flags
			}
			return err
		},
		resume: func(name string) error { _, err := f.step("resume", name); return err },
		remove: func(name string) error {
			_, err := f.step("remove", name)
			if err == nil {
				delete(f.devices, name)
			}
			return err
		},
		info: func(name string) (*devmapper.DeviceInfo, error) { return f.step("info", name) },
	}
}

// canMknod tells whether block device nodes can be made in dir.
func canMknod(t *testing.T, dir string) bool {
	t.Helper()
	err := unix.Mknod(filepath.Join(dir, "probe"), unix.S_IFBLK|0o600, int(unix.Mkdev(253, 9)))
	if err != nil && os.Getenv("CLOISTER_GUEST") == "1" {
		t.Fatal(err)
	}
	return err == nil
}

func TestMapAndRemove(t *testing.T) {
	dev := t.TempDir()
	if !canMknod(t, dev) {
		t.Skip("device nodes need root")
	}
	f := newFake()
	k := f.kernel(dev)
	path, err := k.mapDevice("root", "UUID", true, devmapper.ZeroTable{Length: 4096})
	if err != nil || path != filepath.Join(dev, "dm-7") {
		t.Fatalf("mapped at %q, %v", path, err)
	}
	var st unix.Stat_t
	if err := unix.Stat(path, &st); err != nil || st.Mode != unix.S_IFBLK|0o600 || st.Rdev != unix.Mkdev(253, 7) {
		t.Errorf("node %+v, %v", st, err)
	}
	if d := f.devices["root"]; d.Flags != devmapper.ReadOnlyFlag || d.UUID != "UUID" {
		t.Errorf("device %+v", d)
	}
	if again, err := k.node("root"); err != nil || again != path {
		t.Errorf("node again: %q, %v", again, err)
	}
	// A second device of that name must not harm the first.
	if _, err := k.mapDevice("root", "", false, devmapper.ZeroTable{}); !errors.Is(err, unix.EBUSY) || f.devices["root"] == nil {
		t.Errorf("second device: %v", err)
	}
	if err := k.removeDevice("root"); err != nil {
		t.Fatal(err)
	}
	if _, err := os.Lstat(path); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("node after removal: %v", err)
	}
	if there, err := k.exists("root"); there || err != nil {
		t.Errorf("exists: %v, %v", there, err)
	}
}

func TestMapUndone(t *testing.T) {
	for call, want := range map[string][]string{
		"create": {"create"},
		"load":   {"create", "load", "info", "remove"},
		"resume": {"create", "load", "resume", "info", "remove"},
		"info":   {"create", "load", "resume", "info", "info", "remove"},
	} {
		t.Run(call, func(t *testing.T) {
			f := newFake()
			f.fail[call] = unix.EINVAL
			// In a folder that does not exist, no node can be made either.
			_, err := f.kernel(filepath.Join(t.TempDir(), "none")).mapDevice("root", "", true, devmapper.ZeroTable{})
			if !errors.Is(err, unix.EINVAL) {
				t.Errorf("error %v", err)
			}
			if !slices.Equal(f.calls, want) || len(f.devices) != 0 {
				t.Errorf("calls %v, want %v; devices left: %v", f.calls, want, f.devices)
			}
		})
	}
}

func TestForeignNode(t *testing.T) {
	dev := t.TempDir()
	if err := os.WriteFile(filepath.Join(dev, "dm-7"), nil, 0o600); err != nil {
		t.Fatal(err)
	}
	f := newFake()
	_, err := f.kernel(dev).mapDevice("root", "", true, devmapper.ZeroTable{})
	if err == nil || !strings.Contains(err.Error(), "is not the node of device root") || len(f.devices) != 0 {
		t.Errorf("error %v, devices %v", err, f.devices)
	}
	if _, err := os.Lstat(filepath.Join(dev, "dm-7")); err != nil {
		t.Errorf("a file that is not ours is gone: %v", err)
	}
}

func TestNoDeviceMapper(t *testing.T) {
	f := newFake()
	missing := &fs.PathError{Op: "open", Path: "/dev/mapper/control", Err: unix.ENOENT}
	f.fail["info"], f.fail["create"] = missing, missing
	if _, err := f.kernel(t.TempDir()).exists("x"); err == nil || !strings.Contains(err.Error(), "dm-mod") {
		t.Errorf("error %v", err)
	}
	if _, err := f.kernel(t.TempDir()).mapDevice("x", "", true, devmapper.ZeroTable{}); err == nil || !strings.Contains(err.Error(), "dm-mod") {
		t.Errorf("error %v", err)
	}
}

func TestChecks(t *testing.T) {
	for name, ok := range map[string]bool{
		"root": true, "cloister-root_1.x": true, strings.Repeat("n", 127): true,
		"": false, ".": false, "..": false, "a b": false, "a/b": false, "a\x00": false, "ä": false, strings.Repeat("n", 128): false,
		"a@b": false, "a[b": false, "a`b": false, "a{b": false,
	} {
		if err := CheckName(name); (err == nil) != ok {
			t.Errorf("CheckName(%q): %v", name, err)
		}
	}
	for path, ok := range map[string]bool{
		"/dev/vda": true, "/dev/disk/by-id/x_1.2-3": true,
		"": false, "vda": false, "/dev/vda 0 1": false, "/dev/../vda": false, "/dev//vda": false, "/dev/vda\n": false, `/dev/v\da`: false,
	} {
		if err := CheckDevice(path); (err == nil) != ok {
			t.Errorf("CheckDevice(%q): %v", path, err)
		}
	}
	if _, err := Map("a b", "", true, devmapper.ZeroTable{}); err == nil || !strings.Contains(err.Error(), "device name") {
		t.Errorf("Map with a bad name: %v", err)
	}
}

// TestKernel maps a real device.
func TestKernel(t *testing.T) {
	control, err := os.Open("/dev/mapper/control")
	if err != nil {
		if os.Getenv("CLOISTER_GUEST") == "1" {
			t.Fatal(err)
		}
		t.Skipf("this machine has no device-mapper (%v); the guest's tests cover it", err)
	}
	_ = control.Close()
	const name = "cloister-dm-test"
	if there, err := Exists(name); there || err != nil {
		t.Fatalf("before: %v, %v", there, err)
	}
	path, err := Map(name, "CLOISTER-TEST-"+name, true, devmapper.ErrorTable{Length: 1 << 20})
	if err != nil {
		t.Fatal(err)
	}
	if _, err := os.ReadFile(path); !errors.Is(err, unix.EIO) {
		t.Errorf("read of the error target: %v", err)
	}
	f, err := os.OpenFile(path, os.O_RDWR, 0)
	if err == nil { // the kernel may refuse only the write
		_, err = f.WriteAt(make([]byte, 4096), 0)
		_ = f.Close()
	}
	if !errors.Is(err, fs.ErrPermission) {
		t.Errorf("write to a read-only device: %v", err)
	}
	if there, err := Exists(name); !there || err != nil {
		t.Errorf("exists: %v, %v", there, err)
	}
	if _, err := Map(name, "", true, devmapper.ErrorTable{Length: 1 << 20}); !errors.Is(err, unix.EBUSY) {
		t.Errorf("second device of that name: %v", err)
	}
	if err := Remove(name); err != nil {
		t.Error(err)
	}
	if _, err := os.Lstat(path); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("node after removal: %v", err)
	}
	if err := Remove(name); !errors.Is(err, unix.ENXIO) {
		t.Errorf("removal of no device: %v", err)
	}
}
