// SPDX-License-Identifier: Apache-2.0
// Copyright The Cloister Authors.

package agent

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"os"
	"path/filepath"
	"slices"

	specs "github.com/opencontainers/runtime-spec/specs-go"

	"github.com/cloister-cc/cloister/agent/oci"
)

// CreateContainer makes the container's root file system and bundle and starts its init process up to the barrier.
// On error everything is taken back; if that fails, the sandbox is tainted.
func (s *Sandbox) CreateContainer(ctx context.Context, cfg ContainerConfig) error {
	if err := checkID(cfg.ID); err != nil {
		return fmt.Errorf("create container: %w", err)
	}
	pull, err := parsePull(cfg.Storages)
	if err != nil {
		return fmt.Errorf("create container: %w", err)
	}
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	c := s.newContainer(cfg.ID, cancel)
	result, err := s.admit(c, cfg)
	if err != nil {
		return fmt.Errorf("create container: %w", err)
	}
	defer close(c.created)

	var u undo
	init, err := s.build(ctx, &u, c, result, pull)
	if err == nil {
		c.mu.Lock()
		c.init, c.state = init, containerCreated
		c.mu.Unlock()
		c.log.Info("container created", "pid", init.child.PID())
		return nil
	}
	undoErr := u.run(ctx)
	s.mu.Lock()
	s.taint(undoErr)
	delete(s.containers, c.id)
	s.mu.Unlock()
	return errors.Join(fmt.Errorf("create container: %w", err), undoErr)
}

// admit checks the spec as far as it can be without side effects, and takes the container's id.
func (s *Sandbox) admit(c *container, cfg ContainerConfig) (*oci.Result, error) {
	if cfg.Spec == nil {
		return nil, fmt.Errorf("%w: no spec", ErrInvalidArgument)
	}
	if cfg.Spec.Process != nil && cfg.Spec.Process.Terminal {
		return nil, fmt.Errorf("a terminal: %w", ErrUnsupported)
	}
	result, err := oci.Convert(cfg.Spec, oci.Options{ID: c.id, RunDir: s.cfg.RunDir, Rootfs: c.rootfs})
	if err != nil {
		return nil, fmt.Errorf("%w: %w", ErrInvalidArgument, err)
	}
	linux := result.Spec.Linux
	linux.Namespaces, err = s.reserve(c, linux.CgroupsPath, cfg.SandboxPIDNS)
	return result, err
}

// build does the work of CreateContainer.
func (s *Sandbox) build(ctx context.Context, u *undo, c *container, result *oci.Result, pull pull) (*process, error) {
	if err := makeBundle(u, c); err != nil {
		return nil, fmt.Errorf("make bundle: %w", err)
	}
	if err := s.mountRootfs(ctx, u, c, result.Spec, pull); err != nil {
		return nil, fmt.Errorf("mount root file system: %w", err)
	}
	if err := s.openSecrets(ctx, result.Spec.Process); err != nil {
		return nil, err
	}
	c.spec = result.Spec.Process
	// They belong to the network namespace of the whole sandbox, so that nothing takes them back.
	for _, key := range slices.Sorted(maps.Keys(result.NetSysctls)) {
		if err := s.cfg.Kernel.SetSysctl(key, result.NetSysctls[key]); err != nil {
			return nil, fmt.Errorf("set sysctl %s: %w", key, err)
		}
	}
	if err := writeConfig(u, c, result.Spec); err != nil {
		return nil, fmt.Errorf("write config.json: %w", err)
	}
	u.add("runtime create", func(ctx context.Context) error { return s.cfg.Runtime.Delete(ctx, c.id) })
	init, err := startProcess(s.cfg.Reaper, func(stdio Stdio) (int, error) {
		return s.cfg.Runtime.Create(ctx, c.id, c.bundle, stdio)
	})
	if err != nil {
		return nil, err
	}
	u.add("start of init process", func(ctx context.Context) error {
		defer init.close()
		return init.remove(ctx)
	})
	if err := ctx.Err(); err != nil { // a removal that came meanwhile
		return nil, err
	}
	return init, s.keepPIDNamespace(init)
}

// makeBundle makes the container's folders. To undo it removes no more than them, so that nothing is deleted that
// might still be mounted there.
func makeBundle(u *undo, c *container) error {
	for _, dir := range []string{c.bundle, c.rootfs} {
		if err := os.Mkdir(dir, 0o755); err != nil {
			return err
		}
		u.add("folder", func(context.Context) error { return os.Remove(dir) })
	}
	return nil
}

// mountRootfs mounts the image. The pause container runs what the guest has built in, whatever the spec says.
func (s *Sandbox) mountRootfs(ctx context.Context, u *undo, c *container, spec *specs.Spec, pull pull) error {
	if pull.pause {
		p, err := s.cfg.Images.MountPause(ctx, c.id, c.rootfs)
		if err != nil {
			return err
		}
		if spec.Process, err = oci.ConvertProcess(p); err != nil {
			return errors.Join(err, s.cfg.Images.Unmount(context.WithoutCancel(ctx), c.id))
		}
	} else if err := s.cfg.Images.Mount(ctx, c.id, pull.reference, c.rootfs); err != nil {
		return err
	}
	u.add("mount of root file system", func(ctx context.Context) error { return s.cfg.Images.Unmount(ctx, c.id) })
	return nil
}

func (c *container) configPath() string { return filepath.Join(c.bundle, "config.json") }

func writeConfig(u *undo, c *container, spec *specs.Spec) error {
	data, err := json.Marshal(spec)
	if err != nil {
		return err
	}
	u.add("config.json", func(context.Context) error { return removeFile(c.configPath()) })
	return os.WriteFile(c.configPath(), data, 0o600)
}

// removeFile removes a file or empty folder that may be gone already.
func removeFile(path string) error {
	if err := os.Remove(path); err != nil && !errors.Is(err, os.ErrNotExist) {
		return err
	}
	return nil
}

// keepPIDNamespace holds the PID namespace of the sandbox's first container open, for those that share it.
func (s *Sandbox) keepPIDNamespace(init *process) error {
	s.mu.Lock()
	have := s.pid != nil
	s.mu.Unlock()
	if have {
		return nil
	}
	ns, err := os.Open(fmt.Sprintf("/proc/%d/ns/pid", init.child.PID()))
	if err != nil {
		return fmt.Errorf("open PID namespace: %w", err)
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.pid != nil {
		return ns.Close()
	}
	s.pid = ns
	return nil
}
