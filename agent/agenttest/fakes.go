// SPDX-License-Identifier: Apache-2.0
// Copyright The Cloister Authors.

package agenttest

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"os"
	"sync"

	specs "github.com/opencontainers/runtime-spec/specs-go"

	"github.com/cloister-cc/cloister/agent"
	"github.com/cloister-cc/cloister/agent/netdev"
)

// PauseReference is what Images notes as the reference of a container that runs the pause image.
const PauseReference = "(pause)"

// Digest is what Images gives as the digest of every image.
const Digest = "sha256:e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855"

// Images mounts nothing: it checks its arguments as the real one must and keeps account.
type Images struct {
	// Hook is called before each operation.
	Hook Hook

	mu      sync.Mutex
	mounted map[string]string
}

// Mount implements agent.Images.
func (i *Images) Mount(ctx context.Context, containerID, reference, target string) (digest string, err error) {
	if err := i.Hook.call("Mount", containerID); err != nil {
		return "", err
	}
	if err := ctx.Err(); err != nil {
		return "", err
	}
	entries, err := os.ReadDir(target)
	if err != nil {
		return "", err
	}
	if len(entries) != 0 {
		return "", fmt.Errorf("%s is not empty", target)
	}
	i.mu.Lock()
	defer i.mu.Unlock()
	if _, ok := i.mounted[containerID]; ok {
		return "", errors.New("mounted twice")
	}
	if i.mounted == nil {
		i.mounted = make(map[string]string)
	}
	i.mounted[containerID] = reference
	return Digest, nil
}

// MountPause implements agent.Images; its process sleeps.
func (i *Images) MountPause(ctx context.Context, containerID, target string) (*specs.Process, error) {
	if _, err := i.Mount(ctx, containerID, PauseReference, target); err != nil {
		return nil, err
	}
	return &specs.Process{Args: []string{"sleep", "1000000"}, Cwd: "/"}, nil
}

// Unmount implements agent.Images.
func (i *Images) Unmount(_ context.Context, containerID string) error {
	if err := i.Hook.call("Unmount", containerID); err != nil {
		return err
	}
	i.mu.Lock()
	defer i.mu.Unlock()
	delete(i.mounted, containerID)
	return nil
}

// Mounted returns the references by container id.
func (i *Images) Mounted() map[string]string {
	i.mu.Lock()
	defer i.mu.Unlock()
	return maps.Clone(i.mounted)
}

// Kernel changes nothing and keeps account. Its namespaces are those of the test.
type Kernel struct {
	// Hook is called before each operation.
	Hook Hook

	mu      sync.Mutex
	mounts  map[string]string
	sysctls map[string]string
}

// Namespaces implements agent.Kernel.
func (k *Kernel) Namespaces(hostname string) (ipc, uts *os.File, err error) {
	if err := k.Hook.call("Namespaces", hostname); err != nil {
		return nil, nil, err
	}
	if ipc, err = os.Open("/proc/self/ns/ipc"); err != nil {
		return nil, nil, err
	}
	if uts, err = os.Open("/proc/self/ns/uts"); err != nil {
		_ = ipc.Close()
		return nil, nil, err
	}
	return ipc, uts, nil
}

// Mount implements agent.Kernel.
func (k *Kernel) Mount(source, target, fstype, _ string) error {
	if err := k.Hook.call("Mount", target); err != nil {
		return err
	}
	if _, err := os.Stat(target); err != nil {
		return err
	}
	k.mu.Lock()
	defer k.mu.Unlock()
	if k.mounts == nil {
		k.mounts = make(map[string]string)
	}
	k.mounts[target] = fstype + ":" + source
	return nil
}

// Bind implements agent.Kernel.
func (k *Kernel) Bind(source *os.File, target string) error {
	return k.Mount(source.Name(), target, "bind", "")
}

// Unmount implements agent.Kernel.
func (k *Kernel) Unmount(target string) error {
	if err := k.Hook.call("Unmount", target); err != nil {
		return err
	}
	k.mu.Lock()
	defer k.mu.Unlock()
	delete(k.mounts, target)
	return nil
}

// SetSysctl implements agent.Kernel.
func (k *Kernel) SetSysctl(key, value string) error {
	if err := k.Hook.call("SetSysctl", key); err != nil {
		return err
	}
	k.mu.Lock()
	defer k.mu.Unlock()
	if k.sysctls == nil {
		k.sysctls = make(map[string]string)
	}
	k.sysctls[key] = value
	return nil
}

// Mounts returns "fstype:source" by target.
func (k *Kernel) Mounts() map[string]string {
	k.mu.Lock()
	defer k.mu.Unlock()
	return maps.Clone(k.mounts)
}

// Sysctls returns the kernel parameters that were set.
func (k *Kernel) Sysctls() map[string]string {
	k.mu.Lock()
	defer k.mu.Unlock()
	return maps.Clone(k.sysctls)
}

// Machine is a guest of which nothing is known and in which nothing is changed.
type Machine struct{}

// SetTime does nothing.
func (Machine) SetTime(_, _ int64) error { return nil }

// Reseed does nothing.
func (Machine) Reseed([]byte) error { return nil }

// Details describes a guest that pulls images.
func (Machine) Details() agent.GuestDetails {
	return agent.GuestDetails{Seccomp: true, StorageDrivers: []string{agent.DriverImageGuestPull}}
}

// Metrics returns none.
func (Machine) Metrics() (string, error) { return "", nil }

// Network keeps account of what was asked.
type Network struct {
	// Hook is called before each operation with the hardware address, or "" for routes.
	Hook Hook

	mu         sync.Mutex
	interfaces []netdev.Interface
	routes     []netdev.Route
}

// UpdateInterface implements agent.Network.
func (n *Network) UpdateInterface(_ context.Context, want netdev.Interface) error {
	if err := n.Hook.call("UpdateInterface", want.HWAddr); err != nil {
		return err
	}
	n.mu.Lock()
	defer n.mu.Unlock()
	n.interfaces = append(n.interfaces, want)
	return nil
}

// UpdateRoutes implements agent.Network.
func (n *Network) UpdateRoutes(_ context.Context, want []netdev.Route) ([]netdev.Route, error) {
	if err := n.Hook.call("UpdateRoutes", ""); err != nil {
		return nil, err
	}
	n.mu.Lock()
	defer n.mu.Unlock()
	n.routes = append(n.routes, want...)
	return append([]netdev.Route(nil), n.routes...), nil
}
