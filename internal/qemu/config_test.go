// SPDX-License-Identifier: Apache-2.0
// Copyright The Cloister Authors.

package qemu

import (
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
)

func TestConfigRefused(t *testing.T) {
	dir := t.TempDir()
	kernel := filepath.Join(dir, "kernel")
	if err := os.WriteFile(kernel, []byte("k"), 0o600); err != nil {
		t.Fatal(err)
	}
	tests := []struct {
		name   string
		change func(c *Config)
		want   string
	}{
		{"architecture", func(c *Config) { c.Arch = "riscv64" }, "neither s390x nor amd64"},
		{"no kernel", func(c *Config) { c.Kernel = filepath.Join(dir, "missing") }, "missing"},
		{"folder as disk", func(c *Config) { c.Disks = []string{dir} }, "is a folder"},
		{"missing read-only disk", func(c *Config) { c.ReadOnlyDisks = []string{kernel + "x"} }, "kernelx"},
		{"too little memory", func(c *Config) { c.MemoryMiB = 1 }, "memory of 1 MiB"},
		{"too much memory", func(c *Config) { c.MemoryMiB = 1 << 30 }, "memory of"},
		{"negative processors", func(c *Config) { c.CPUs = -1 }, "processors"},
		{"no work folder", func(c *Config) { c.Vsock = true; c.WorkDir = "" }, "work folder"},
		{"socket path too long", func(c *Config) {
			c.Vsock = true
			c.WorkDir = filepath.Join(dir, strings.Repeat("x", 100))
			if err := os.MkdirAll(c.WorkDir, 0o700); err != nil {
				t.Fatal(err)
			}
		}, "shorter"},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			c := Config{Arch: "s390x", Kernel: kernel, WorkDir: dir}
			tt.change(&c)
			if _, err := Start(t.Context(), c); err == nil || !strings.Contains(err.Error(), tt.want) {
				t.Errorf("Start: %v, want %q", err, tt.want)
			}
		})
	}
}

func TestArgs(t *testing.T) {
	tests := []struct {
		name   string
		config Config
		want   []string
		not    []string
	}{
		{
			name:   "s390x with backend",
			config: Config{Arch: "s390x", Dir: "/q", Vsock: true, VsockBackend: "/b", WorkDir: "/w,x", Network: true, ReadOnlyDisks: []string{"/d"}},
			want: []string{
				"socket,id=vs,path=/w,,x/vhost.sock", "vhost-user-vsock-pci,chardev=vs", "virtio-net-ccw,netdev=n0", "sclpconsole,chardev=c0",
				"driver=raw,node-name=r0,read-only=on,file.driver=file,file.filename=/d", "/q/usr/share/qemu", "s390-ccw-virtio,memory-backend=mem0",
			},
			not: []string{"-initrd", "-serial"},
		},
		{
			name:   "amd64 with the host kernel's vsock",
			config: Config{Arch: "amd64", Vsock: true, Initrd: "/i", Disks: []string{"/d"}},
			want:   []string{"vhost-vsock-pci,guest-cid=77", "virtio-blk-pci,drive=d0,serial=d0", "chardev:c0", "/i"},
			not:    []string{"-netdev", "-L", "vhost-user-vsock-pci,chardev=vs"},
		},
		{
			name:   "no devices",
			config: Config{Arch: "amd64"},
			not:    []string{"-netdev", "-blockdev", "vhost-vsock-pci,guest-cid=77"},
		},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			args, err := tt.config.args(77)
			if err != nil {
				t.Fatal(err)
			}
			for _, w := range append(tt.want, "tcg,thread=multi", "-no-reboot") {
				if !slices.Contains(args, w) {
					t.Errorf("no argument %q in %q", w, args)
				}
			}
			for _, n := range tt.not {
				if slices.Contains(args, n) {
					t.Errorf("argument %q in %q", n, args)
				}
			}
		})
	}
}

func TestTailKeepsTheEnd(t *testing.T) {
	w := &tail{limit: 10}
	for range 100 {
		if _, err := w.Write([]byte("abc")); err != nil {
			t.Fatal(err)
		}
	}
	if _, err := w.Write([]byte("the end!")); err != nil {
		t.Fatal(err)
	}
	if got := w.String(); !strings.HasSuffix(got, "bcthe end!") || len(got) > 30 {
		t.Errorf("kept %q", got)
	}
}
