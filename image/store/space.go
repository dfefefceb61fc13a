// SPDX-License-Identifier: Apache-2.0
// Copyright The Cloister Authors.

package store

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"syscall"

	"github.com/opencontainers/go-digest"
	"golang.org/x/sys/unix"
)

// Space is that of a file system.
type Space struct {
	// Free and Total are bytes. Total 0 means that the file system does not say.
	Free, Total int64
	// FreeFiles and Files count inodes. Files 0 means that the file system does not say.
	FreeFiles, Files int64
}

// statfs asks the kernel.
func statfs(dir string) (Space, error) {
	var st unix.Statfs_t
	if err := unix.Statfs(dir, &st); err != nil {
		return Space{}, os.NewSyscallError("statfs", err)
	}
	size := uint64(st.Bsize)
	return Space{
		Free: int64(st.Bavail * size), Total: int64(st.Blocks * size), FreeFiles: int64(st.Ffree), Files: int64(st.Files),
	}, nil
}

// SpaceError says that there is no space, with what to do about it. It is syscall.ENOSPC.
type SpaceError struct {
	// Need is how many bytes are needed, 0 if that is not known.
	Need int64
	// Reserve is what must stay free besides.
	Reserve int64
	Space   Space
}

// Error implements error.
func (e *SpaceError) Error() string {
	if e.Space.Files > 0 && e.Space.FreeFiles == 0 {
		return fmt.Sprintf("the image store has no room for more files: all %d of its file system are in use; "+
			"remove containers, or give the guest more memory or a larger scratch disk", e.Space.Files)
	}
	need := "more"
	if e.Need > 0 {
		need = bytesText(e.Need)
	}
	return fmt.Sprintf("the image store is full: %s needed, %s of %s free, of which %s stay so; remove containers, "+
		"or give the guest more memory or a larger scratch disk", need, bytesText(e.Space.Free), bytesText(e.Space.Total), bytesText(e.Reserve))
}

// Is makes the error syscall.ENOSPC.
func (e *SpaceError) Is(target error) bool { return target == syscall.ENOSPC }

// bytesText writes a size for people.
func bytesText(n int64) string {
	switch {
	case n >= 10<<30:
		return fmt.Sprintf("%d GiB", n>>30)
	case n >= 10<<20:
		return fmt.Sprintf("%d MiB", n>>20)
	default:
		return fmt.Sprintf("%d KiB", n>>10)
	}
}

// Hold keeps layers from being removed. It may be used from many goroutines.
type Hold struct {
	store  *Store
	layers map[digest.Digest]*entry // guarded by the store's mutex
}

// NewHold returns a hold of no layers. The caller ends it with Release.
func (s *Store) NewHold() *Hold {
	return &Hold{store: s, layers: make(map[digest.Digest]*entry)}
}

// Add holds a layer. It returns false if the layer is not in the store any more.
func (h *Hold) Add(l Layer) bool {
	h.store.mu.Lock()
	defer h.store.mu.Unlock()
	return h.addLocked(l)
}

func (h *Hold) addLocked(l Layer) bool {
	e, ok := h.store.layers[l.Blob]
	if !ok || e.layer != l {
		return false
	}
	if h.layers[l.Blob] == nil {
		h.layers[l.Blob] = e
		e.holds++
	}
	return true
}

// Release ends the hold of all layers. They count as used just now.
func (h *Hold) Release() {
	h.store.mu.Lock()
	defer h.store.mu.Unlock()
	for _, e := range h.layers {
		e.holds--
		h.store.uses++
		e.used = h.store.uses
	}
	clear(h.layers)
}

// Ensure makes sure that so many bytes are free, besides Config.Reserve: layers that nobody holds are removed for it, the
// one that was not used for the longest time first. The error is a *SpaceError if that does not help.
func (s *Store) Ensure(need int64) error {
	for {
		space, err := s.statfs(s.root)
		if err != nil {
			return fmt.Errorf("look for space: %w", err)
		}
		if space.Total == 0 {
			return nil // nothing is known: the write itself tells
		}
		reserve := min(s.reserve, space.Total/16)
		outOfFiles := space.Files > 0 && space.FreeFiles == 0
		if space.Free-reserve >= need && !outOfFiles {
			return nil
		}
		removed, err := s.removeOldest(func(*entry) bool { return true })
		if err != nil {
			return err
		}
		if !removed {
			return &SpaceError{Need: need, Reserve: reserve, Space: space}
		}
	}
}

// Full makes a *SpaceError of an error that says that a write found no space.
func (s *Store) Full(err error) error {
	space, statErr := s.statfs(s.root)
	if statErr != nil {
		return errors.Join(err, statErr)
	}
	return fmt.Errorf("%w (%w)", &SpaceError{Reserve: min(s.reserve, space.Total/16), Space: space}, err)
}

// trim removes unused layers until the rest is within the budget. The newest one stays: somebody wants it.
func (s *Store) trim(newest digest.Digest) error {
	for s.budget > 0 && s.Size() > s.budget {
		removed, err := s.removeOldest(func(e *entry) bool { return e.layer.Blob != newest })
		if err != nil || !removed {
			return err
		}
	}
	return nil
}

// Space returns that of the file system on which the store lies.
func (s *Store) Space() (Space, error) { return s.statfs(s.root) }

// Size returns about how many bytes the layers take.
func (s *Store) Size() int64 {
	s.mu.Lock()
	defer s.mu.Unlock()
	var sum int64
	for _, e := range s.layers {
		sum += e.layer.Size
	}
	return sum
}

// removeOldest removes the unused layer of which the last use is longest ago, among those that may go.
func (s *Store) removeOldest(may func(*entry) bool) (bool, error) {
	trash, err := s.takeOldest(may)
	if trash == "" || err != nil {
		return false, err
	}
	if err := s.step("remove"); err != nil {
		return false, err
	}
	if err := os.RemoveAll(trash); err != nil {
		return false, fmt.Errorf("remove layer: %w", err)
	}
	return true, nil
}

// takeOldest moves a layer out of its place: after that it is not one any more, whatever happens. It returns the empty
// string if there is none.
func (s *Store) takeOldest(may func(*entry) bool) (trash string, err error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	var oldest *entry
	for _, e := range s.layers {
		if e.holds == 0 && may(e) && (oldest == nil || e.used < oldest.used || e.used == oldest.used && e.layer.Blob < oldest.layer.Blob) {
			oldest = e
		}
	}
	if oldest == nil {
		return "", nil
	}
	blob := oldest.layer.Blob
	if s.keep {
		if err := s.step("remove record"); err != nil {
			return "", err
		}
		if err := errors.Join(removeFile(s.recordPath(blob)), syncDir(filepath.Join(s.root, recordsDir))); err != nil {
			return "", fmt.Errorf("remove layer: %w", err)
		}
	}
	delete(s.layers, blob)
	trash = filepath.Join(s.root, stagingDir, s.numberLocked())
	if err := s.rename("trash", s.path(blob), trash); err != nil {
		return "", fmt.Errorf("remove layer: %w", err)
	}
	if err := s.step("unlink"); err != nil {
		return "", err
	}
	if err := os.Remove(oldest.layer.link); err != nil {
		return "", fmt.Errorf("remove layer: %w", err)
	}
	return trash, nil
}
