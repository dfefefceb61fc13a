// SPDX-License-Identifier: Apache-2.0
// Copyright The Cloister Authors.

// Package doctor finds out what a machine lacks for each thing that one does with Cloister, and what mends it.
package doctor

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"runtime"
	"slices"
	"strconv"
	"syscall"
	"time"

	"github.com/cloister-cc/cloister/internal/testbed"
	"github.com/cloister-cc/cloister/se"
)

// Jobs are what a machine can be used for.
const (
	// JobBuild is to build guests and to encrypt images.
	JobBuild = "build"
	// JobSeal is to make images of Secure Execution.
	JobSeal = "seal"
	// JobRun is to run guests in the emulator, the demo among them.
	JobRun = "run"
	// JobDevelop is to build Cloister itself and to run its tests.
	JobDevelop = "develop"
)

// Jobs returns all of them.
func Jobs() []string { return []string{JobBuild, JobSeal, JobRun, JobDevelop} }

// Finding is the outcome of one check.
type Finding struct {
	// Name says what was looked for.
	Name string `json:"name"`
	// OK says that it is there.
	OK bool `json:"ok"`
	// Detail says what was found, or what is wrong.
	Detail string `json:"detail"`
	// Jobs are the jobs that want it.
	Jobs []string `json:"jobs"`
	// Mend is the command that mends it; "" if it is there or nothing can be said.
	Mend string `json:"mend,omitempty"`
}

// Machine is what the checks look at. New fills it with the real one.
type Machine struct {
	// CacheDir is the folder of 'cloister setup'; "" is the default.
	CacheDir string
	// LookPath finds a program.
	LookPath func(name string) (string, error)
	// Run runs a program and returns its output.
	Run func(ctx context.Context, name string, args ...string) ([]byte, error)
	// Root is the machine's file system.
	Root fs.FS
	// Free returns the free space of the file system that holds a path, in bytes.
	Free func(path string) (uint64, error)
	// UID is the user.
	UID int
	// Now is the time.
	Now func() time.Time
}

// New returns the machine that this runs on.
func New(cacheDir string) *Machine {
	return &Machine{CacheDir: cacheDir, LookPath: exec.LookPath, Run: run, Root: os.DirFS("/"), Free: free, UID: os.Geteuid(), Now: time.Now}
}

func run(ctx context.Context, name string, args ...string) ([]byte, error) {
	ctx, cancel := context.WithTimeout(ctx, 10*time.Second)
	defer cancel()
	return exec.CommandContext(ctx, name, args...).Output()
}

func free(path string) (uint64, error) {
	for { // the folder may have to be made yet
		var st syscall.Statfs_t
		err := syscall.Statfs(path, &st)
		if err == nil {
			return st.Bavail * uint64(st.Bsize), nil
		}
		if !errors.Is(err, fs.ErrNotExist) || path == filepath.Dir(path) {
			return 0, err
		}
		path = filepath.Dir(path)
	}
}

// Check makes every check that one of the jobs wants, in a fixed order.
func (m *Machine) Check(ctx context.Context, jobs []string) []Finding {
	var out []Finding
	for _, c := range m.checks() {
		if !slices.ContainsFunc(c.jobs, func(j string) bool { return slices.Contains(jobs, j) }) {
			continue
		}
		detail, err := c.check(ctx)
		f := Finding{Name: c.name, OK: err == nil, Detail: detail, Jobs: c.jobs}
		if err != nil {
			f.Detail, f.Mend = err.Error(), c.mend
		}
		out = append(out, f)
	}
	return out
}

// check is one thing to look for.
type check struct {
	name  string
	jobs  []string
	mend  string
	check func(context.Context) (string, error)
}

func (m *Machine) checks() []check {
	all, running := Jobs(), []string{JobRun, JobDevelop}
	checks := []check{
		{"operating system", all, "use Linux", m.linux},
		{"clock", []string{JobSeal, JobRun, JobDevelop}, "set the clock: timedatectl set-ntp true", m.clock},
		{"boot code of Secure Execution", []string{JobSeal}, "cloister setup --arch s390x, then --bootloader-dir as 'cloister setup --json' says", m.bootCode},
		{"Debian", running, "use Debian 12, or a container of it", m.debian},
		{"apt-get", running, "use Debian 12, or a container of it", m.program("apt-get")},
		{"disk space", running, "free 6 GiB below the cache folder, or choose another by --cache", m.space},
	}
	for _, arch := range []string{"s390x", "amd64"} {
		checks = append(checks, check{"test bed of " + arch, running, "cloister setup --arch " + arch, func(context.Context) (string, error) {
			bed, err := testbed.Load(m.CacheDir, arch)
			if err != nil {
				return "", err
			}
			return "kernel " + bed.KernelVersion, nil
		}})
	}
	return append(checks,
		check{"Go", []string{JobDevelop}, "install Go " + minGo + " or newer from go.dev/dl", m.goVersion},
		check{"git", []string{JobDevelop}, "apt-get install git", m.program("git")},
		check{"make", []string{JobDevelop}, "apt-get install make", m.program("make")},
		check{"root", []string{JobDevelop}, "run the tests as root: those of mounts need it", m.root},
	)
}

func (m *Machine) linux(context.Context) (string, error) {
	if runtime.GOOS != "linux" {
		return "", fmt.Errorf("%s, but only Linux has been tried", runtime.GOOS)
	}
	return runtime.GOOS + "/" + runtime.GOARCH, nil
}

// released is when this was written: a clock before it is wrong, and every certificate with it.
var released = time.Date(2026, 11, 1, 0, 0, 0, 0, time.UTC)

func (m *Machine) clock(context.Context) (string, error) {
	now := m.Now().UTC()
	if now.Before(released) || now.After(released.AddDate(20, 0, 0)) {
		return "", fmt.Errorf("it is set to %s: certificates cannot be verified", now.Format(time.DateOnly))
	}
	return now.Format(time.DateOnly), nil
}

func (m *Machine) program(name string) func(context.Context) (string, error) {
	return func(context.Context) (string, error) {
		path, err := m.LookPath(name)
		if err != nil {
			return "", errors.New("not installed")
		}
		return path, nil
	}
}

func (m *Machine) bootCode(context.Context) (string, error) {
	for _, dir := range se.BootloaderDirs() {
		if _, err := fs.Stat(m.Root, filepath.Join(dir[1:], "stage3a.bin")); err == nil {
			return dir, nil
		}
	}
	if bed, err := testbed.Load(m.CacheDir, "s390x"); err == nil {
		return bed.Bootloader + " (give it by --bootloader-dir)", nil
	}
	return "", se.ErrNoBootloader
}

var (
	debianID      = regexp.MustCompile(`(?m)^ID="?debian"?$`)
	debianVersion = regexp.MustCompile(`(?m)^VERSION_ID="?([0-9]+)"?$`)
)

func (m *Machine) debian(context.Context) (string, error) {
	data, err := fs.ReadFile(m.Root, "etc/os-release")
	if err != nil {
		return "", err
	}
	v := debianVersion.FindSubmatch(data)
	if !debianID.Match(data) || v == nil {
		return "", errors.New("this is not Debian: the test bed comes from its packages")
	}
	if string(v[1]) != "12" {
		return "", fmt.Errorf("version %s of Debian: only 12 has been tried", v[1])
	}
	return "12", nil
}

// wanted is how much the test bed of both architectures and a build take, in bytes.
const wanted = 6 << 30

func (m *Machine) space(context.Context) (string, error) {
	dir := m.CacheDir
	if dir == "" {
		var err error
		if dir, err = testbed.DefaultCacheDir(); err != nil {
			return "", err
		}
	}
	n, err := m.Free(dir)
	if err != nil {
		return "", err
	}
	if n < wanted {
		return "", fmt.Errorf("%.1f GiB free at %s, 6 are wanted", float64(n)/(1<<30), dir)
	}
	return fmt.Sprintf("%.0f GiB free", float64(n)/(1<<30)), nil
}

// minGo is the oldest Go that compiles Cloister.
const minGo = "1.26"

var goRelease = regexp.MustCompile(`go1\.([0-9]+)`)

func (m *Machine) goVersion(ctx context.Context) (string, error) {
	out, err := m.Run(ctx, "go", "env", "GOVERSION")
	if err != nil {
		return "", errors.New("not installed")
	}
	v := goRelease.FindSubmatch(out)
	if v == nil {
		return "", fmt.Errorf("version %q", bytes.TrimSpace(out))
	}
	if minor, err := strconv.Atoi(string(v[1])); err != nil || minor < 26 {
		return "", fmt.Errorf("%s is older than %s", bytes.TrimSpace(out), minGo)
	}
	return string(bytes.TrimSpace(out)), nil
}

func (m *Machine) root(context.Context) (string, error) {
	if m.UID != 0 {
		return "", fmt.Errorf("user id %d", m.UID)
	}
	return "user id 0", nil
}
