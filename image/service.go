// SPDX-License-Identifier: Apache-2.0
// Copyright The Cloister Authors.

package image

import (
	"context"
	"errors"
	"fmt"
	"sync"

	specs "github.com/opencontainers/runtime-spec/specs-go"

	"github.com/cloister-cc/cloister/image/registry"
	"github.com/cloister-cc/cloister/image/store"
	"github.com/cloister-cc/cloister/initramfs/layout"
)

// maxManifests bounds the manifests that are kept in memory, each of about maxManifest bytes. All are dropped when there
// are more.
const (
	maxManifests = 64
	maxManifest  = 64 << 10
)

// Layers of at most smallLayer bytes in the registry do not wait for large ones: maxSmall of them are fetched at the same
// time. Not those that can ask for a window of many times their size (zstd).
const (
	smallLayer = 4 << 20
	maxSmall   = 16
)

// maxPulls is how often one Mount pulls an image whose layers are gone again before they are mounted.
const maxPulls = 3

// Service pulls images and mounts them. It may be used from many goroutines.
type Service struct {
	config   Config
	registry *registry.Client
	store    *store.Store
	baked    []preseeded
	slots    chan struct{}
	small    chan struct{}          // slots of layers that take time, but neither memory nor bandwidth
	flights  flights[pulled]        // end with the last pull that wants them
	pulls    flights[[]store.Layer] // go on for a while without callers
	tracker  tracker

	mu        sync.Mutex
	manifests map[place]*registry.Image
	verified  map[decision]struct{}
}

// New returns a service; its image store is empty unless Config.Keep is set. It opens no connection.
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
	baked, err := parsePreseeded(c.Preseeded)
	if err != nil {
		return nil, err
	}
	registries, err := registry.ParseRegistries(c.Registries, c.AllowInsecure)
	if err != nil {
		return nil, err
	}
	st, err := store.Open(store.Config{Root: c.Root, Mounts: c.Mounts, Keep: c.Keep, Budget: c.Limits.Budget, Reserve: c.Limits.Reserve})
	if err != nil {
		return nil, err
	}
	return &Service{
		config: c,
		registry: registry.New(registry.Config{
			CA: c.CA, PlainLoopback: c.PlainLoopback, Auth: auth, UserAgent: "cloister", HTTPSProxy: c.HTTPSProxy, NoProxy: c.NoProxy,
			Retry: c.Retry, Registries: registries, Log: c.Log,
		}),
		store:     st,
		baked:     baked,
		slots:     make(chan struct{}, c.Limits.Parallel),
		small:     make(chan struct{}, maxSmall),
		pulls:     flights[[]store.Layer]{linger: c.Limits.Linger, most: c.Limits.Abandoned},
		manifests: make(map[place]*registry.Image),
		verified:  make(map[decision]struct{}),
	}, nil
}

// Close stops pulls that are under way, also those that nobody waits for, and drops connections. Mounts stay.
func (s *Service) Close() {
	s.pulls.close()
	s.flights.close()
	s.registry.Close()
	if err := s.store.Close(); err != nil {
		s.config.Log.Warn("image store was not closed in order", "error", err)
	}
}

// Mount pulls the image of a reference unless it is here, and mounts a root file system of it at target, an empty
// folder. What the container writes goes to a layer of its own. It returns the digest that the reference stands for, of
// an index or a manifest. On error nothing is mounted. When ctx ends first, the pull goes on for a while, and the next
// Mount of the image joins it.
func (s *Service) Mount(ctx context.Context, containerID, reference, target string) (imageDigest string, err error) {
	ref, err := registry.ParseReference(reference)
	if err != nil {
		return "", err
	}
	if err := s.store.Reserve(containerID); err != nil {
		return "", err
	}
	defer s.store.Release(containerID)
	if p := s.findPreseeded(ref); p != nil {
		return s.mountPreseeded(ctx, containerID, target, ref, p)
	}
	img, err := s.choose(ctx, ref)
	if err != nil {
		s.tracker.failed.Add(1)
		return "", err
	}
	if err := s.mount(ctx, containerID, target, ref, img); err != nil {
		return "", err
	}
	return img.Digest.String(), nil
}

// mount pulls the layers of an image, says that it is used, and mounts it.
func (s *Service) mount(ctx context.Context, containerID, target string, ref registry.Reference, img *registry.Image) error {
	var err error
	for range maxPulls {
		var layers []store.Layer
		if layers, err = s.pull(ctx, ref, img); err == nil {
			err = s.use(ctx, containerID, target, ref, img, layers)
		}
		// Before or after the end of the pull another image may have taken the space.
		if !errors.Is(err, store.ErrGone) {
			return err
		}
	}
	return err
}

// use says that an image is used, and mounts it.
func (s *Service) use(ctx context.Context, containerID, target string, ref registry.Reference, img *registry.Image, layers []store.Layer) error {
	if err := s.config.Measure(ctx, ref.String(), img.Digest.String()); err != nil {
		return fmt.Errorf("image %s (%s) cannot be measured: %w", ref, img.Digest, err)
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
