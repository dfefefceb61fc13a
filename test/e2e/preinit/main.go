// SPDX-License-Identifier: Apache-2.0
// Copyright The Cloister Authors.

// Command preinit is the /init of an initramfs that starts a guest image which is not ours: it loads the kernel's modules,
// makes a mount of the folder with the image the root, and becomes the image's init with the arguments that the kernel
// gave it. A distribution's initramfs does the same.
package main

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"time"

	"golang.org/x/sys/unix"
)

func main() {
	err := start()
	fmt.Fprintln(os.Stderr, "preinit:", err)
	time.Sleep(time.Second) // for the console, before the kernel panics
}

func start() error {
	list, err := os.ReadFile("/modules/order")
	if err != nil {
		return err
	}
	for name := range strings.FieldsSeq(string(list)) {
		if err := load(filepath.Join("/modules", name)); err != nil && !errors.Is(err, unix.ENODEV) && !errors.Is(err, unix.EEXIST) {
			return fmt.Errorf("load %s: %w", name, err)
		}
	}
	const root = "/image"
	if err := errors.Join(
		unix.Mount("image", "/newroot", "tmpfs", 0, "mode=0755"), copyTree(root, "/newroot"), unix.Chdir("/newroot"),
		unix.Mount(".", "/", "", unix.MS_MOVE, ""), unix.Chroot("."), unix.Chdir("/"),
	); err != nil {
		return err
	}
	return unix.Exec("/sbin/init", append([]string{"/sbin/init"}, os.Args[1:]...), os.Environ())
}

func copyTree(from, to string) error { return os.CopyFS(to, os.DirFS(from)) }

func load(path string) error {
	f, err := os.Open(path)
	if err != nil {
		return err
	}
	defer f.Close()
	return unix.FinitModule(int(f.Fd()), "", 0)
}
