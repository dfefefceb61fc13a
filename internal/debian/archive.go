// SPDX-License-Identifier: Apache-2.0
// Copyright The Cloister Authors.

package debian

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"sync"
	"time"
)

// archiveKeyring is the archive keyring that every suite must be signed with (package debian-archive-keyring).
const archiveKeyring = "/usr/share/keyrings/debian-archive-keyring.gpg"

// listsMaxAge is how long a suite's lists are used before they are refreshed.
const listsMaxAge = 24 * time.Hour

// updateLimit bounds the time in which lists are refreshed.
const updateLimit = 10 * time.Minute

// ArchSource is the pseudo architecture of a suite's source packages.
const ArchSource = "source"

// Suite is a part of Debian: one suite ("trixie", "bookworm-backports", "sid") for one Debian architecture ("s390x",
// "amd64"), or its source packages (ArchSource).
type Suite struct {
	Name string `json:"suite"`
	Arch string `json:"arch"`
}

// String returns the suite as name-architecture.
func (s Suite) String() string { return s.Name + "-" + s.Arch }

// Archive is a cache folder of unpacked packages. Its methods may be used concurrently; the caller keeps two processes
// from using the same folder at once.
type Archive struct {
	dir      string
	progress func(message string)

	mu     sync.Mutex // guards record, mirror and lists
	record record
	mirror string
	lists  map[Suite]*suiteLists
}

// suiteLists serialises the work on one suite's lists.
type suiteLists struct {
	mu    sync.Mutex
	ready bool  // refreshed or found fresh enough in this run
	force bool  // refreshed in this run
	err   error // why they could not be refreshed in this run
}

// Open opens the cache folder, which is made when it is missing. progress gets one line for each slow step; nil means
// none.
func Open(dir string, progress func(message string)) (*Archive, error) {
	dir, err := filepath.Abs(dir)
	if err != nil {
		return nil, fmt.Errorf("open package cache: %w", err)
	}
	if strings.ContainsAny(dir, " \t\n\"';,") {
		return nil, fmt.Errorf("open package cache: %q has characters that apt's options cannot carry: choose another cache folder", dir)
	}
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return nil, fmt.Errorf("open package cache: %w", err)
	}
	if progress == nil {
		progress = func(string) {}
	}
	a := &Archive{dir: dir, progress: progress, lists: map[Suite]*suiteLists{}}
	if a.record, err = readRecord(a.recordPath()); err != nil {
		return nil, err
	}
	return a, nil
}

var suiteName = regexp.MustCompile(`^[a-z][a-z0-9-]*$`)

func (s Suite) check() error {
	if !suiteName.MatchString(s.Name) || !suiteName.MatchString(s.Arch) {
		return fmt.Errorf("suite %q, architecture %q: not names that Debian uses", s.Name, s.Arch)
	}
	return nil
}

func (a *Archive) suiteDir(s Suite) string { return filepath.Join(a.dir, "apt", s.String()) }

// options are what makes apt-get and apt-cache work on the suite's lists instead of the machine's. Proxy settings and
// the like still come from the machine's own configuration.
func (a *Archive) options(s Suite) []string {
	d := a.suiteDir(s)
	arch := s.Arch
	if arch == ArchSource {
		arch = "amd64"
	}
	return []string{
		"-q",
		"-oDir::Etc::sourcelist=" + filepath.Join(d, "sources.list"),
		"-oDir::Etc::sourceparts=/dev/null",
		"-oDir::Etc::preferences=/dev/null",
		"-oDir::Etc::preferencesparts=/dev/null",
		"-oDir::State::Lists=" + filepath.Join(d, "lists"),
		"-oDir::State::status=/dev/null",
		"-oDir::State::extended_states=/dev/null",
		"-oDir::Cache=" + filepath.Join(d, "cache"),
		"-oDir::Cache::Archives=" + filepath.Join(d, "cache", "archives"),
		"-oAPT::Architecture=" + arch,
		"-oAPT::Architectures=" + arch,
		"-oAPT::Sandbox::User=root",
		"-oAcquire::Languages=none",
		"-oAcquire::IndexTargets::deb::DEP-11::DefaultEnabled=false",
		"-oAcquire::IndexTargets::deb::CNF::DefaultEnabled=false",
		"-oAcquire::IndexTargets::deb::Contents-deb::DefaultEnabled=false",
		"-oAcquire::Retries=3",
		"-oAPT::Update::Error-Mode=any",
	}
}

// refresh makes sure that the suite's lists are there and no older than listsMaxAge. With force it fetches them again
// unless this run did so already; it then reports whether it did.
func (a *Archive) refresh(ctx context.Context, s Suite, force bool) (bool, error) {
	if err := s.check(); err != nil {
		return false, err
	}
	l := a.suiteLists(s)
	l.mu.Lock()
	defer l.mu.Unlock()
	if force && l.force || !force && l.ready {
		return false, nil
	}
	if !force && time.Since(a.listsTime(s)).Abs() < listsMaxAge {
		l.ready = true
		return false, nil
	}
	if l.err != nil { // once is enough: without a network it takes a while to fail
		return false, l.err
	}
	start := time.Now()
	if err := a.update(ctx, s); err != nil {
		l.err = fmt.Errorf("refresh lists of %s: %w", s, err)
		return false, l.err
	}
	if err := os.WriteFile(a.stampPath(s), nil, 0o600); err != nil {
		return false, fmt.Errorf("refresh lists of %s: %w", s, err)
	}
	a.progress(fmt.Sprintf("lists of %s refreshed in %.1f s", s, time.Since(start).Seconds()))
	l.ready, l.force = true, true
	return true, nil
}

func (a *Archive) stampPath(s Suite) string { return filepath.Join(a.suiteDir(s), "updated") }

// listsTime returns when the suite's lists were last refreshed; the zero time means never.
func (a *Archive) listsTime(s Suite) time.Time {
	st, err := os.Stat(a.stampPath(s))
	if err != nil {
		return time.Time{}
	}
	return st.ModTime()
}

func (a *Archive) suiteLists(s Suite) *suiteLists {
	a.mu.Lock()
	defer a.mu.Unlock()
	l := a.lists[s]
	if l == nil {
		l = &suiteLists{}
		a.lists[s] = l
	}
	return l
}

func (a *Archive) update(ctx context.Context, s Suite) error {
	if _, err := os.Stat(archiveKeyring); err != nil {
		if errors.Is(err, fs.ErrNotExist) {
			return fmt.Errorf("no archive keyring at %s: install the package debian-archive-keyring", archiveKeyring)
		}
		return fmt.Errorf("look for archive keyring: %w", err)
	}
	mirror, err := a.mirrorURI(ctx)
	if err != nil {
		return err
	}
	d := a.suiteDir(s)
	for _, p := range []string{"lists/partial", "cache/archives/partial"} {
		if err := os.MkdirAll(filepath.Join(d, p), 0o755); err != nil {
			return fmt.Errorf("make apt folders: %w", err)
		}
	}
	kind := "deb"
	if s.Arch == ArchSource {
		kind = "deb-src"
	}
	line := fmt.Sprintf("%s [signed-by=%s] %s %s main\n", kind, archiveKeyring, mirror, s.Name)
	if err := os.WriteFile(filepath.Join(d, "sources.list"), []byte(line), 0o600); err != nil {
		return fmt.Errorf("write sources.list: %w", err)
	}
	_, err = run(ctx, updateLimit, d, "apt-get", append(a.options(s), "update")...)
	if err == nil || ctx.Err() != nil {
		return err
	}
	// A mirror that stands still for more than a week has lists that are out of date, and nothing else wrong with them. They
	// are signed; what could be newer is not needed for a test bed. If they are not to be had even so, the first error counts.
	if _, again := run(ctx, updateLimit, d, "apt-get", append(a.options(s), "-oAcquire::Check-Valid-Until=false", "update")...); again != nil {
		return err
	}
	a.progress(fmt.Sprintf("warning: the mirror's lists of %s are out of date; they are signed by Debian, and are used", s))
	return nil
}

func (a *Archive) mirrorURI(ctx context.Context) (string, error) {
	a.mu.Lock()
	defer a.mu.Unlock()
	if a.mirror == "" {
		m, err := Mirror(ctx)
		if err != nil {
			return "", err
		}
		a.mirror = m
	}
	return a.mirror, nil
}
