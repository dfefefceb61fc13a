// SPDX-License-Identifier: Apache-2.0
// Copyright The Cloister Authors.

package oci

import (
	"errors"
	"fmt"
	"path"
	"regexp"
	"slices"
	"strings"

	specs "github.com/opencontainers/runtime-spec/specs-go"
)

// maxMounts bounds the number of mounts of a container.
const maxMounts = 512

// Folders below RunDir that hold what may be mounted into a container: files that the shim copied, and what the sandbox
// shares. Nothing else there may be, and nothing that lies in a folder where containers write: not in a root file
// system, not in the shared memory. A symbolic link there could lead the mount to any file of the guest.
const (
	// SharedDir is for files from the host.
	SharedDir = "shared/containers"
	// SandboxDir is for files that the sandbox's containers share.
	SandboxDir = "sandbox"
)

// resolvConf is the sandbox's resolv.conf in SandboxDir. It is also what the agent resolves names by.
const resolvConf = "resolv.conf"

// sandboxFiles are what may be mounted of SandboxDir, by themselves and nothing below them.
var sandboxFiles = []string{"shm", resolvConf}

// filesystems are the types that may be mounted, with the options that each takes besides flags. Others could reach
// devices or files of the guest.
var filesystems = map[string]*regexp.Regexp{
	"proc":   regexp.MustCompile(`^(hidepid|subset)=[a-z0-9]+$`),
	"sysfs":  nil,
	"cgroup": nil, "cgroup2": nil,
	"mqueue": nil,
	"tmpfs":  regexp.MustCompile(`^(size|mode|uid|gid|nr_inodes|nr_blocks)=[0-9a-zA-Z%]+$`),
	"devpts": regexp.MustCompile(`^(newinstance|(ptmxmode|mode|uid|gid)=[0-9]+)$`),
}

// places are where the file systems must be mounted that show the guest itself: by these paths they are protected, see
// guarded.
var places = map[string]string{"proc": "/proc", "sysfs": "/sys"}

// flags are the mount options that every type takes. Propagation towards the guest (shared) is not among them.
var flags = []string{
	"defaults", "ro", "rro", "rw", "nosuid", "suid", "nodev", "dev", "noexec", "exec", "sync", "async", "dirsync",
	"atime", "noatime", "diratime", "nodiratime", "relatime", "norelatime", "strictatime", "nostrictatime", "nosymfollow",
	"private", "rprivate", "slave", "rslave",
}

// defaultMounts are for a spec without mounts.
func defaultMounts() []specs.Mount {
	return []specs.Mount{
		{Destination: "/proc", Type: "proc", Source: "proc", Options: []string{"nosuid", "noexec", "nodev"}},
		{Destination: "/dev", Type: "tmpfs", Source: "tmpfs", Options: []string{"nosuid", "strictatime", "mode=755", "size=65536k"}},
		{Destination: "/dev/pts", Type: "devpts", Source: "devpts", Options: []string{"nosuid", "noexec", "newinstance", "ptmxmode=0666", "mode=0620", "gid=5"}},
		{Destination: "/dev/shm", Type: "tmpfs", Source: "tmpfs", Options: []string{"nosuid", "noexec", "nodev", "mode=1777", "size=65536k"}},
		{Destination: "/dev/mqueue", Type: "mqueue", Source: "mqueue", Options: []string{"nosuid", "noexec", "nodev"}},
		{Destination: "/sys", Type: "sysfs", Source: "sysfs", Options: []string{"nosuid", "noexec", "nodev", "ro"}},
	}
}

func convertMounts(in []specs.Mount, runDir string) ([]specs.Mount, error) {
	if len(in) == 0 {
		return defaultMounts(), nil
	}
	if len(in) > maxMounts {
		return nil, fmt.Errorf("container spec: %d mounts, at most %d are offered", len(in), maxMounts)
	}
	out := make([]specs.Mount, 0, len(in))
	for _, m := range in {
		converted, err := convertMount(m, runDir)
		if err != nil {
			return nil, fmt.Errorf("container spec: mount on %q: %w", m.Destination, err)
		}
		out = append(out, converted)
	}
	return out, nil
}

func convertMount(m specs.Mount, runDir string) (specs.Mount, error) {
	none := specs.Mount{}
	destination, err := cleanPath(m.Destination)
	if err != nil {
		return none, err
	}
	if destination == "/" {
		return none, errors.New("the root file system cannot be mounted over")
	}
	if len(m.UIDMappings)+len(m.GIDMappings) > 0 {
		return none, errors.New("id mappings are not offered")
	}
	m.Destination = destination
	bind := m.Type == "bind" || slices.Contains(m.Options, "bind") || slices.Contains(m.Options, "rbind")
	if bind {
		return convertBind(m, runDir)
	}
	data, ok := filesystems[m.Type]
	if !ok {
		return none, fmt.Errorf("file system type %q is not offered", m.Type)
	}
	for _, o := range m.Options {
		if !slices.Contains(flags, o) && (data == nil || !data.MatchString(o)) {
			return none, fmt.Errorf("option %q is not offered for %s", o, m.Type)
		}
	}
	if err := checkPlace(m); err != nil {
		return none, err
	}
	return specs.Mount{Destination: m.Destination, Type: m.Type, Source: m.Type, Options: slices.Clone(m.Options)}, nil
}

// checkPlace reports an error if a mount would show the guest where a container could change it.
func checkPlace(m specs.Mount) error {
	if place, ok := places[m.Type]; ok && m.Destination != place {
		return fmt.Errorf("a file system of type %s is offered on %s only", m.Type, place)
	}
	if m.Type == "sysfs" && (!slices.Contains(m.Options, "ro") || slices.Contains(m.Options, "rw")) {
		return errors.New("sysfs is offered read-only only: give the option ro")
	}
	return nil
}

func convertBind(m specs.Mount, runDir string) (specs.Mount, error) {
	none := specs.Mount{}
	if m.Type != "bind" && m.Type != "none" && m.Type != "" {
		return none, fmt.Errorf("a bind mount of type %q is a contradiction", m.Type)
	}
	if err := checkPath(m.Source); err != nil {
		return none, fmt.Errorf("source: %w", err)
	}
	shared, sandbox := path.Join(runDir, SharedDir)+"/", path.Join(runDir, SandboxDir)+"/"
	file, inSandbox := strings.CutPrefix(m.Source, sandbox)
	if !strings.HasPrefix(m.Source, shared) && (!inSandbox || !slices.Contains(sandboxFiles, file)) {
		return none, fmt.Errorf("source %q is neither below %s nor one of %s in %s", m.Source, shared, strings.Join(sandboxFiles, ", "), sandbox)
	}
	options := []string{}
	for _, o := range m.Options {
		if o != "bind" && o != "rbind" && !slices.Contains(flags, o) {
			return none, fmt.Errorf("option %q is not offered for a bind mount", o)
		}
		options = append(options, o)
	}
	if !slices.Contains(options, "bind") && !slices.Contains(options, "rbind") {
		options = append(options, "bind")
	}
	if inSandbox && file == resolvConf { // a container that wrote to it would redirect the agent's pulls
		options = append(slices.DeleteFunc(options, func(o string) bool { return o == "rw" || o == "ro" }), "ro")
	}
	return specs.Mount{Destination: m.Destination, Type: "bind", Source: m.Source, Options: options}, nil
}
