// SPDX-License-Identifier: Apache-2.0
// Copyright The Cloister Authors.

package debian

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"time"
)

const (
	queryTimeout    = 2 * time.Minute
	downloadTimeout = 15 * time.Minute
	unpackTimeout   = 5 * time.Minute
)

// Fetch returns the newest version of the named packages of a suite, unpacked. What the cache holds is reused while
// the suite's lists still name it, and also when the lists cannot be refreshed (no network). It follows no
// dependencies.
func (a *Archive) Fetch(ctx context.Context, s Suite, names ...string) ([]Package, error) {
	if s.Arch == ArchSource {
		return nil, errors.New("fetch packages: use FetchSource for source packages")
	}
	return a.fetch(ctx, s, names, a.unpack)
}

// FetchSource returns the upstream tar file of a suite's source package, without Debian's changes to it.
func (a *Archive) FetchSource(ctx context.Context, suite, name string) (Package, error) {
	p, err := a.fetch(ctx, Suite{Name: suite, Arch: ArchSource}, []string{name}, a.keepTar)
	if err != nil {
		return Package{}, err
	}
	return p[0], nil
}

// placer brings a downloaded file to its place in the cache and completes the package's Path, Version and Depends.
type placer func(ctx context.Context, p *Package, file string) error

func (a *Archive) fetch(ctx context.Context, s Suite, names []string, place placer) ([]Package, error) {
	if err := checkNames(names); err != nil {
		return nil, err
	}
	if _, err := a.refresh(ctx, s, false); err != nil {
		if ctx.Err() != nil {
			return nil, err
		}
		return a.allCached(s, names, err)
	}
	packages, err := a.fetchListed(ctx, s, names, place)
	if err == nil || ctx.Err() != nil {
		return packages, err
	}
	// The mirror may have moved on since the lists were fetched.
	again, refreshErr := a.refresh(ctx, s, true)
	if refreshErr != nil {
		return a.allCached(s, names, errors.Join(err, refreshErr))
	}
	if !again {
		return nil, err
	}
	return a.fetchListed(ctx, s, names, place)
}

// allCached answers from the cache alone, or else with the reason why the lists could not be asked.
func (a *Archive) allCached(s Suite, names []string, reason error) ([]Package, error) {
	packages := make([]Package, 0, len(names))
	for _, name := range names {
		p, ok := a.cached(s, name)
		if !ok {
			return nil, reason
		}
		packages = append(packages, p)
	}
	a.progress(fmt.Sprintf("lists of %s cannot be refreshed, using %s as cached", s, strings.Join(names, ", ")))
	return packages, nil
}

func (a *Archive) fetchListed(ctx context.Context, s Suite, names []string, place placer) ([]Package, error) {
	packages := make([]Package, 0, len(names))
	for _, name := range names {
		p, err := a.fetchOne(ctx, s, name, place)
		if err != nil {
			return nil, fmt.Errorf("fetch %s of %s: %w", name, s, err)
		}
		packages = append(packages, p)
	}
	return packages, nil
}

func (a *Archive) fetchOne(ctx context.Context, s Suite, name string, place placer) (Package, error) {
	known, ok := a.cached(s, name)
	if ok && known.Checked.After(a.listsTime(s)) {
		return known, nil
	}
	args := append(a.options(s), downloadVerb(s)...)
	out, err := run(ctx, queryTimeout, a.suiteDir(s), "apt-get", append(args, "--print-uris", name)...)
	if err != nil {
		return Package{}, err
	}
	item, err := parsePrintURIs(out)
	if err != nil {
		return Package{}, err
	}
	start := time.Now()
	if ok && known.SHA256 == item.sha256 {
		known.Checked = start
		return known, a.remember(known)
	}
	tmp, err := os.MkdirTemp(a.dir, ".download-")
	if err != nil {
		return Package{}, fmt.Errorf("make download folder: %w", err)
	}
	defer func() { _ = os.RemoveAll(tmp) }()
	if _, err := run(ctx, downloadTimeout, tmp, "apt-get", append(args, name)...); err != nil {
		return Package{}, err
	}
	file := filepath.Join(tmp, item.file)
	if err := checkFile(file, item); err != nil {
		return Package{}, err
	}
	p := Package{Suite: s, Name: name, SHA256: item.sha256, Checked: start}
	if err := place(ctx, &p, file); err != nil {
		return Package{}, err
	}
	if err := a.remember(p); err != nil {
		return Package{}, err
	}
	a.progress(fmt.Sprintf("%s %s (%s) fetched in %.1f s", name, p.Version, s, time.Since(start).Seconds()))
	return p, nil
}

func downloadVerb(s Suite) []string {
	if s.Arch == ArchSource {
		return []string{"source", "--tar-only"}
	}
	return []string{"download"}
}

// place returns where a package lies in the cache.
func (a *Archive) place(p *Package) string {
	suite := p.Suite
	return filepath.Join(a.dir, "packages", suite.String(), cacheName(p.Name, p.Version, p.SHA256))
}

// unpack unpacks a .deb into a folder of its own, which appears under its name only when it is complete.
func (a *Archive) unpack(ctx context.Context, p *Package, file string) error {
	fields, err := run(ctx, queryTimeout, "", "dpkg-deb", "--field", file, "Version", "Depends")
	if err != nil {
		return err
	}
	f := parseFields(fields)
	p.Version, p.Depends = f["Version"], f["Depends"]
	p.Path = a.place(p)
	tmp := filepath.Join(filepath.Dir(file), "root")
	if _, err := run(ctx, unpackTimeout, "", "dpkg-deb", "--extract", file, tmp); err != nil {
		return err
	}
	return replace(tmp, p.Path)
}

// keepTar moves a source package's tar file to its place.
func (a *Archive) keepTar(_ context.Context, p *Package, file string) error {
	base := filepath.Base(file)
	version, found := strings.CutPrefix(base, p.Name+"_")
	if i := strings.Index(version, ".orig.tar"); found && i > 0 {
		p.Version = version[:i]
	} else {
		return fmt.Errorf("source file name %q is not %s_VERSION.orig.tar…", base, p.Name)
	}
	p.Path = a.place(p) + base[strings.Index(base, ".tar"):]
	return replace(file, p.Path)
}

// replace moves from (a file or folder) to to, in place of what may be there.
func replace(from, to string) error {
	if err := os.MkdirAll(filepath.Dir(to), 0o755); err != nil {
		return fmt.Errorf("make cache folder: %w", err)
	}
	if err := os.RemoveAll(to); err != nil {
		return fmt.Errorf("remove stale cache entry: %w", err)
	}
	if err := os.Rename(from, to); err != nil {
		return fmt.Errorf("move into the cache: %w", err)
	}
	return nil
}

// cacheName makes a name without the characters that Debian versions have and option parsers trip over.
func cacheName(name, version, sum string) string {
	clean := strings.Map(func(r rune) rune {
		if r >= 'a' && r <= 'z' || r >= 'A' && r <= 'Z' || r >= '0' && r <= '9' || r == '.' || r == '-' {
			return r
		}
		return '_'
	}, version)
	return name + "_" + clean + "_" + sum[:8]
}

// listed is one file that apt would download.
type listed struct {
	file   string
	size   int64
	sha256 string
}

var printURI = regexp.MustCompile(`^'([^']+)' (\S+) (\d+) SHA256:([0-9a-f]{64})$`)

// parsePrintURIs reads the answer of apt-get's --print-uris, which must name exactly one file, with a sha256.
func parsePrintURIs(out string) (listed, error) {
	var items []listed
	for line := range strings.Lines(out) {
		line = strings.TrimSpace(line)
		if !strings.HasPrefix(line, "'") {
			continue // notices
		}
		m := printURI.FindStringSubmatch(line)
		if m == nil {
			return listed{}, fmt.Errorf("apt-get names a file without sha256: %q", line)
		}
		var size int64
		if _, err := fmt.Sscan(m[3], &size); err != nil {
			return listed{}, fmt.Errorf("apt-get names size %q: %w", m[3], err)
		}
		if m[2] != filepath.Base(m[2]) {
			return listed{}, fmt.Errorf("apt-get names file %q", m[2])
		}
		items = append(items, listed{file: m[2], size: size, sha256: m[4]})
	}
	if len(items) != 1 {
		return listed{}, fmt.Errorf("the lists name %d files instead of one", len(items))
	}
	return items[0], nil
}

// checkFile compares a downloaded file with what the lists say.
func checkFile(path string, want listed) error {
	f, err := os.Open(path)
	if err != nil {
		return fmt.Errorf("open downloaded file: %w", err)
	}
	defer func() { _ = f.Close() }()
	h := sha256.New()
	n, err := io.Copy(h, f)
	if err != nil {
		return fmt.Errorf("read downloaded file: %w", err)
	}
	if got := hex.EncodeToString(h.Sum(nil)); n != want.size || got != want.sha256 {
		return fmt.Errorf("downloaded file has sha256 %s and %d bytes, the lists say %s and %d", got, n, want.sha256, want.size)
	}
	return nil
}

var packageName = regexp.MustCompile(`^[a-z0-9][a-z0-9.+-]+$`)

func checkNames(names []string) error {
	if len(names) == 0 {
		return errors.New("fetch packages: no name given")
	}
	for _, n := range names {
		if !packageName.MatchString(n) {
			return fmt.Errorf("fetch packages: %q is not a package name", n)
		}
	}
	return nil
}
