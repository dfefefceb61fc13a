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
	"strconv"

	specs "github.com/opencontainers/runtime-spec/specs-go"

	"github.com/cloister-cc/cloister/agent/oci"
)

// CreateContainer makes the container's root file system and bundle and starts its init process up to the barrier.
// On error everything is taken back; if that fails, the sandbox is tainted.
func (s *Sandbox) CreateContainer(ctx context.Context, cfg ContainerConfig) error {
	if err := checkID(cfg.ID); err != nil {
		return fmt.Errorf("create container: %w", err)
	}
	pull, volumes, err := parsePull(cfg.Storages)
	if err != nil {
		return fmt.Errorf("create container: %w", err)
	}
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	c := s.newContainer(cfg.ID, cancel)
	result, err := s.admit(c, cfg, volumes)
	if err != nil {
		return fmt.Errorf("create container: %w", err)
	}
	defer close(c.created)

	var u undo
	init, err := s.build(ctx, &u, c, plan{result, cfg.Spec.Annotations, pull, volumes})
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
func (s *Sandbox) admit(c *container, cfg ContainerConfig, volumes []Storage) (*oci.Result, error) {
	if cfg.Spec == nil {
		return nil, fmt.Errorf("%w: no spec", ErrInvalidArgument)
	}
	s.mu.Lock()
	o := s.ociOptions(c)
	o.Hooks, o.Volumes = s.hooks, slices.Clone(s.volumes)
	s.mu.Unlock()
	for _, v := range volumes {
		o.Volumes = append(o.Volumes, v.MountPoint)
	}
	result, err := oci.Convert(cfg.Spec, o)
	if err != nil {
		return nil, fmt.Errorf("%w: %w", ErrInvalidArgument, err)
	}
	c.logNotes(result.Notes)
	c.terminationLog = terminationLog(cfg.Spec)
	return result, s.reserve(c, result, cfg.SandboxPIDNS)
}

// plan is what is to become of a container.
type plan struct {
	*oci.Result
	annotations map[string]string
	root        pull
	volumes     []Storage
}

// build does the work of CreateContainer.
func (s *Sandbox) build(ctx context.Context, u *undo, c *container, p plan) (*process, error) {
	if err := makeBundle(u, c); err != nil {
		return nil, fmt.Errorf("make bundle: %w", err)
	}
	if err := s.addVolumes(ctx, u, c.id, p.volumes); err != nil {
		return nil, err
	}
	if err := s.mountRootfs(ctx, u, c, p.Spec, p.root); err != nil {
		return nil, fmt.Errorf("mount root file system: %w", err)
	}
	if err := resolveUser(c.rootfs, &p.Spec.Process.User); err != nil {
		return nil, err
	}
	if err := s.bindSources(u, c, p.Result); err != nil {
		return nil, err
	}
	if err := s.complete(ctx, p); err != nil {
		return nil, err
	}
	c.spec = p.Spec.Process
	if err := writeConfig(u, c, p.Spec); err != nil {
		return nil, fmt.Errorf("write config.json: %w", err)
	}
	init, err := s.startInit(ctx, u, c)
	if err != nil {
		return nil, err
	}
	if err := ctx.Err(); err != nil { // a removal that came meanwhile
		return nil, err
	}
	s.watchOOM(u, c)
	c.undo = u.kept()
	return init, s.keepPIDNamespace(init)
}

// complete adds to a container's spec what the guest keeps for it.
func (s *Sandbox) complete(ctx context.Context, p plan) error {
	if s.cfg.Devices != nil && !p.root.pause {
		if err := s.cfg.Devices(ctx, p.Spec, p.annotations); err != nil {
			return fmt.Errorf("add devices: %w", err)
		}
		oci.ArrangeMounts(p.Spec.Mounts)
	}
	if err := s.openSecrets(ctx, p.Spec.Process); err != nil {
		return err
	}
	// They belong to the network namespace of the whole sandbox, so that nothing takes them back.
	for _, key := range slices.Sorted(maps.Keys(p.NetSysctls)) {
		if err := s.cfg.Kernel.SetSysctl(key, p.NetSysctls[key]); err != nil {
			return fmt.Errorf("set sysctl %s: %w", key, err)
		}
	}
	return nil
}

// startInit has the runtime create the container. A runtime that fails half-way may leave processes behind.
func (s *Sandbox) startInit(ctx context.Context, u *undo, c *container) (*process, error) {
	u.add("runtime create", func(ctx context.Context) error {
		s.clearLeftovers(c)
		if s.cfg.Cgroups == nil {
			return s.cfg.Runtime.Delete(ctx, c.id)
		}
		return errors.Join(s.cfg.Cgroups.Kill(c.cgroup), s.cfg.Runtime.Delete(ctx, c.id), s.cfg.Cgroups.Remove(ctx, c.cgroup))
	})
	init, err := s.launch(c.spec, func(stdio Stdio) (Started, error) {
		return s.cfg.Runtime.Create(ctx, c.id, c.bundle, stdio)
	}).process()
	if err != nil {
		return nil, err
	}
	u.add("start of init process", func(ctx context.Context) error {
		defer init.close()
		return init.remove(ctx)
	})
	return init, nil
}

// bindSources mounts what the container gets of the files from the host below its bundle, and has the runtime take it
// from there. The host can put a link into the place of a file at any time, and the runtime would follow it to the
// guest's own files.
func (s *Sandbox) bindSources(u *undo, c *container, r *oci.Result) error {
	if len(r.Binds) == 0 {
		return nil
	}
	if s.cfg.Share == nil {
		return fmt.Errorf("mount %s: %w", r.Binds[0].Source, ErrUnsupported)
	}
	dir := filepath.Join(c.bundle, "mounts")
	if err := os.Mkdir(dir, 0o700); err != nil {
		return err
	}
	u.keep("folder of mounts", func(context.Context) error { return removeFile(dir) })
	for i, b := range r.Binds {
		target := filepath.Join(dir, strconv.Itoa(i))
		if err := s.bindSource(u, b.Source, target); err != nil {
			return fmt.Errorf("mount %s: %w", b.Source, err)
		}
		r.Spec.Mounts[b.Mount].Source = target
	}
	return nil
}

func (s *Sandbox) bindSource(u *undo, source, target string) error {
	f, err := s.cfg.Share.OpenBeneath(source)
	if err != nil {
		return err
	}
	defer f.Close() // a mount holds what it needs
	info, err := f.Stat()
	if err != nil {
		return err
	}
	u.keep("mount point", func(context.Context) error { return removeFile(target) })
	if info.IsDir() {
		err = os.Mkdir(target, 0o700)
	} else {
		err = os.WriteFile(target, nil, 0o600)
	}
	if err != nil {
		return err
	}
	if err := s.cfg.Kernel.Bind(f, target); err != nil {
		return err
	}
	u.keep("mount", func(context.Context) error { return s.cfg.Kernel.Unmount(target) })
	return nil
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
	} else {
		digest, err := s.cfg.Images.Mount(ctx, c.id, pull.reference, c.rootfs)
		if err != nil {
			return err
		}
		s.cfg.Log.Info("image is mounted", "container", c.id, "reference", pull.reference, "digest", digest)
	}
	u.add("mount of root file system", func(ctx context.Context) error { return s.cfg.Images.Unmount(ctx, c.id) })
	return checkRootfs(c.rootfs)
}

// checkRootfs refuses an image in which /dev, /proc or /sys is anything but a folder: the runtime would follow a link there
// to a folder of the guest, and make its device nodes in it.
func checkRootfs(rootfs string) error {
	for _, name := range []string{"dev", "proc", "sys"} {
		info, err := os.Lstat(filepath.Join(rootfs, name))
		if errors.Is(err, os.ErrNotExist) { // the runtime makes it
			continue
		}
		if err != nil {
			return err
		}
		if !info.IsDir() {
			return fmt.Errorf("%w: /%s of the image is no folder", ErrInvalidArgument, name)
		}
	}
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
	if err := init.child.Signal(0); err != nil { // its number, and so the namespace, may be another process's by now
		return errors.Join(ns.Close(), fmt.Errorf("keep PID namespace: %w", err))
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.pid != nil {
		return ns.Close()
	}
	s.pid = ns
	return nil
}
