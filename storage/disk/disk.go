// SPDX-License-Identifier: Apache-2.0
// Copyright The Cloister Authors.

// Package disk finds a block device by its content. Names are the host's choice and change from boot to boot.
//
// Every disk is hostile: each is read by a goroutine of its own, so that one that never answers cannot hide another;
// each is read once, and only as many bytes as are compared.
package disk

import (
	"context"
	"crypto/subtle"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"time"
)

// Finder looks for disks. The zero value looks at the machine's.
type Finder struct {
	// Sys is where sysfs is mounted; empty means /sys.
	Sys string
	// Dev is where device nodes lie; empty means /dev.
	Dev string

	open func(path string) (io.ReadCloser, error) // for tests; nil means os.Open
}

const (
	pollInterval = 50 * time.Millisecond // disks appear while their drivers probe
	maxDisks     = 256                   // looked at; each costs a goroutine and readSize of memory
	maxListed    = 16                    // named in an error
	readSize     = 32 << 10
	luksMagic    = "LUKS\xba\xbe" // at the start of LUKS1 and LUKS2 headers
	sectorSize   = 512            // of the size in sysfs
)

// verdict is what became of one disk.
type verdict struct {
	name    string
	match   bool
	again   bool   // it was not read: its node is not there yet
	outcome string // for the error
}

// search is one run of ByHeader.
type search struct {
	Finder
	header   []byte
	looked   map[string]string // outcome by name of each disk that was looked at
	again    map[string]bool   // those of looked that start tries again
	verdicts chan verdict
}

// ByHeader returns the path of the disk that starts with header. Until ctx ends it goes on looking for disks that appear
// later. The error says which disks were looked at and why none was it. A read that hangs in the kernel keeps its
// goroutine until the kernel gives it up.
func (f Finder) ByHeader(ctx context.Context, header []byte) (devicePath string, err error) {
	if len(header) < len(luksMagic) {
		return "", fmt.Errorf("find disk: header of %d bytes identifies no disk", len(header))
	}
	s := search{
		Finder: f.withDefaults(), header: header,
		looked: map[string]string{}, again: map[string]bool{}, verdicts: make(chan verdict, maxDisks),
	}
	ticker := time.NewTicker(pollInterval)
	defer ticker.Stop()
	for {
		if err := s.start(); err != nil {
			return "", fmt.Errorf("find disk: %w", err)
		}
		for waiting := true; waiting; {
			select {
			case v := <-s.verdicts:
				if v.match {
					return s.path(v.name), nil
				}
				s.note(v)
			case <-ticker.C:
				waiting = false
			case <-ctx.Done():
				return s.finish(ctx.Err())
			}
		}
	}
}

func (f Finder) withDefaults() Finder {
	if f.Sys == "" {
		f.Sys = "/sys"
	}
	if f.Dev == "" {
		f.Dev = "/dev"
	}
	if f.open == nil {
		f.open = func(path string) (io.ReadCloser, error) { return os.Open(path) }
	}
	return f
}

// path returns the path of a disk's node. A slash of the name is an exclamation mark in sysfs.
func (f Finder) path(name string) string {
	return filepath.Join(f.Dev, strings.ReplaceAll(name, "!", "/"))
}

// start looks at every disk that has not been looked at yet.
func (s *search) start() error {
	entries, err := os.ReadDir(filepath.Join(s.Sys, "block"))
	if errors.Is(err, fs.ErrNotExist) {
		return nil // before the first block driver
	}
	if err != nil {
		return fmt.Errorf("list disks: %w", err)
	}
	for _, e := range entries {
		name := e.Name()
		_, known := s.looked[name]
		if virtual(name) || known && !s.again[name] || !known && len(s.looked) >= maxDisks {
			continue
		}
		size := s.size(name)
		switch {
		case size == 0:
			continue // no medium, or not ready yet
		case size < int64(len(s.header)):
			s.looked[name] = "smaller than the header"
			continue
		}
		s.again[name] = false
		if !known {
			s.looked[name] = "did not answer"
		}
		go func() { s.verdicts <- s.look(name) }() // never blocks: there is room for every disk
	}
	return nil
}

// virtual tells whether a device is one of the guest's own making.
func virtual(name string) bool {
	return slices.ContainsFunc([]string{"loop", "ram", "zram", "dm-"}, func(p string) bool { return strings.HasPrefix(name, p) })
}

// size returns the size of a disk in bytes, 0 if it is not known.
func (s *search) size(name string) int64 {
	data, err := os.ReadFile(filepath.Join(s.Sys, "block", name, "size"))
	if err != nil {
		return 0
	}
	sectors, err := strconv.ParseInt(strings.TrimSpace(string(data)), 10, 54) // 54 bits: times 512 fits
	if err != nil || sectors < 0 {
		return 0
	}
	return sectors * sectorSize
}

// look reads len(header) bytes of a disk, once, and compares them.
func (s *search) look(name string) verdict {
	v := verdict{name: name}
	f, err := s.open(s.path(name))
	if err != nil {
		v.again = errors.Is(err, fs.ErrNotExist)
		v.outcome = "cannot be opened: " + cause(err)
		return v
	}
	defer func() { _ = f.Close() }()
	buf := make([]byte, min(readSize, len(s.header)))
	same, luks := 1, false
	for off := 0; off < len(s.header); off += len(buf) {
		chunk := buf[:min(len(buf), len(s.header)-off)]
		if _, err := io.ReadFull(f, chunk); err != nil {
			v.outcome = "cannot be read: " + cause(err)
			return v
		}
		if off == 0 {
			luks = strings.HasPrefix(string(chunk[:len(luksMagic)]), luksMagic)
		}
		same &= subtle.ConstantTimeCompare(chunk, s.header[off:off+len(chunk)])
	}
	switch {
	case same == 1:
		v.match = true
	case luks:
		v.outcome = "its LUKS header differs from the pinned one: wrong or modified disk"
	default:
		v.outcome = "no LUKS header"
	}
	return v
}

// cause returns an error's text without the path, which the list of disks names anyway.
func cause(err error) string {
	if path, ok := errors.AsType[*fs.PathError](err); ok {
		err = path.Err
	}
	return err.Error()
}

func (s *search) note(v verdict) {
	s.looked[v.name], s.again[v.name] = v.outcome, v.again
}

// finish returns a disk that answered at the last moment, or the error.
func (s *search) finish(cause error) (string, error) {
	for {
		select {
		case v := <-s.verdicts:
			if v.match {
				return s.path(v.name), nil
			}
			s.note(v)
		default:
			return "", fmt.Errorf("find disk: %s: %w", s.summary(), cause)
		}
	}
}

// summary says which disks were looked at.
func (s *search) summary() string {
	if len(s.looked) == 0 {
		return "no disk at all: is one attached, and is its driver among the boot config's modules?"
	}
	var list []string
	names := slices.Sorted(maps.Keys(s.looked))
	for i, name := range names {
		if i == maxListed {
			list = append(list, fmt.Sprintf("and %d more", len(names)-i))
			break
		}
		list = append(list, fmt.Sprintf("%s (%s)", name, s.looked[name]))
	}
	return "none of the disks has the pinned header: " + strings.Join(list, ", ")
}
