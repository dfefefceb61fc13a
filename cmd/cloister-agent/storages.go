// SPDX-License-Identifier: Apache-2.0
// Copyright The Cloister Authors.

package main

import (
	"context"
	"errors"
	"fmt"

	"github.com/cloister-cc/cloister/agent"
	"github.com/cloister-cc/cloister/storage/share"
	"github.com/cloister-cc/cloister/storage/volume"
)

// storages offers package volume's volumes to a sandbox; it implements agent.Volumes.
type storages struct{ *volume.Manager }

// Add implements agent.Volumes.
func (s storages) Add(ctx context.Context, owner string, in agent.Storage) error {
	return argument(s.Manager.Add(ctx, owner, volumeStorage(in)))
}

// Update implements agent.Volumes.
func (s storages) Update(ctx context.Context, in agent.Storage) error {
	return argument(s.Manager.Update(ctx, volumeStorage(in)))
}

func volumeStorage(in agent.Storage) volume.Storage {
	out := volume.Storage{Driver: in.Driver, FSType: in.FSType, Options: in.Options, MountPoint: in.MountPoint}
	if g := in.FSGroup; g != nil {
		out.Group = &volume.FSGroup{ID: g.GID, OnRootMismatch: g.OnRootMismatch}
	}
	return out
}

// shared offers the folder of package share to a sandbox; it implements agent.Share.
type shared struct {
	*share.Dir
	stale *share.Stale
}

// Copy implements agent.Share.
func (s shared) Copy(f agent.File) error { return argument(s.Dir.Copy(share.File(f))) }

// DropStale implements agent.Share.
func (s shared) DropStale(ctx context.Context) error {
	_, err := s.stale.Remove(ctx)
	return err
}

// argument has the errors of storages that are the request's fault say so.
func argument(err error) error {
	switch {
	case errors.Is(err, volume.ErrUnsupported):
		return fmt.Errorf("%w: %w", agent.ErrUnsupported, err)
	case errors.Is(err, volume.ErrInvalid), errors.Is(err, share.ErrPath):
		return fmt.Errorf("%w: %w", agent.ErrInvalidArgument, err)
	}
	return err
}
