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
	"cgroup": cgroupOption, "cgroup2": cgroupOption,
	"mqueue": nil,
	"tmpfs":  regexp.MustCompile(`^(size|mode|uid|gid|nr_inodes|nr_blocks)=[0-9a-zA-Z%]+$`),
	"devpts": regexp.MustCompile(`^(newinstance|(ptmxmode|mode|uid|gid)=[0-9]+)$`),
}

// cgroupOption are options of the whole hierarchy, which no container changes: they are taken and left out.
var cgroupOption = regexp.MustCompile(`^(nsdelegate|memory_recursiveprot|memory_localevents|favordynmods)$`)

// places are where the file systems must be mounted that show the guest itself: by these paths they are protected, see
// guarded.
var places = map[string]string{"proc": "/proc", "sysfs": "/sys"}

// flags are the mount options that every type takes. Propagation towards the guest is not among them, see shared.
var flags = []string{
	"defaults", "ro", "rro", "rw", "nosuid", "suid", "nodev", "dev", "noexec", "exec", "sync", "async", "dirsync",
	"atime", "noatime", "diratime", "nodiratime", "relatime", "norelatime", "strictatime", "nostrictatime", "nosymfollow",
	"private", "rprivate", "slave", "rslave",
}

// shared are the options of a bind mount by which what a container mounts shows up in the guest.
var shared = []string{"shared", "rshared"}

// guestTrees are the folders of the guest that a privileged container may have, with what is below them.
var guestTrees = []string{"/dev", "/proc", "/sys"}

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

// convertMounts returns the mounts, and which of them have their source among what the host copied.
func convertMounts(in []specs.Mount, o Options, linux *specs.Linux) ([]specs.Mount, []Bind, error) {
	if len(in) > maxMounts {
		return nil, nil, fmt.Errorf("container spec: %d mounts, at most %d are offered", len(in), maxMounts)
	}
	out := make([]specs.Mount, 0, len(in))
	for _, m := range in {
		converted, err := convertMount(m, o)
		if err == nil {
			err = checkDev(converted, o.Privileged)
		}
		if err != nil {
			return nil, nil, fmt.Errorf("container spec: mount on %q: %w", m.Destination, err)
		}
		out = append(out, converted)
	}
	if len(in) == 0 {
		out = defaultMounts()
	}
	out = ownDev(out)
	ArrangeMounts(out)
	var binds []Bind
	for i, m := range out {
		if m.Type == "bind" && strings.HasPrefix(m.Source, path.Join(o.RunDir, SharedDir)+"/") {
			binds = append(binds, Bind{Mount: i, Source: m.Source})
		}
	}
	if len(linux.UIDMappings) > 0 {
		fitUserNamespace(out, linux.GIDMappings, o.Privileged)
	}
	return out, binds, nil
}

func convertMount(m specs.Mount, o Options) (specs.Mount, error) {
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
		return convertBind(m, o)
	}
	data, ok := filesystems[m.Type]
	if !ok {
		return none, fmt.Errorf("file system type %q is not offered", m.Type)
	}
	var options []string
	for _, option := range m.Options {
		ours := slices.Contains(flags, option)
		if !ours && (data == nil || !data.MatchString(option)) {
			return none, fmt.Errorf("option %q is not offered for %s", option, m.Type)
		}
		if ours || data != cgroupOption {
			options = append(options, option)
		}
	}
	if err := checkPlace(m, o.Privileged); err != nil {
		return none, err
	}
	return specs.Mount{Destination: m.Destination, Type: m.Type, Source: m.Type, Options: options}, nil
}

// checkPlace reports an error if a mount would show the guest where a container could change it.
func checkPlace(m specs.Mount, privileged bool) error {
	if place, ok := places[m.Type]; ok && m.Destination != place {
		return fmt.Errorf("a file system of type %s is offered on %s only", m.Type, place)
	}
	if m.Type == "sysfs" && writable(m.Options) && !privileged {
		return fmt.Errorf("sysfs is offered read-only only: give the option ro, or %s", hint)
	}
	return nil
}

// writable reports whether a mount with these options can be written to.
func writable(options []string) bool {
	return !slices.Contains(options, "ro") || slices.Contains(options, "rw")
}

func convertBind(m specs.Mount, o Options) (specs.Mount, error) {
	none := specs.Mount{}
	// The shim leaves the type of a volume's driver in the mount of a "local" one.
	local := m.Type == "local" && slices.Contains(o.Volumes, m.Source)
	if m.Type != "bind" && m.Type != "none" && m.Type != "" && !local {
		return none, fmt.Errorf("a bind mount of type %q is a contradiction", m.Type)
	}
	if err := checkPath(m.Source); err != nil {
		return none, fmt.Errorf("source: %w", err)
	}
	options := []string{}
	for _, option := range m.Options {
		switch {
		case option == "bind", option == "rbind", slices.Contains(flags, option):
		case slices.Contains(shared, option) && o.Privileged:
		case slices.Contains(shared, option):
			return none, fmt.Errorf("option %q is not offered for a bind mount; %s", option, hint)
		default:
			return none, fmt.Errorf("option %q is not offered for a bind mount", option)
		}
		options = append(options, option)
	}
	// containerd asks for it in a pod with the network of the host and a user namespace. It is what a sysfs shows.
	if m.Source == "/sys" && m.Destination == "/sys" && !o.Privileged {
		if writable(options) && !slices.Contains(options, "rro") {
			return none, fmt.Errorf("/sys is offered read-only only: give the option ro, or %s", hint)
		}
		return specs.Mount{Destination: "/sys", Type: "sysfs", Source: "sysfs", Options: []string{"nosuid", "noexec", "nodev", "ro"}}, nil
	}
	if err := checkSource(m.Source, o); err != nil {
		return none, err
	}
	if !slices.Contains(options, "bind") && !slices.Contains(options, "rbind") {
		options = append(options, "bind")
	}
	if m.Source == path.Join(o.RunDir, SandboxDir, resolvConf) { // a container that wrote to it would redirect the agent's pulls
		options = append(slices.DeleteFunc(options, func(o string) bool { return o == "rw" || o == "ro" }), "ro")
	}
	return specs.Mount{Destination: m.Destination, Type: "bind", Source: m.Source, Options: options}, nil
}

// checkSource reports an error for a clean source of a bind mount that no container may have.
func checkSource(source string, o Options) error {
	below, sandbox := path.Join(o.RunDir, SharedDir)+"/", path.Join(o.RunDir, SandboxDir)+"/"
	file, inSandbox := strings.CutPrefix(source, sandbox)
	switch {
	case strings.HasPrefix(source, below), inSandbox && slices.Contains(sandboxFiles, file), slices.Contains(o.Volumes, source):
		return nil
	}
	for _, tree := range guestTrees {
		if source != tree && !strings.HasPrefix(source, tree+"/") {
			continue
		}
		if o.Privileged {
			return nil
		}
		return fmt.Errorf("source %q shows the guest itself and is not offered; %s", source, hint)
	}
	return fmt.Errorf("source %q is neither below %s nor one of %s in %s nor a volume", source, below, strings.Join(sandboxFiles, ", "), sandbox)
}
