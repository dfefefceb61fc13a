// SPDX-License-Identifier: Apache-2.0
// Copyright The Cloister Authors.

package runtime

import (
	"debug/elf"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	goruntime "runtime"
	"slices"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/cloister-cc/cloister/agent/cgroup"
	"github.com/cloister-cc/cloister/agent/proc"
	"github.com/cloister-cc/cloister/internal/testbed"
)

// The tests over a real crun need root, a cgroup v2 hierarchy of their own and a static copy of this program. The test
// guest has them. On a build host, TestMain runs the tests a second time in a mount and cgroup namespace that has them;
// what is there then depends on the machine: one with cgroup v1 has few controllers of v2, and each test that needs one
// says so.
const (
	// crunEnv is the path of crun, busyboxEnv that of a static busybox, programEnv that of a static copy of this program
	// (by default the program itself).
	crunEnv, busyboxEnv, programEnv = "CRUN", "CLOISTER_BUSYBOX", "CLOISTER_TEST_PROGRAM"
	// noBedEnv says why there is no crun here.
	noBedEnv = "CLOISTER_TEST_NO_BED"
	// soakEnv asks for the long campaigns, see test/soak.
	soakEnv = "CLOISTER_SOAK"

	cgroupRoot = "/sys/fs/cgroup"
)

func inGuest() bool { return os.Getenv("CLOISTER_GUEST") == "1" }

// soaking tells whether this is a long campaign.
func soaking() bool { return os.Getenv(soakEnv) == "1" }

// sample is how much of a campaign to run: less in the test guest, which is emulated.
func sample(ordinary, guest, soak int) int {
	switch {
	case soaking():
		return soak
	case inGuest():
		return guest
	}
	return ordinary
}

// rerun runs the tests again in namespaces made for them, and returns their exit status. ran is false if they are to
// run here.
func rerun() (status int, ran bool) {
	if inGuest() || os.Getenv(crunEnv) != "" {
		return 0, false
	}
	status, err := nativeRun()
	if err != nil {
		_ = os.Setenv(noBedEnv, err.Error())
		return 0, false
	}
	return status, true
}

func nativeRun() (status int, err error) {
	if os.Geteuid() != 0 {
		return 0, errors.New("not root")
	}
	bed, err := testbed.Load(os.Getenv("CLOISTER_CACHE"), goruntime.GOARCH)
	if err != nil {
		return 0, err
	}
	dir, err := os.MkdirTemp("", "cloister-runtime")
	if err != nil {
		return 0, err
	}
	defer os.RemoveAll(dir)
	program, err := staticProgram(dir)
	if err != nil {
		return 0, err
	}
	leave, err := enterCgroup()
	if err != nil {
		return 0, err
	}
	defer func() { err = errors.Join(err, leave()) }()
	cmd := exec.Command("/proc/self/exe", os.Args[1:]...)
	cmd.Stdin, cmd.Stdout, cmd.Stderr = os.Stdin, os.Stdout, os.Stderr
	cmd.Env = append(os.Environ(), crunEnv+"="+bed.Crun, busyboxEnv+"="+bed.Busybox, programEnv+"="+program)
	signals := make(chan os.Signal, 4)
	signal.Notify(signals, unix.SIGQUIT, unix.SIGINT, unix.SIGTERM)
	defer signal.Stop(signals)
	if err := cmd.Start(); err != nil {
		return 0, err
	}
	ended := make(chan struct{})
	go func() {
		for {
			select {
			case s := <-signals:
				_ = cmd.Process.Signal(s)
			case <-ended:
				return
			}
		}
	}()
	err = cmd.Wait()
	close(ended)
	if _, ok := errors.AsType[*exec.ExitError](err); err != nil && !ok {
		return 0, err
	}
	if status = cmd.ProcessState.ExitCode(); status < 0 {
		status = 2
	}
	return status, nil
}

// staticProgram returns a copy of this program that runs in a root file system without libraries.
func staticProgram(dir string) (string, error) {
	self, err := elf.Open("/proc/self/exe")
	if err != nil {
		return "", err
	}
	defer func() { _ = self.Close() }()
	if !slices.ContainsFunc(self.Progs, func(p *elf.Prog) bool { return p.Type == elf.PT_INTERP }) {
		path := filepath.Join(dir, "program")
		return path, copyProgram("/proc/self/exe", path)
	}
	path := filepath.Join(dir, "program")
	cmd := exec.Command("go", "test", "-c", "-ldflags=-s -w", "-o", path, ".")
	cmd.Env = append(os.Environ(), "CGO_ENABLED=0")
	if out, err := cmd.CombinedOutput(); err != nil {
		return "", fmt.Errorf("build a static program: %w\n%s", err, out)
	}
	return path, nil
}

// enterCgroup mounts cgroup v2 for this thread and its children only, whose root is a group made for this run. The
// thread stays locked until leave, which removes the group.
func enterCgroup() (leave func() error, err error) {
	goruntime.LockOSThread()
	// The network too, whose parameters containers change.
	if err := unix.Unshare(unix.CLONE_FS | unix.CLONE_NEWNS | unix.CLONE_NEWNET); err != nil {
		return nil, fmt.Errorf("make mount and network namespaces: %w", err)
	}
	if err := unix.Mount("", "/", "", unix.MS_REC|unix.MS_PRIVATE, ""); err != nil {
		return nil, fmt.Errorf("make mounts private: %w", err)
	}
	if err := unix.Mount("cgroup2", cgroupRoot, "cgroup2", 0, ""); err != nil {
		return nil, fmt.Errorf("mount cgroup v2: %w", err)
	}
	for _, controller := range []string{"cpu", "memory", "pids"} { // those that there are
		_ = os.WriteFile(filepath.Join(cgroupRoot, "cgroup.subtree_control"), []byte("+"+controller), 0o600)
	}
	home, err := ownCgroup()
	if err != nil {
		return nil, err
	}
	group := filepath.Join(cgroupRoot, fmt.Sprintf("cloister-test-%d", os.Getpid()))
	tests := filepath.Join(group, "tests")
	goHome := func() error {
		err := joinCgroup(filepath.Join(cgroupRoot, home))
		for _, dir := range []string{tests, group} {
			err = errors.Join(err, removeGroups(dir))
		}
		return err // the thread is never unlocked, and ends with the program
	}
	if err := enterGroups(group, tests); err != nil {
		return nil, errors.Join(err, goHome())
	}
	if err := unix.Mount(group, cgroupRoot, "", unix.MS_BIND, ""); err != nil {
		return nil, errors.Join(fmt.Errorf("mount a part of cgroup v2: %w", err), goHome())
	}
	return func() error { return errors.Join(unix.Unmount(cgroupRoot, unix.MNT_DETACH), goHome()) }, nil
}

// enterGroups makes a group the root of a cgroup namespace of this thread, and then moves the program into a group in
// it, so that the root may have controllers for the groups in it.
func enterGroups(group, tests string) error {
	for _, dir := range []string{group, tests} {
		if err := os.Mkdir(dir, 0o755); err != nil {
			return err
		}
	}
	if err := joinCgroup(group); err != nil {
		return err
	}
	if err := unix.Unshare(unix.CLONE_NEWCGROUP); err != nil {
		return fmt.Errorf("make a cgroup namespace: %w", err)
	}
	return joinCgroup(tests)
}

func ownCgroup() (string, error) {
	data, err := os.ReadFile("/proc/self/cgroup")
	if err != nil {
		return "", err
	}
	for line := range strings.Lines(string(data)) {
		if path, ok := strings.CutPrefix(line, "0::"); ok {
			return strings.TrimSpace(path), nil
		}
	}
	return "", errors.New("the kernel has no cgroup v2")
}

func joinCgroup(dir string) error {
	return os.WriteFile(filepath.Join(dir, "cgroup.procs"), []byte("0"), 0o600)
}

// removeGroups kills what a failed test left in a group, and removes it and those in it.
func removeGroups(dir string) error {
	_ = os.WriteFile(filepath.Join(dir, "cgroup.kill"), []byte("1"), 0o600) // fails where it is gone
	var dirs []string
	_ = filepath.WalkDir(dir, func(path string, d os.DirEntry, err error) error {
		if err == nil && d.IsDir() {
			dirs = append(dirs, path)
		}
		return nil
	})
	var err error
	for range 100 {
		err = nil
		for _, d := range slices.Backward(dirs) {
			if e := os.Remove(d); e != nil && !errors.Is(e, os.ErrNotExist) {
				err = e
			}
		}
		if err == nil {
			return nil
		}
		time.Sleep(20 * time.Millisecond)
	}
	return err
}

// crunPath returns where crun is, or skips the test.
func crunPath(t *testing.T) string {
	t.Helper()
	crun := os.Getenv(crunEnv)
	if crun == "" {
		if inGuest() {
			t.Fatalf("the test guest's environment does not say where crun is (%s)", crunEnv)
		}
		t.Skipf("no crun to run containers with on this machine (%s); it runs in the test guest", os.Getenv(noBedEnv))
	}
	return crun
}

// realCrun returns a Runtime over a real crun.
func realCrun(t *testing.T) (*Runtime, *proc.Reaper) {
	t.Helper()
	return crunWith(t, crunPath(t), 0)
}

// crunWith returns a Runtime over a program that is, or runs, a real crun.
func crunWith(t *testing.T, command string, timeout time.Duration) (*Runtime, *proc.Reaper) {
	t.Helper()
	log := slog.New(slog.NewTextHandler(t.Output(), nil))
	reaper, err := proc.New(log)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = reaper.Close() })
	r, err := New(Config{Command: command, Root: t.TempDir(), Reaper: reaper, Timeout: timeout, Log: log})
	if err != nil {
		t.Fatal(err)
	}
	return r, reaper
}

// controllers returns those of cgroup v2 here.
func controllers(t *testing.T) []string {
	t.Helper()
	all, err := cgroup.Hierarchy{}.Controllers()
	if err != nil {
		t.Fatal(err)
	}
	return all
}

// needControllers skips a test where limits cannot be set. In the test guest they can.
func needControllers(t *testing.T, names ...string) {
	t.Helper()
	crunPath(t)
	have := controllers(t)
	for _, name := range names {
		if slices.Contains(have, name) {
			continue
		}
		if inGuest() {
			t.Fatalf("the test guest has no cgroup controller %s", name)
		}
		t.Skipf("this machine has no controller %s of cgroup v2; runs in the test guest", name)
	}
}

// program returns the path of a static copy of this program.
func program() string {
	if p := os.Getenv(programEnv); p != "" {
		return p
	}
	return "/proc/self/exe"
}

// eventually waits until a condition holds. It is for what the kernel does after it has answered.
func eventually(t *testing.T, what string, condition func() bool) {
	t.Helper()
	for deadline := time.Now().Add(time.Minute); !condition(); time.Sleep(5 * time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatalf("%s: not within a minute", what)
		}
	}
}
