// SPDX-License-Identifier: Apache-2.0
// Copyright The Cloister Authors.

package cgroup

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"go.uber.org/goleak"
	"golang.org/x/sys/unix"
)

// childEnv makes the test binary one of the processes that the tests watch and kill.
const childEnv = "CGROUP_TEST_CHILD"

func TestMain(m *testing.M) {
	if role := os.Getenv(childEnv); role != "" {
		if err := child(role); err != nil {
			fmt.Fprintln(os.Stderr, err)
			os.Exit(1)
		}
		os.Exit(0)
	}
	goleak.VerifyTestMain(m)
}

// child plays a role until its input ends.
func child(role string) error {
	if err := os.Setenv(childEnv, "echo"); err != nil {
		return err
	}
	switch role {
	case "echo":
		_, err := io.Copy(os.Stdout, os.Stdin)
		return err
	case "eat": // more memory than the group has, from the first line of input on
		if _, err := bufio.NewReader(os.Stdin).ReadString('\n'); err != nil {
			return err
		}
		data, err := unix.Mmap(-1, 0, 512<<20, unix.PROT_READ|unix.PROT_WRITE, unix.MAP_ANON|unix.MAP_PRIVATE)
		if err != nil {
			return err
		}
		for i := 0; i < len(data); i += 4096 {
			data[i] = 1
		}
		return errors.New("all memory was granted")
	case "tree": // with a child that holds the output open
		cmd := exec.Command("/proc/self/exe")
		cmd.Stdin, cmd.Stdout, cmd.Stderr = os.Stdin, os.Stdout, os.Stderr
		return cmd.Run()
	}
	return fmt.Errorf("no such role: %s", role)
}

// newGroup makes a group in the kernel's hierarchy, and skips the test where there is none of version 2.
func newGroup(t *testing.T, controllers ...string) (h Hierarchy, path string) {
	t.Helper()
	if os.Getuid() != 0 {
		t.Skip("needs root to make cgroups: runs in the test guest")
	}
	if v2, err := h.IsV2(); err != nil || !v2 {
		t.Skipf("needs cgroup v2 on %s (%v): runs in the test guest", h.root(), err)
	}
	have, err := h.Controllers()
	if err != nil {
		t.Fatal(err)
	}
	for _, c := range controllers {
		if !slices.Contains(have, c) {
			t.Skipf("needs the %s controller on cgroup v2, which has %v: runs in the test guest", c, have)
		}
		write(t, filepath.Join(h.root(), "cgroup.subtree_control"), "+"+c)
	}
	dir, err := os.MkdirTemp(h.root(), "cloister-test-") //nolint:usetesting // a cgroup is no temporary folder
	if err != nil {
		t.Fatal(err)
	}
	path = "/" + filepath.Base(dir)
	t.Cleanup(func() {
		ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
		defer cancel()
		if err := errors.Join(h.Kill(path), h.Remove(ctx, path)); err != nil {
			t.Error(err)
		}
	})
	return h, path
}

// process is a child in a group.
type process struct {
	*exec.Cmd

	in  io.WriteCloser
	out *os.File
}

func start(t *testing.T, h Hierarchy, path, role string) *process {
	t.Helper()
	dir, err := os.Open(filepath.Join(h.root(), path))
	if err != nil {
		t.Fatal(err)
	}
	defer dir.Close()
	cmd := exec.Command("/proc/self/exe")
	cmd.Env = append(os.Environ(), childEnv+"="+role)
	cmd.SysProcAttr = &syscall.SysProcAttr{UseCgroupFD: true, CgroupFD: int(dir.Fd())}
	in, err := cmd.StdinPipe()
	if err != nil {
		t.Fatal(err)
	}
	out, w, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	cmd.Stdout = w
	if err := errors.Join(cmd.Start(), w.Close()); err != nil {
		t.Fatal(err)
	}
	p := &process{Cmd: cmd, in: in, out: out}
	t.Cleanup(func() {
		_ = in.Close()
		if p.ProcessState == nil {
			_ = cmd.Process.Kill()
			_ = cmd.Wait()
		}
		out.Close()
	})
	return p
}

func (p *process) say(t *testing.T) {
	t.Helper()
	if _, err := io.WriteString(p.in, "x\n"); err != nil {
		t.Fatal(err)
	}
}

// hear waits for what was said.
func (p *process) hear(t *testing.T) {
	t.Helper()
	if _, err := io.ReadFull(p.out, make([]byte, 2)); err != nil {
		t.Fatal(err)
	}
}

// ended waits for the end of a process and of all that hold its output, and checks the signal that it died by.
func (p *process) ended(t *testing.T, want syscall.Signal) {
	t.Helper()
	if _, err := io.Copy(io.Discard, p.out); err != nil {
		t.Error(err)
	}
	err, _ := errors.AsType[*exec.ExitError](p.Wait())
	if err == nil || err.Sys().(syscall.WaitStatus).Signal() != want {
		t.Errorf("process ended with %v, want signal %v", p.ProcessState, want)
	}
}

func sub(t *testing.T, h Hierarchy, path string) string {
	t.Helper()
	if err := os.Mkdir(filepath.Join(h.root(), path), 0o755); err != nil {
		t.Fatal(err)
	}
	return path
}

func exists(path string) bool {
	_, err := os.Stat(path)
	return err == nil || !strings.Contains(err.Error(), "no such file")
}
