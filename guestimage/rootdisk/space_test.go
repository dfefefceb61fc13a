// SPDX-License-Identifier: Apache-2.0
// Copyright The Cloister Authors.

package rootdisk

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"runtime"
	"testing"

	"golang.org/x/sys/unix"
)

// errNoNamespace means that this machine or user may make no mount namespace.
var errNoNamespace = errors.New("no mount namespace")

// inTmpfs runs f in a thread that sees a tmpfs of that size at dir; nobody else does. The thread ends afterwards.
func inTmpfs(dir, size string, f func() error) error {
	done := make(chan error)
	go func() {
		runtime.LockOSThread() // and never unlocked: the thread cannot be used for anything else
		done <- func() error {
			if err := unix.Unshare(unix.CLONE_NEWNS); err != nil {
				return fmt.Errorf("%w: %w", errNoNamespace, err)
			}
			if err := unix.Mount("", "/", "", unix.MS_PRIVATE|unix.MS_REC, ""); err != nil {
				return fmt.Errorf("%w: %w", errNoNamespace, err)
			}
			if err := unix.Mount("tmpfs", dir, "tmpfs", 0, "size="+size); err != nil {
				return fmt.Errorf("%w: %w", errNoNamespace, err)
			}
			return f()
		}()
	}()
	return <-done
}

// TestNoSpace has the output's file system fill up: while the erofs image is written, and while the disk is.
func TestNoSpace(t *testing.T) {
	source := t.TempDir()
	if err := os.WriteFile(filepath.Join(source, "big"), make([]byte, 1<<20), 0o600); err != nil {
		t.Fatal(err)
	}
	for _, size := range []string{"64k", "512k", "1088k", "2m"} {
		t.Run(size, func(t *testing.T) {
			dir := t.TempDir()
			err := inTmpfs(dir, size, func() error {
				_, err := Write(t.Context(), Options{Source: source, Output: filepath.Join(dir, "root.img"), Key: testKey()})
				if entries, readErr := os.ReadDir(dir); readErr != nil || len(entries) != 0 {
					return fmt.Errorf("left behind: %v (%w)", entries, errors.Join(readErr, err))
				}
				if !errors.Is(err, unix.ENOSPC) {
					return fmt.Errorf("error %w, want ENOSPC", err)
				}
				return nil
			})
			if errors.Is(err, errNoNamespace) && os.Getenv("CLOISTER_GUEST") != "1" {
				t.Skipf("a file system of limited size needs root: %v", err)
			}
			if err != nil {
				t.Error(err)
			}
		})
	}
}
