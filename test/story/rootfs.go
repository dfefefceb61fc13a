// SPDX-License-Identifier: Apache-2.0
// Copyright The Cloister Authors.

package story

import (
	"fmt"
	"maps"
	"os"
	"path/filepath"
)

// applets are the busybox commands that stories' containers use.
var applets = []string{"sh", "cat", "echo", "sleep", "uname", "id", "ls", "head", "dd", "sha256sum", "touch", "true", "false", "kill", "env", "hostname", "mount", "ps", "yes"}

// BusyboxRootfs makes the root file system of a container in dir: a static busybox, links for some of its commands, a
// user database, and the given files (path to content).
func BusyboxRootfs(dir, busybox string, files map[string]string) error {
	data, err := os.ReadFile(busybox)
	if err != nil {
		return fmt.Errorf("read busybox: %w", err)
	}
	all := map[string]string{
		"etc/passwd": "root:x:0:0:root:/root:/bin/sh\nnobody:x:65534:65534:nobody:/:/bin/false\n",
		"etc/group":  "root:x:0:\nnogroup:x:65534:\n",
	}
	maps.Copy(all, files)
	for _, d := range []string{"bin", "dev", "proc", "sys", "tmp", "root", "etc"} {
		if err := os.MkdirAll(filepath.Join(dir, d), 0o755); err != nil {
			return err
		}
	}
	if err := os.WriteFile(filepath.Join(dir, "bin/busybox"), data, 0o755); err != nil { //nolint:gosec // G306: an executable
		return err
	}
	for _, a := range applets {
		if err := os.Symlink("busybox", filepath.Join(dir, "bin", a)); err != nil {
			return err
		}
	}
	return writeFiles(dir, all)
}

// GuestRootfs makes the root file system of a guest in dir. It holds no program at all: the agent comes out of the
// initramfs, and what else runs are containers.
func GuestRootfs(dir string) error {
	return writeFiles(dir, map[string]string{
		"etc/os-release": "ID=cloister\nNAME=Cloister\nPRETTY_NAME=\"Cloister guest\"\n",
		"etc/passwd":     "root:x:0:0:root:/:/nonexistent\n",
		"etc/group":      "root:x:0:\n",
	})
}

func writeFiles(dir string, files map[string]string) error {
	for path, content := range files {
		full := filepath.Join(dir, path)
		if err := os.MkdirAll(filepath.Dir(full), 0o755); err != nil {
			return err
		}
		if err := os.WriteFile(full, []byte(content), 0o644); err != nil { //nolint:gosec // G306: read by every user of the image
			return err
		}
	}
	return nil
}
