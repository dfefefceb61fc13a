// SPDX-License-Identifier: Apache-2.0
// Copyright The Cloister Authors.

package agent

import (
	"context"
	"encoding/json"
	"fmt"
	"path/filepath"
	"regexp"
	"strings"
)

// maxDriverOption bounds the JSON of the image_guest_pull driver, in bytes.
const maxDriverOption = 64 << 10

// pull says which root file system a container gets.
type pull struct {
	pause     bool
	reference string
}

// Metadata by which containerd and CRI-O mark a pod's pause container.
var pauseMarks = [...]string{"io.kubernetes.cri.container-type", "io.kubernetes.cri-o.ContainerType"}

// parsePull finds the root file system among a container's storages and returns the others.
func parsePull(storages []Storage) (root pull, volumes []Storage, err error) {
	found := 0
	for _, s := range storages {
		if s.Driver != DriverImageGuestPull {
			volumes = append(volumes, s)
			continue
		}
		pause, err := marksPause(s.DriverOptions)
		if err != nil {
			return pull{}, nil, err
		}
		if !pause && s.Source == "" {
			return pull{}, nil, fmt.Errorf("%w: storage %s names no image", ErrInvalidArgument, s.Driver)
		}
		root = pull{pause: pause, reference: s.Source}
		found++
	}
	if found != 1 {
		return pull{}, nil, fmt.Errorf("%w: %d storages of driver %s, where a container has exactly one as its root file system",
			ErrInvalidArgument, found, DriverImageGuestPull)
	}
	return root, volumes, nil
}

// marksPause reads the driver options of an image_guest_pull storage: "image_guest_pull={JSON}", where the JSON is
// Kata's ImagePullVolume.
func marksPause(options []string) (bool, error) {
	pause := false
	for _, option := range options {
		value, ok := strings.CutPrefix(option, DriverImageGuestPull+"=")
		if !ok {
			return false, fmt.Errorf("driver option %.100q of %s: %w", option, DriverImageGuestPull, ErrUnsupported)
		}
		if len(value) > maxDriverOption {
			return false, fmt.Errorf("%w: driver option of %s is longer than %d bytes", ErrInvalidArgument, DriverImageGuestPull, maxDriverOption)
		}
		var volume struct {
			Metadata map[string]string `json:"metadata"`
		}
		if err := json.Unmarshal([]byte(value), &volume); err != nil {
			return false, fmt.Errorf("%w: driver option of %s: %w", ErrInvalidArgument, DriverImageGuestPull, err)
		}
		for _, mark := range pauseMarks {
			pause = pause || volume.Metadata[mark] == "sandbox"
		}
	}
	return pause, nil
}

// DriverEphemeral is the storage driver of a file system in memory.
const DriverEphemeral = "ephemeral"

var shmSize = regexp.MustCompile(`^[1-9][0-9]{0,15}[kmgKMG]?$`)

// shmOptions returns the data of the tmpfs on shmDir, the shared memory of the sandbox's containers, which the shim
// describes by an ephemeral storage, and the other storages.
func shmOptions(storages []Storage, shmDir string) (data string, volumes []Storage, err error) {
	size := "64m" // what container engines have as their default
	for _, s := range storages {
		if s.Driver != DriverEphemeral || s.FSType != "tmpfs" || s.MountPoint != shmDir {
			volumes = append(volumes, s)
			continue
		}
		for _, option := range s.Options {
			value, ok := strings.CutPrefix(option, "size=")
			if ok && !shmSize.MatchString(value) {
				return "", nil, fmt.Errorf("%w: size %q of shared memory", ErrInvalidArgument, value)
			}
			if ok {
				size = value
			}
		}
	}
	return "mode=1777,size=" + size, volumes, nil
}

// sandboxOwner owns the storages of the sandbox. It is no container's id.
const sandboxOwner = "/"

// addVolumes mounts storages for an owner.
func (s *Sandbox) addVolumes(ctx context.Context, u *undo, owner string, volumes []Storage) error {
	if len(volumes) == 0 {
		return nil
	}
	if s.cfg.Volumes == nil {
		return fmt.Errorf("storage driver %q: %w", volumes[0].Driver, ErrUnsupported)
	}
	u.keep("storages", func(ctx context.Context) error { return s.cfg.Volumes.Release(ctx, owner) })
	for _, v := range volumes {
		if err := s.cfg.Volumes.Add(ctx, owner, v); err != nil {
			return fmt.Errorf("storage %s on %q: %w", v.Driver, v.MountPoint, err)
		}
	}
	return nil
}

// UpdateEphemeralMounts mounts storages of memory anew with other options, their size above all.
func (s *Sandbox) UpdateEphemeralMounts(ctx context.Context, storages []Storage) error {
	if err := s.working(); err != nil {
		return fmt.Errorf("update ephemeral mounts: %w", err)
	}
	for _, v := range storages {
		if v.Driver != DriverEphemeral {
			return fmt.Errorf("update ephemeral mounts: %w: storage driver %q is not %s", ErrInvalidArgument, v.Driver, DriverEphemeral)
		}
	}
	for _, v := range storages {
		if err := s.updateMount(ctx, v); err != nil {
			return fmt.Errorf("update ephemeral mounts: %w", err)
		}
	}
	return nil
}

func (s *Sandbox) updateMount(ctx context.Context, v Storage) error {
	shmDir := filepath.Join(s.sandboxDir(), "shm")
	switch {
	case v.MountPoint == shmDir && v.FSType == "tmpfs":
		data, _, err := shmOptions([]Storage{v}, shmDir)
		if err != nil {
			return err
		}
		return s.cfg.Kernel.Mount("shm", shmDir, "remount", data)
	case s.cfg.Volumes == nil:
		return ErrUnsupported
	}
	return s.cfg.Volumes.Update(ctx, v)
}
