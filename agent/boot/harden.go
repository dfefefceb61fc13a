// SPDX-License-Identifier: Apache-2.0
// Copyright The Cloister Authors.

package boot

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"

	"golang.org/x/sys/unix"
)

// maxOpenFiles is the limit of open files of the agent and what it starts.
const maxOpenFiles = 1 << 20

// sysctl is a kernel parameter, by its path below /proc/sys.
type sysctl struct{ name, value string }

// sysctls close what an attacker with a foot in the guest, or the host over the console, could use or read. Kernels that lack
// one (ENOENT) lack the feature with it; any other failure ends the boot.
var sysctls = []sysctl{
	{"kernel/sysrq", "0"},
	{"debug/exception-trace", "0"}, // or a crash of a container's process prints its code or registers on the console
	{"kernel/print-fatal-signals", "0"},
	{"kernel/core_pattern", "|/bin/false"},
	{"fs/suid_dumpable", "0"},
	{"kernel/dmesg_restrict", "1"},
	{"kernel/kptr_restrict", "2"},
	{"kernel/kexec_load_disabled", "1"},
	{"kernel/yama/ptrace_scope", "2"},
	{"kernel/unprivileged_bpf_disabled", "1"},
	{"fs/protected_hardlinks", "1"},
	{"fs/protected_symlinks", "1"},
	{"kernel/modules_disabled", "1"}, // last: all modules of the boot config are in
}

func (b *booter) harden(context.Context) error {
	unix.Umask(0o022)
	limit := unix.Rlimit{Cur: maxOpenFiles, Max: maxOpenFiles}
	if err := unix.Setrlimit(unix.RLIMIT_NOFILE, &limit); err != nil {
		return fmt.Errorf("raise the limit of open files: %w", err)
	}
	if err := unix.Setrlimit(unix.RLIMIT_CORE, &unix.Rlimit{}); err != nil {
		return fmt.Errorf("forbid core dumps: %w", err)
	}
	return setSysctls("/proc/sys")
}

func setSysctls(root string) error {
	for _, s := range sysctls {
		err := setSysctl(filepath.Join(root, s.name), s.value)
		if err != nil && !errors.Is(err, fs.ErrNotExist) {
			return fmt.Errorf("set sysctl: %w", err)
		}
	}
	return nil
}

func setSysctl(path, value string) error {
	f, err := os.OpenFile(path, os.O_WRONLY, 0)
	if err != nil {
		return err
	}
	defer f.Close()
	_, err = f.WriteString(value)
	return err
}
