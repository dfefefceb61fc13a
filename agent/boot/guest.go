// SPDX-License-Identifier: Apache-2.0
// Copyright The Cloister Authors.

package boot

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"strings"

	"golang.org/x/sys/unix"
)

// maxHostname is what Linux takes as a host name, in bytes.
const maxHostname = 64

// Init does what the init of a guest image that is not ours has to do before it can serve as agent: the file systems
// of the kernel, unless they are there, a session with the console, the search path and the host name. The root file
// system is the one that the kernel or an initramfs has mounted, and stays.
func Init() error {
	if os.Getpid() != 1 {
		return errors.New("init: not PID 1")
	}
	plan := pseudoMounts()
	for _, m := range append(plan, lateMounts()...) {
		if err := mountOnce(m); err != nil {
			return fmt.Errorf("init: %w", err)
		}
	}
	if _, err := unix.Setsid(); err == nil { // it has one already if an initramfs has made it
		_ = unix.IoctlSetInt(0, unix.TIOCSCTTY, 1) // a guest may have no console
	}
	unix.Umask(0o022)
	if err := os.Setenv("PATH", "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"); err != nil {
		return fmt.Errorf("init: %w", err)
	}
	return setHostname("/etc/hostname")
}

// mountOnce mounts what is not mounted yet.
func mountOnce(m mountPoint) error {
	var here, above unix.Stat_t
	if err := os.MkdirAll(m.target, 0o755); err != nil && !errors.Is(err, fs.ErrExist) {
		return err
	}
	if err := errors.Join(unix.Stat(m.target, &here), unix.Stat(m.target+"/..", &above)); err != nil {
		return fmt.Errorf("look at %s: %w", m.target, err)
	}
	if here.Dev != above.Dev {
		return nil
	}
	return apply([]mountPoint{m})
}

// setHostname sets the host name to the first line of a file, if there is one.
func setHostname(path string) error {
	data, err := os.ReadFile(path)
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err != nil {
		return fmt.Errorf("init: %w", err)
	}
	name, _, _ := strings.Cut(string(data), "\n")
	if name = strings.TrimSpace(name); name == "" || len(name) > maxHostname {
		return nil
	}
	if err := unix.Sethostname([]byte(name)); err != nil {
		return fmt.Errorf("init: set host name: %w", err)
	}
	return nil
}
