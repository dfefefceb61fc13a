// SPDX-License-Identifier: Apache-2.0
// Copyright The Cloister Authors.

package leakscan

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
)

// Artefact is something that the host has held.
type Artefact struct {
	// Name stands for it in the report.
	Name string
	// Paths are its files and folders. Symbolic links are not followed.
	Paths []string
	// Control are the files and folders of its twin without encryption, in which a secret has to be found.
	Control []string
	// Known are secrets that are expected in the artefact itself: they are reported as known and are no leak.
	Known []string
}

// Result is what the search of one artefact found.
type Result struct {
	Artefact string `json:"artefact"`
	// Bytes is how much was searched, Inflated how much of decompressed streams beside that.
	Bytes    int64 `json:"bytes"`
	Inflated int64 `json:"inflated"`
	// Control are the secrets that were found in the twin.
	Control []string `json:"control"`
	// Hits is the number of findings that are leaks, Known that of those that were expected; Found describes both.
	Hits  int   `json:"hits"`
	Known int   `json:"known"`
	Found []Hit `json:"found,omitempty"`
	// Skipped says what could not be searched.
	Skipped []string `json:"skipped,omitempty"`
}

// Blind says whether the search of the artefact proves nothing: its control was not found, there was nothing to search, or
// something was left out.
func (r *Result) Blind() bool { return len(r.Control) == 0 || r.Bytes == 0 || len(r.Skipped) > 0 }

// Report is the outcome of a scan.
type Report struct {
	Results []Result `json:"artefacts"`
	// Leaked and Blind say whether any artefact is.
	Leaked bool `json:"leaked"`
	Blind  bool `json:"blind"`
}

// Scan searches artefacts for secrets. It fails where something cannot be read; what it finds, and whether it can see at
// all, is in the report.
func Scan(ctx context.Context, secrets []Secret, artefacts []Artefact) (*Report, error) {
	p, err := patterns(secrets)
	if err != nil {
		return nil, err
	}
	if len(artefacts) == 0 {
		return nil, errors.New("nothing to search")
	}
	m := newMatcher(p)
	report := &Report{}
	for _, a := range artefacts {
		r, err := scanArtefact(ctx, m, a)
		if err != nil {
			return nil, fmt.Errorf("search %s: %w", a.Name, err)
		}
		report.Leaked = report.Leaked || r.Hits > 0
		report.Blind = report.Blind || r.Blind()
		report.Results = append(report.Results, *r)
	}
	return report, nil
}

func scanArtefact(ctx context.Context, m *matcher, a Artefact) (*Result, error) {
	f := &findings{known: a.Known}
	bytes, err := scanPaths(ctx, m, f, a.Paths)
	if err != nil {
		return nil, err
	}
	r := &Result{
		Artefact: a.Name, Bytes: bytes, Inflated: f.inflated, Hits: f.leaks, Known: f.expected, Found: f.hits, Skipped: f.skipped,
		Control: []string{},
	}
	control := &findings{}
	if _, err := scanPaths(ctx, m, control, a.Control); err != nil {
		return nil, fmt.Errorf("control: %w", err)
	}
	for _, h := range control.hits {
		if !slices.Contains(r.Control, h.Secret) {
			r.Control = append(r.Control, h.Secret)
		}
	}
	slices.Sort(r.Control)
	return r, nil
}

func scanPaths(ctx context.Context, m *matcher, f *findings, paths []string) (int64, error) {
	var total int64
	for _, path := range paths {
		err := filepath.WalkDir(path, func(file string, d fs.DirEntry, err error) error {
			if err != nil {
				return err
			}
			if !d.Type().IsRegular() {
				if !d.IsDir() && file == path {
					return fmt.Errorf("%s is neither a file nor a folder", path)
				}
				return nil
			}
			n, err := scanFile(ctx, m, f, file, filepath.Base(path)+strings.TrimPrefix(file, path))
			total += n
			return err
		})
		if err != nil {
			return total, err
		}
	}
	return total, nil
}

// scanFile searches one file, and the connections in it if it is a capture.
func scanFile(ctx context.Context, m *matcher, f *findings, path, name string) (int64, error) {
	file, err := os.Open(path)
	if err != nil {
		return 0, err
	}
	defer file.Close()
	n, err := scanReader(ctx, m, f, name, file)
	if err != nil {
		return n, err
	}
	head := make([]byte, 4)
	if _, err := file.ReadAt(head, 0); err != nil && !errors.Is(err, io.EOF) {
		return n, err
	}
	if isPcap(head) {
		err = scanCapture(ctx, m, f, name, file)
	}
	return n, err
}

// readerFunc lets a search be cancelled.
type readerFunc func([]byte) (int, error)

// Read implements io.Reader.
func (f readerFunc) Read(p []byte) (int, error) { return f(p) }

func scanReader(ctx context.Context, m *matcher, f *findings, where string, r io.Reader) (int64, error) {
	s := newScanner(m, f, where, 0)
	defer s.Close()
	return io.CopyBuffer(struct{ io.Writer }{s}, readerFunc(func(p []byte) (int, error) {
		if err := ctx.Err(); err != nil {
			return 0, err
		}
		return r.Read(p)
	}), make([]byte, window))
}

// scanCapture searches each direction of each TCP connection in its order. Bytes that the capture lacks are a gap over
// which nothing is found.
func scanCapture(ctx context.Context, m *matcher, f *findings, name string, file *os.File) error {
	flows, err := tcpFlows(io.NewSectionReader(file, 0, 1<<62))
	if err != nil {
		f.skip(name + ": " + err.Error())
		return ctx.Err()
	}
	for fl, segments := range flows {
		where := fmt.Sprintf("%s > tcp %s to %s", name, fl.from, fl.to)
		s := newScanner(m, f, where, 0)
		for _, seg := range inOrder(segments) {
			if err := ctx.Err(); err != nil {
				return err
			}
			if _, err := io.Copy(s, io.NewSectionReader(file, seg.offset, int64(seg.size))); err != nil {
				return err
			}
		}
		s.Close()
	}
	return nil
}
