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

// version is the version of the runtime spec that the result complies with: what every OCI runtime of today reads.
const version = "1.0.2"

// hint ends the errors of what a privileged guest offers.
const hint = "allow it in the boot config: privileged"

// Options say what the guest has for the container.
type Options struct {
	// ID is the container's id.
	ID string
	// RunDir is the folder below which bind mounts may have their source.
	RunDir string
	// Rootfs is the container's root file system.
	Rootfs string
	// IPC, UTS and PID are paths of namespaces to join; empty means a new one.
	IPC, UTS, PID string
	// Hostname is the sandbox's, which a container that joins its UTS namespace has, whatever the spec says.
	Hostname string
	// Privileged allows what reaches out of the container: every capability, devices, a sysfs to write to, shared
	// mounts, and paths of the guest that are neither masked nor read-only.
	Privileged bool
	// Hooks are those of the guest, which the OCI runtime runs. Those of the spec never are.
	Hooks *specs.Hooks
	// Volumes are further sources of bind mounts, exactly: where the guest itself has mounted a storage.
	Volumes []string
	// Controllers are the cgroup controllers that the guest has, by their names in cgroup v2; nil means all.
	Controllers []string
	// HugePages are the sizes of huge pages that the guest has, in the form "2MB"; nil means all.
	HugePages []string
}

// Result is what becomes of a spec.
type Result struct {
	// Spec is for the OCI runtime.
	Spec *specs.Spec
	// NetSysctls are the net.* kernel parameters by dotted key. OCI runtimes refuse them without a network namespace
	// of the container's own, so that the agent has to set them.
	NetSysctls map[string]string
	// Binds are the mounts whose source lies in the folder of what the host copied, where a symbolic link might lead
	// to any file of the guest. The agent opens the source without following any, and puts what it opened in its place.
	Binds []Bind
	// Notes say what of the spec was left out though the container can do without, each once. They are for the log.
	Notes []string

	hostname string // of the sandbox
}

// Bind is one of Result.Binds.
type Bind struct {
	// Mount is the index in Spec.Mounts.
	Mount int
	// Source is an absolute path below SharedDir of Options.RunDir.
	Source string
}

// notes collects Result.Notes.
type notes []string

func (n *notes) add(format string, args ...any) {
	if note := fmt.Sprintf(format, args...); !slices.Contains(*n, note) {
		*n = append(*n, note)
	}
}

// Convert turns the spec of the shim into one for the OCI runtime in the guest. It does not change its argument. The
// container stays in the network namespace of the agent.
func Convert(in *specs.Spec, o Options) (*Result, error) {
	if in == nil {
		return nil, errors.New("container spec: missing")
	}
	var n notes
	process, err := convertProcess(in.Process, func(string) bool { return o.Privileged })
	if err != nil {
		return nil, err
	}
	noteLabels(in, &n)
	if err := CheckHostname(in.Hostname); err != nil {
		return nil, err
	}
	linux, net, err := convertLinux(in.Linux, process, o, &n)
	if err != nil {
		return nil, err
	}
	mounts, binds, err := convertMounts(in.Mounts, o, linux)
	if err != nil {
		return nil, err
	}
	r := &Result{
		Spec: &specs.Spec{
			Version:  version,
			Process:  process,
			Root:     &specs.Root{Path: o.Rootfs, Readonly: in.Root != nil && in.Root.Readonly},
			Hostname: in.Hostname,
			Mounts:   mounts,
			Hooks:    o.Hooks,
			Linux:    linux,
		},
		NetSysctls: net,
		Binds:      binds,
		Notes:      n,
		hostname:   o.Hostname,
	}
	r.Join(o.IPC, o.UTS, o.PID)
	return r, nil
}

// Join sets the paths of the namespaces that the container joins; an empty one means a new namespace. Convert calls it
// with those of its options; call it again when they become known later. A container that joins a UTS namespace
// loses its host name: the OCI runtime would rename the whole sandbox.
func (r *Result) Join(ipc, uts, pid string) {
	r.Spec.Linux.Namespaces = namespaces(ipc, uts, pid)
	if len(r.Spec.Linux.UIDMappings) > 0 {
		r.Spec.Linux.Namespaces = append(r.Spec.Linux.Namespaces, specs.LinuxNamespace{Type: specs.UserNamespace})
	}
	if uts == "" || r.Spec.Hostname == "" {
		return
	}
	if r.hostname != "" && r.Spec.Hostname != r.hostname {
		(*notes)(&r.Notes).add("host name %q not set: the container has that of the sandbox, %q", r.Spec.Hostname, r.hostname)
	}
	r.Spec.Hostname = ""
}

// noteLabels notes what of a spec is for a host that the guest is not.
func noteLabels(in *specs.Spec, n *notes) {
	if in.Hooks != nil {
		n.add("hooks of the host not run")
	}
	if p := in.Process.ApparmorProfile; p != "" {
		n.add("AppArmor profile %.140q not applied: the guest has no AppArmor", p)
	}
	if l := in.Process.SelinuxLabel; l != "" {
		n.add("SELinux label %.140q not applied: the guest has no SELinux", l)
	}
	if in.Linux != nil && in.Linux.MountLabel != "" {
		n.add("SELinux mount label %.140q not applied: the guest has no SELinux", in.Linux.MountLabel)
	}
}

var hostname = regexp.MustCompile(`^[a-zA-Z0-9]([a-zA-Z0-9_.-]{0,62}[a-zA-Z0-9])?$`)

// CheckHostname reports an error for what cannot be a host name: more than 64 bytes, or other than letters, digits,
// dots, hyphens and underscores. Empty means none and is right.
func CheckHostname(name string) error {
	if name != "" && !hostname.MatchString(name) {
		return fmt.Errorf("host name %q is not well formed", name)
	}
	return nil
}

// checkPath reports an error unless p is absolute and clean.
func checkPath(p string) error {
	if !path.IsAbs(p) || path.Clean(p) != p || strings.ContainsRune(p, 0) || len(p) > 4095 {
		return fmt.Errorf("%q is not a clean absolute path", p)
	}
	return nil
}

// cleanPath returns an absolute path inside the container in its shortest form.
func cleanPath(p string) (string, error) {
	if !path.IsAbs(p) {
		return "", fmt.Errorf("%q is not an absolute path", p)
	}
	p = path.Clean(p)
	return p, checkPath(p)
}
