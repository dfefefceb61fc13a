// SPDX-License-Identifier: Apache-2.0
// Copyright The Cloister Authors.

// Package volume keeps the volumes of a sandbox that live inside the guest: Kata's storage drivers "ephemeral" (a tmpfs,
// or a hugetlbfs) and "local" (a folder). It is a leaf and knows nothing of containers, which are owners to it, or of
// the wire.
//
// The host says where a volume goes and what options it has. Therefore a mount point is accepted at exactly the places
// that Kata's shim uses (below the run folder: sandbox/shm, sandbox/ephemeral/NAME, and
// shared/containers/ID[/rootfs]/local/NAME), none of which is a container's bundle or root file system; it is made and
// opened by openat2 without following links; and options are of known names with values of known form.
package volume

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path"
	"slices"
	"sync"

	"github.com/cloister-cc/cloister/storage/mount"
)

// maxVolumes bounds the volumes of a sandbox.
const maxVolumes = 1024

// Errors that a caller may want to tell apart.
var (
	// ErrUnsupported is in the chain of the error for a storage driver that this package does not have.
	ErrUnsupported = errors.New("storage driver not supported")
	// ErrInvalid is in the chain of the error for a storage that says something wrong.
	ErrInvalid = errors.New("invalid storage")
)

// Storage describes a volume: those fields of Kata's Storage that mean something to these drivers.
type Storage struct {
	// Driver is DriverEphemeral or DriverLocal.
	Driver string
	// FSType is tmpfs or hugetlbfs for DriverEphemeral, and without meaning for DriverLocal.
	FSType string
	// Options are mount options, each of which may be several that are separated by commas. fsgid=N gives the volume's
	// root to group N and sets its set-group-id bit.
	Options []string
	// MountPoint is where the volume is, absolute and clean.
	MountPoint string
	// Group, unless nil, is given to all that is in the volume.
	Group *FSGroup
	// Transient volumes end with their last owner. All others stay until Close, whoever uses them, as the shim's volumes
	// must: they are a pod's emptyDirs, whose files outlive a container that is restarted. (Kata's agent counts their
	// users, but never unmounts them either.) If one of a volume's owners wants it to stay, it stays.
	Transient bool
}

// The storage drivers.
const (
	DriverEphemeral = "ephemeral"
	DriverLocal     = "local"
)

// Config is what a Manager needs.
type Config struct {
	// RunDir is Kata's /run/kata-containers, which the caller trusts. It is made if it is missing.
	RunDir string
	// SysDir is where sysfs is; "" is /sys.
	SysDir string
	// Mount mounts as mount(8) does, with the option remount too; nil is storage/mount's. The target is a path below
	// /proc/self/fd.
	Mount func(source, target, fstype string, options []string) error
	// Unmount unmounts lazily; nil is storage/mount's Detach. The target is a path below /proc/self/fd whose last element
	// must not be followed.
	Unmount func(target string) error
}

// Manager keeps the volumes of one sandbox. Its methods may be called concurrently, and those for different volumes do
// not wait for each other.
type Manager struct {
	config Config
	root   *os.File
	pools  *pools

	mu      sync.Mutex
	volumes map[string]*volume // by path below the run folder
	closed  bool
}

// volume is a volume that exists or is being made or unmade.
type volume struct {
	rel  string
	lock chan struct{} // holds one element while someone makes, changes or unmakes the volume

	// With lock held.
	plan    plan
	mounted bool
	broken  bool // half unmade, because that failed
	gone    bool // unmade, and no longer the Manager's

	// With the Manager's mu held.
	ready     bool
	transient bool
	owners    map[string]bool
}

// New returns a Manager without volumes.
func New(config Config) (*Manager, error) {
	if !path.IsAbs(config.RunDir) || path.Clean(config.RunDir) != config.RunDir || config.RunDir == "/" {
		return nil, fmt.Errorf("volumes: run folder %q is not an absolute, clean path", config.RunDir)
	}
	if config.SysDir == "" {
		config.SysDir = "/sys"
	}
	if config.Mount == nil {
		config.Mount = mount.Mount
	}
	if config.Unmount == nil {
		config.Unmount = mount.Detach
	}
	if err := os.MkdirAll(config.RunDir, 0o755); err != nil {
		return nil, fmt.Errorf("volumes: %w", err)
	}
	root, err := openRoot(config.RunDir)
	if err != nil {
		return nil, fmt.Errorf("volumes: %w", err)
	}
	return &Manager{config: config, root: root, pools: newPools(config.SysDir), volumes: map[string]*volume{}}, nil
}

// Add makes a volume and counts owner among its users. If it exists (with the same driver and file system) only the
// latter happens, and its options and group stay. If it fails, it leaves nothing behind, or says what in the error.
func (m *Manager) Add(ctx context.Context, owner string, s Storage) error {
	p, err := newPlan(m.config.RunDir, s)
	if err != nil {
		return fmt.Errorf("add volume %.200q: %w", s.MountPoint, err)
	}
	v, err := m.acquire(ctx, p.rel, true)
	if err != nil {
		return fmt.Errorf("add volume %.200q: %w", s.MountPoint, err)
	}
	defer v.release()
	if v.broken {
		if err := m.unbuild(v); err != nil {
			return fmt.Errorf("add volume %.200q: end the former one: %w", s.MountPoint, err)
		}
		v.broken, v.plan = false, plan{}
	}
	switch made := v.plan.driver != ""; {
	case made && (v.plan.driver != p.driver || v.plan.fstype != p.fstype):
		return fmt.Errorf("add volume %.200q: %w: %s %s is %s %s already", s.MountPoint, ErrInvalid, p.driver, p.fstype, v.plan.driver, v.plan.fstype)
	case !made:
		if err := m.build(ctx, v, p); err != nil {
			m.drop(v)
			return fmt.Errorf("add volume %.200q: %w", s.MountPoint, err)
		}
		v.plan = p
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	v.transient = s.Transient && (v.transient || !v.ready)
	v.ready = true
	v.owners[owner] = true
	return nil
}

// Release takes owner from the users of all volumes, and ends those transient ones that have no user left. If one
// cannot be ended, owner stays its user, so that Release may be tried again. An owner of nothing is no error.
func (m *Manager) Release(ctx context.Context, owner string) error {
	var errs []error
	for _, v := range m.owned(owner) {
		if err := m.releaseOne(ctx, v, owner); err != nil {
			errs = append(errs, fmt.Errorf("release volume %s: %w", path.Join(m.config.RunDir, v.rel), err))
		}
	}
	return errors.Join(errs...)
}

// owned lists the volumes that owner uses.
func (m *Manager) owned(owner string) []*volume {
	m.mu.Lock()
	defer m.mu.Unlock()
	var owned []*volume
	for _, v := range m.volumes {
		if v.owners[owner] {
			owned = append(owned, v)
		}
	}
	return owned
}

func (m *Manager) releaseOne(ctx context.Context, v *volume, owner string) error {
	if err := v.acquire(ctx); err != nil {
		return err
	}
	defer v.release()
	m.mu.Lock()
	last := v.transient && v.owners[owner] && len(v.owners) == 1
	if !last {
		delete(v.owners, owner)
	}
	m.mu.Unlock()
	if !last || v.gone {
		return nil
	}
	return m.end(v)
}

// Update changes a tmpfs that was added: it is mounted again with the options given, but fsgid. The flags that it has
// stay, unless an option says otherwise.
func (m *Manager) Update(ctx context.Context, s Storage) error {
	if err := m.update(ctx, s); err != nil {
		return fmt.Errorf("update volume %.200q: %w", s.MountPoint, err)
	}
	return nil
}

func (m *Manager) update(ctx context.Context, s Storage) error {
	if s.Driver != DriverEphemeral {
		return fmt.Errorf("%w: only %s volumes can be updated, not %.100q", ErrUnsupported, DriverEphemeral, s.Driver)
	}
	p, err := newUpdate(m.config.RunDir, s)
	if err != nil || len(p.flags)+len(p.data) == 0 {
		return err
	}
	v, err := m.acquire(ctx, p.rel, false)
	if err != nil {
		return err
	}
	defer v.release()
	if v.broken || v.plan.fstype != p.fstype {
		return fmt.Errorf("%w: not a %s", ErrInvalid, p.fstype)
	}
	dir, err := m.open(p.rel)
	if err != nil {
		return err
	}
	defer dir.Close()
	flags := slices.Concat(v.plan.flags, p.flags)
	options := slices.Concat([]string{"remount"}, flags, p.data)
	if err := m.config.Mount(p.fstype, procPath(dir), p.fstype, options); err != nil {
		return err
	}
	v.plan.flags = compact(flags)
	return nil
}

// Close ends all volumes, and none can be added from then on. It reports those that it could not end, and may be called
// again for them.
func (m *Manager) Close(ctx context.Context) error {
	m.mu.Lock()
	m.closed = true
	var all []*volume
	for _, v := range m.volumes {
		all = append(all, v)
	}
	m.mu.Unlock()
	var errs []error
	for _, v := range all {
		if err := m.closeOne(ctx, v); err != nil {
			errs = append(errs, fmt.Errorf("end volume %s: %w", path.Join(m.config.RunDir, v.rel), err))
		}
	}
	if len(errs) == 0 {
		m.root.Close()
	}
	return errors.Join(errs...)
}

func (m *Manager) closeOne(ctx context.Context, v *volume) error {
	if err := v.acquire(ctx); err != nil {
		return err
	}
	defer v.release()
	if v.gone {
		return nil
	}
	return m.end(v)
}

// end unmakes a volume that is locked, and forgets it.
func (m *Manager) end(v *volume) error {
	m.mu.Lock()
	v.ready = false // a container must not get what is half gone
	m.mu.Unlock()
	if err := m.unbuild(v); err != nil {
		v.broken = true
		return err
	}
	m.drop(v)
	return nil
}

// drop forgets a volume that is locked and does not exist.
func (m *Manager) drop(v *volume) {
	m.mu.Lock()
	defer m.mu.Unlock()
	v.gone = true
	delete(m.volumes, v.rel)
}

// acquire locks the volume at rel, and makes the entry of one that is not there if create is set.
func (m *Manager) acquire(ctx context.Context, rel string, create bool) (*volume, error) {
	for {
		v, err := m.entry(rel, create)
		if err != nil {
			return nil, err
		}
		if err := v.acquire(ctx); err != nil {
			return nil, err
		}
		if !v.gone { // else it ended while we waited
			return v, nil
		}
		v.release()
	}
}

func (m *Manager) entry(rel string, create bool) (*volume, error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	v := m.volumes[rel]
	switch {
	case m.closed:
		return nil, errors.New("the sandbox's volumes are closed")
	case v != nil:
		return v, nil
	case !create:
		return nil, fmt.Errorf("%w: no such volume", ErrInvalid)
	case len(m.volumes) >= maxVolumes:
		return nil, fmt.Errorf("%d volumes are there already", maxVolumes)
	}
	v = &volume{rel: rel, lock: make(chan struct{}, 1), owners: map[string]bool{}}
	m.volumes[rel] = v
	return v, nil
}

func (v *volume) acquire(ctx context.Context) error {
	select { // a new volume is never given up by who made it, even if ctx has ended
	case v.lock <- struct{}{}:
		return nil
	default:
	}
	select {
	case v.lock <- struct{}{}:
		return nil
	case <-ctx.Done():
		return ctx.Err()
	}
}

func (v *volume) release() { <-v.lock }
