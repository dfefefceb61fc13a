// SPDX-License-Identifier: Apache-2.0
// Copyright The Cloister Authors.

package image

import (
	"context"
	"errors"
	"fmt"
	"sync"

	"github.com/opencontainers/go-digest"
	specs "github.com/opencontainers/runtime-spec/specs-go"

	"github.com/cloister-cc/cloister/image/registry"
	"github.com/cloister-cc/cloister/image/store"
	"github.com/cloister-cc/cloister/initramfs/layout"
)

// maxManifests bounds the manifests that are kept in memory, each as large as registry.MaxManifestSize. All are dropped
// when there are more.
const maxManifests = 16

// Service pulls images and mounts them. It may be used from many goroutines.
type Service struct {
	config   Config
	registry *registry.Client
	store    *store.Store
	slots    chan struct{}
	flights  flights[store.Layer]

	mu        sync.Mutex
	manifests map[digest.Digest]*registry.Image
}

// New returns a service with an empty image store. It opens no connection.
func New(c Config) (*Service, error) {
	c, err := c.withDefaults()
	if err != nil {
		return nil, err
	}
	auth, err := registry.ParseAuth(c.Auth)
	if err != nil {
		return nil, err
	}
	c.Auth = nil
	s, err := store.Open(c.Root, c.Mounts)
	if err != nil {
		return nil, err
	}
	return &Service{
		config:    c,
		registry:  registry.New(registry.Config{CA: c.CA, PlainLoopback: c.PlainLoopback, Auth: auth, UserAgent: "cloister", HTTPSProxy: c.HTTPSProxy, NoProxy: c.NoProxy}),
		store:     s,
		slots:     make(chan struct{}, c.Limits.Parallel),
		manifests: make(map[digest.Digest]*registry.Image),
	}, nil
}

// Close stops pulls that are under way and drops connections. Mounts stay.
func (s *Service) Close() {
	s.flights.close()
	s.registry.Close()
}

// Mount pulls the image of a reference unless it is here, and mounts a root file system of it at target, an empty
// folder. What the container writes goes to a layer of its own. On error nothing is mounted.
func (s *Service) Mount(ctx context.Context, containerID, reference, target string) error {
	ref, err := registry.ParseReference(reference)
	if err != nil {
		return err
	}
	if err := s.store.Reserve(containerID); err != nil {
		return err
	}
	defer s.store.Release(containerID)
	layers, err := s.pull(ctx, ref)
	if err != nil {
		return err
	}
	return s.store.Mount(containerID, target, layers)
}

// MountPause mounts the built-in pause image's root file system at target, with a writable layer like any other
// container's, and returns the process that runs there.
func (s *Service) MountPause(_ context.Context, containerID, target string) (*specs.Process, error) {
	if s.config.PauseRootfs == "" {
		return nil, errors.New("there is no built-in pause image")
	}
	if err := s.store.Reserve(containerID); err != nil {
		return nil, err
	}
	defer s.store.Release(containerID)
	if err := s.store.MountDir(containerID, target, s.config.PauseRootfs); err != nil {
		return nil, fmt.Errorf("pause image: %w", err)
	}
	return &specs.Process{Args: []string{layout.PausePath}, Cwd: "/"}, nil
}

// Unmount drops what Mount or MountPause made for a container. Nothing to drop is no error. Layers stay for the next
// container.
func (s *Service) Unmount(_ context.Context, containerID string) error {
	return s.store.Unmount(containerID)
}
