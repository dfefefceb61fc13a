// SPDX-License-Identifier: Apache-2.0
// Copyright The Cloister Authors.

package store

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"

	"github.com/cloister-cc/cloister/storage/mount"
)

// Mounts are the two kernel calls of a store.
type Mounts struct {
	// Overlay mounts an overlay file system without device nodes at target; lower has the topmost layer first.
	Overlay func(target string, lower []string, upper, work string) error
	// Unmount detaches what is mounted at target.
	Unmount func(target string) error
}

func (m Mounts) withDefaults() Mounts {
	if m.Overlay == nil {
		m.Overlay = overlay
	}
	if m.Unmount == nil {
		// Detached, so that a process that is slow to die cannot keep the container from being removed.
		m.Unmount = mount.Detach
	}
	return m
}

// overlay mounts an overlay, see the kernel's Documentation/filesystems/overlayfs.rst. Its options must fit in a page,
// which 127 layers do by their short links while the store's own path has no more than about 20 bytes.
func overlay(target string, lower []string, upper, work string) error {
	return mount.Mount("overlay", target, "overlay",
		[]string{"nodev", "lowerdir=" + strings.Join(lower, ":"), "upperdir=" + upper, "workdir=" + work})
}

// container is one mount of a store. Its fields are guarded by the store's mutex, which is held across no kernel call.
type container struct {
	dir     string
	target  string // empty: nothing is mounted (any more)
	mounted bool   // Mount has succeeded
	busy    bool   // Mount or Unmount is at work
	hold    *Hold  // of its layers, nil if they are not the store's
}

// begin returns a container that nobody else works on, until end.
func (s *Store) begin(id string, mounted bool) (*container, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	c, ok := s.containers[id]
	switch {
	case !ok:
		return nil, nil // no such container is an answer, not an error
	case c.busy || c.mounted != mounted:
		return nil, fmt.Errorf("container %s: root file system is being mounted or unmounted: %w", id, ErrMounted)
	}
	c.busy = true
	return c, nil
}

func (s *Store) end(c *container, change func()) {
	s.mu.Lock()
	defer s.mu.Unlock()
	c.busy = false
	change()
}

// containerID is what ids of containers look like; they become folder names.
var containerID = regexp.MustCompile(`^[a-zA-Z0-9][a-zA-Z0-9_.-]{0,127}$`)

// Errors that callers tell apart.
var (
	// ErrContainerID means that a container id is not well formed.
	ErrContainerID = errors.New("container id is not well formed")
	// ErrGone means that a layer was removed to make space before it was mounted. It can be pulled again.
	ErrGone = errors.New("layer is not in the image store any more")
	// ErrMounted means that a container has a root file system already, or is about to get one.
	ErrMounted = errors.New("container has a root file system already")
)

// Reserve takes a container's id for one Mount. Release gives it back if nothing is mounted.
func (s *Store) Reserve(id string) error {
	if !containerID.MatchString(id) {
		return fmt.Errorf("%w: %.140q", ErrContainerID, id)
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if _, ok := s.containers[id]; ok {
		return fmt.Errorf("container %s: %w", id, ErrMounted)
	}
	s.containers[id] = &container{dir: filepath.Join(s.root, containersDir, id)}
	return nil
}

// Release ends a reservation. It does nothing once Mount has succeeded.
func (s *Store) Release(id string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if c, ok := s.containers[id]; ok && !c.mounted {
		delete(s.containers, id)
	}
}

// Mount mounts layers, lowest first, at target with an upper layer that is the container's own. The id is reserved. The
// layers stay in the store until Unmount.
func (s *Store) Mount(id, target string, layers []Layer) error {
	hold := s.NewHold()
	lower := make([]string, 0, len(layers))
	hidden := false // by a layer above
	for _, l := range slices.Backward(layers) {
		if !hold.Add(l) {
			hold.Release()
			return fmt.Errorf("layer %s: %w", l.Blob, ErrGone)
		}
		// overlayfs refuses a folder that comes twice. The upper one of two hides all that the lower one does.
		if !hidden && !slices.Contains(lower, l.link) {
			lower = append(lower, l.link)
		}
		hidden = hidden || l.Opaque
	}
	if err := s.mount(id, target, lower, hold); err != nil {
		hold.Release()
		return err
	}
	return nil
}

// MountDir is Mount with a folder outside the store as the only lower layer.
func (s *Store) MountDir(id, target, dir string) error {
	if strings.ContainsAny(dir, ",:\\") {
		return fmt.Errorf("folder %q has one of , : \\ in it", dir)
	}
	return s.mount(id, target, []string{dir}, nil)
}

func (s *Store) mount(id, target string, lower []string, hold *Hold) error {
	c, err := s.begin(id, false)
	if err != nil {
		return err
	}
	if c == nil {
		return fmt.Errorf("container %.140q is not reserved", id)
	}
	upper, work := filepath.Join(c.dir, "upper"), filepath.Join(c.dir, "work")
	if err = makeDirs(c.dir, upper, work); err == nil {
		if err = s.mounts.Overlay(target, lower, upper, work); err == nil {
			s.end(c, func() { c.target, c.mounted, c.hold = target, true, hold })
			return nil
		}
		err = fmt.Errorf("mount root file system: %w", err)
	}
	err = errors.Join(err, os.RemoveAll(c.dir))
	s.end(c, func() {})
	return err
}

func makeDirs(dir, upper, work string) error {
	for _, d := range []string{dir, upper, work} {
		if err := os.Mkdir(d, 0o700); err != nil {
			return fmt.Errorf("create container folder: %w", err)
		}
	}
	// The upper folder's mode is that of the container's root folder.
	if err := os.Chmod(upper, 0o755); err != nil { // the root folder of a container
		return fmt.Errorf("create container folder: %w", err)
	}
	return nil
}

// Unmount drops a container's mount and what the container has written. A container without one is no error; one that
// is being mounted is ErrMounted. After an error Unmount can be called again.
func (s *Store) Unmount(id string) error {
	c, err := s.begin(id, true)
	if c == nil {
		return err
	}
	target := c.target
	if target != "" {
		if err = s.mounts.Unmount(target); err == nil {
			target = ""
		} else {
			err = fmt.Errorf("unmount root file system: %w", err)
		}
	}
	if err == nil {
		if err = os.RemoveAll(c.dir); err != nil {
			err = fmt.Errorf("remove container folder: %w", err)
		}
	}
	s.end(c, func() {
		if c.target = target; err == nil {
			delete(s.containers, id)
		}
	})
	if err == nil && c.hold != nil {
		c.hold.Release()
		return s.trim("")
	}
	return err
}
