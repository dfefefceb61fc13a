// SPDX-License-Identifier: Apache-2.0
// Copyright The Cloister Authors.

// Command init is PID 1 of the guest that tests run in. It makes the mounts that a container host has, loads modules,
// runs the test binaries of its plan one by one, reports on the console, and powers off.
package main

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"github.com/cloister-cc/cloister/internal/guesttest/plan"
)

func main() {
	c := &console{w: os.Stdout}
	if err := run(context.Background(), c); err != nil {
		c.send(plan.Event{Kind: plan.KindError, Text: err.Error()})
	} else {
		c.send(plan.Event{Kind: plan.KindDone})
	}
	unix.Sync()
	// The console's driver still has bytes to write, and a power-off does not wait for them.
	_ = unix.IoctlSetInt(int(os.Stdout.Fd()), unix.TCSBRK, 1)
	time.Sleep(200 * time.Millisecond)
	_ = unix.Reboot(unix.LINUX_REBOOT_CMD_POWER_OFF)
}

func run(ctx context.Context, c *console) error {
	if os.Getpid() != 1 {
		return errors.New("this is PID 1 of a test guest; run it by the tests of internal/guesttest")
	}
	if err := mounts(); err != nil {
		return err
	}
	data, err := os.ReadFile(plan.Path)
	if err != nil {
		return err
	}
	var p plan.Plan
	if err := json.Unmarshal(data, &p); err != nil {
		return fmt.Errorf("read plan: %w", err)
	}
	if err := loadModules(p.Modules); err != nil {
		return err
	}
	if err := cgroups(); err != nil {
		return err
	}
	if err := loopbackUp(); err != nil {
		return err
	}
	for _, t := range p.Tests {
		c.send(plan.Event{Kind: plan.KindStart, Package: t.Package})
		start := time.Now()
		exit, err := runTest(ctx, c, t, p.Env)
		if err != nil {
			return fmt.Errorf("run tests of %s: %w", t.Package, err)
		}
		if exit != 0 {
			c.kernelLog(t.Package)
		}
		c.send(plan.Event{Kind: plan.KindEnd, Package: t.Package, Exit: exit, Seconds: time.Since(start).Seconds()})
	}
	return nil
}

// mounts makes the file systems of a container host, and a root that is a mount with a parent: pivot_root refuses the
// initramfs itself.
func mounts() error {
	const private = unix.MS_NOSUID | unix.MS_NODEV
	if err := unix.Mount("/", "/newroot", "", unix.MS_BIND, ""); err != nil {
		return fmt.Errorf("bind root: %w", err)
	}
	if err := unix.Chdir("/newroot"); err != nil {
		return fmt.Errorf("enter new root: %w", err)
	}
	if err := unix.Mount(".", "/", "", unix.MS_MOVE, ""); err != nil {
		return fmt.Errorf("move new root: %w", err)
	}
	if err := unix.Chroot("."); err != nil {
		return fmt.Errorf("change root: %w", err)
	}
	if err := unix.Chdir("/"); err != nil {
		return fmt.Errorf("enter root: %w", err)
	}
	for _, m := range []struct {
		target, fstype, data string
		flags                uintptr
	}{
		{"/proc", "proc", "", private | unix.MS_NOEXEC},
		{"/sys", "sysfs", "", private | unix.MS_NOEXEC},
		{"/dev", "devtmpfs", "mode=0755", unix.MS_NOSUID},
		{"/dev/pts", "devpts", "mode=0620,ptmxmode=0666", unix.MS_NOSUID | unix.MS_NOEXEC},
		{"/dev/shm", "tmpfs", "mode=1777", private},
		{"/tmp", "tmpfs", "mode=1777", private},
		{"/run", "tmpfs", "mode=0755", private},
		{"/sys/fs/cgroup", "cgroup2", "", private | unix.MS_NOEXEC},
	} {
		if err := os.MkdirAll(m.target, 0o755); err != nil {
			return fmt.Errorf("make mount point: %w", err)
		}
		if err := unix.Mount(m.fstype, m.target, m.fstype, m.flags, m.data); err != nil {
			return fmt.Errorf("mount %s: %w", m.target, err)
		}
	}
	return nil
}

func loadModules(modules []plan.Module) error {
	for _, m := range modules {
		err := loadModule(filepath.Join(plan.ModulesDir, m.File))
		if err == nil || errors.Is(err, unix.EEXIST) || m.Optional && errors.Is(err, unix.ENODEV) {
			continue
		}
		return fmt.Errorf("load module %s: %w", m.File, err)
	}
	return nil
}

func loadModule(path string) error {
	f, err := os.Open(path)
	if err != nil {
		return err
	}
	defer func() { _ = f.Close() }()
	return unix.FinitModule(int(f.Fd()), "", 0)
}

// cgroups lets the controllers that containers are limited with work below the root group.
func cgroups() error {
	err := os.WriteFile("/sys/fs/cgroup/cgroup.subtree_control", []byte("+cpu +memory +pids"), 0o600)
	if err != nil {
		return fmt.Errorf("enable cgroup controllers: %w", err)
	}
	return nil
}

// loopbackUp brings the interface lo up, see netdevice(7).
func loopbackUp() error {
	fd, err := unix.Socket(unix.AF_INET, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return fmt.Errorf("open socket: %w", err)
	}
	defer func() { _ = unix.Close(fd) }()
	ifr, err := unix.NewIfreq("lo")
	if err != nil {
		return err
	}
	ifr.SetUint16(unix.IFF_UP | unix.IFF_RUNNING)
	if err := unix.IoctlIfreq(fd, unix.SIOCSIFFLAGS, ifr); err != nil {
		return fmt.Errorf("bring lo up: %w", err)
	}
	return nil
}

// runTest runs one test binary and returns its exit status. What it has left behind in its process group ends with it.
func runTest(ctx context.Context, c *console, t plan.Test, env []string) (int, error) {
	r, w, err := os.Pipe()
	if err != nil {
		return 0, err
	}
	defer func() { _ = r.Close() }()
	cmd := exec.CommandContext(ctx, t.Binary, t.Args...)
	cmd.Dir, cmd.Env = t.Dir, env
	cmd.Stdout, cmd.Stderr = w, w
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
	if err := errors.Join(cmd.Start(), w.Close()); err != nil {
		return 0, err
	}
	copied := make(chan struct{})
	go func() {
		defer close(copied)
		c.copyLines(t.Package, r)
	}()
	err = cmd.Wait()
	_ = unix.Kill(-cmd.Process.Pid, unix.SIGKILL)
	select {
	case <-copied:
	case <-time.After(5 * time.Second): // a process of another group holds the pipe
	}
	var exit *exec.ExitError
	if err != nil && !errors.As(err, &exit) {
		return 0, err
	}
	return cmd.ProcessState.ExitCode(), nil
}

// console sends events.
type console struct {
	mu sync.Mutex
	w  io.Writer
}

func (c *console) send(e plan.Event) {
	data, err := e.Encode()
	if err != nil {
		return // strings and numbers always encode
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	_, _ = c.w.Write(data)
}

// copyLines sends what r has, line by line; a line that never ends is cut into pieces.
func (c *console) copyLines(pkg string, r io.Reader) {
	b := bufio.NewReaderSize(r, 16<<10)
	for {
		line, err := b.ReadSlice('\n')
		if len(line) > 0 {
			c.send(plan.Event{Kind: plan.KindOutput, Package: pkg, Text: strings.TrimRight(string(line), "\n")})
		}
		if err != nil && !errors.Is(err, bufio.ErrBufferFull) {
			return
		}
	}
}

// kernelLog sends the last lines of the kernel's log, which often say why a test failed.
func (c *console) kernelLog(pkg string) {
	const kept = 25
	buf := make([]byte, 1<<20)
	n, err := unix.Klogctl(unix.SYSLOG_ACTION_READ_ALL, buf)
	if err != nil {
		return
	}
	lines := strings.Split(strings.TrimSpace(string(buf[:n])), "\n")
	for _, l := range lines[max(0, len(lines)-kept):] {
		c.send(plan.Event{Kind: plan.KindOutput, Package: pkg, Text: "kernel: " + l})
	}
}
