// SPDX-License-Identifier: Apache-2.0
// Copyright The Cloister Authors.

package oci

import (
	"errors"
	"fmt"
	"regexp"
	"slices"
	"strings"

	specs "github.com/opencontainers/runtime-spec/specs-go"
)

var (
	capability = regexp.MustCompile(`^CAP_[A-Z_]{1,32}$`)
	rlimit     = regexp.MustCompile(`^RLIMIT_[A-Z]{1,16}$`)
)

// refused are the capabilities by which root in a container gets out of it: it has no user namespace, so that they hold
// for the whole guest. With CAP_SYS_ADMIN or CAP_BPF it takes away its device rules or its read-only mounts and then reads
// disks and the tables of device-mapper. With CAP_SYS_PTRACE it takes over the OCI runtime, which at each exec is a process of
// the container that still has every capability. The others open memory, devices, modules and files by handle.
var refused = []string{
	"CAP_SYS_ADMIN", "CAP_BPF", "CAP_PERFMON", "CAP_SYS_MODULE", "CAP_SYS_RAWIO", "CAP_DAC_READ_SEARCH", "CAP_SYS_PTRACE",
}

const (
	// maxGroups is how many supplementary groups the kernel gives a process.
	maxGroups = 65536
	// maxUsername bounds a user's name, in bytes.
	maxUsername = 256
	// maxConsole bounds rows and columns of a terminal, which the kernel holds in 16 bits.
	maxConsole = 65535
)

// ConvertProcess checks a process of the shim's and returns a new one with what the guest honours. It refuses the
// capabilities of privileged containers. A user's name stays: who knows the container's files has to resolve it.
func ConvertProcess(in *specs.Process) (*specs.Process, error) {
	return convertProcess(in, func(string) bool { return false })
}

// convertProcess is ConvertProcess with a say in which of the refused capabilities are allowed.
func convertProcess(in *specs.Process, allowed func(string) bool) (*specs.Process, error) {
	if in == nil {
		return nil, errors.New("process: missing")
	}
	if len(in.Args) == 0 || in.Args[0] == "" {
		return nil, errors.New("process: it has no arguments, so nothing to run")
	}
	for _, s := range slices.Concat(in.Args, in.Env) {
		if strings.ContainsRune(s, 0) {
			return nil, errors.New("process: an argument or environment variable has a zero byte")
		}
	}
	for _, s := range in.Env {
		if strings.IndexByte(s, '=') <= 0 {
			return nil, fmt.Errorf("process: environment variable %q is not NAME=VALUE", s)
		}
	}
	cwd, err := cleanPath(in.Cwd)
	if err != nil {
		return nil, fmt.Errorf("process: working folder: %w", err)
	}
	if adj := in.OOMScoreAdj; adj != nil && (*adj < -1000 || *adj > 1000) {
		return nil, fmt.Errorf("process: OOM score adjustment %d is not in -1000..1000", *adj)
	}
	if b := in.ConsoleSize; b != nil && (b.Height > maxConsole || b.Width > maxConsole) {
		return nil, fmt.Errorf("process: a terminal of %d rows and %d columns is larger than %d", b.Height, b.Width, maxConsole)
	}
	if u := in.User; len(u.AdditionalGids) > maxGroups || u.Umask != nil && *u.Umask > 0o777 || len(u.Username) > maxUsername {
		return nil, fmt.Errorf("process: more than %d groups, a umask that is none, or a user's name of more than %d bytes", maxGroups, maxUsername)
	}
	if in.Scheduler != nil || in.IOPriority != nil || in.ExecCPUAffinity != nil {
		return nil, errors.New("process: scheduler, I/O priority and CPU affinity are not offered")
	}
	if err := checkRlimits(in.Rlimits); err != nil {
		return nil, err
	}
	capabilities, err := convertCapabilities(in.Capabilities, allowed)
	if err != nil {
		return nil, err
	}
	return &specs.Process{
		Terminal:        in.Terminal,
		ConsoleSize:     in.ConsoleSize,
		User:            convertUser(in.User),
		Args:            slices.Clone(in.Args),
		Env:             slices.Clone(in.Env),
		Cwd:             cwd,
		Capabilities:    capabilities,
		Rlimits:         slices.Clone(in.Rlimits),
		NoNewPrivileges: in.NoNewPrivileges,
		OOMScoreAdj:     in.OOMScoreAdj,
	}, nil
}

func convertUser(u specs.User) specs.User {
	return specs.User{UID: u.UID, GID: u.GID, Umask: u.Umask, AdditionalGids: slices.Clone(u.AdditionalGids), Username: u.Username}
}

func checkRlimits(limits []specs.POSIXRlimit) error {
	seen := make(map[string]bool)
	for _, l := range limits {
		if !rlimit.MatchString(l.Type) || seen[l.Type] || l.Soft > l.Hard {
			return fmt.Errorf("process: limit %q (soft %d, hard %d) is malformed or given twice", l.Type, l.Soft, l.Hard)
		}
		seen[l.Type] = true
	}
	return nil
}

func convertCapabilities(in *specs.LinuxCapabilities, allowed func(string) bool) (*specs.LinuxCapabilities, error) {
	if in == nil {
		return nil, nil //nolint:nilnil // no capabilities are a value of the spec
	}
	for _, c := range slices.Concat(in.Bounding, in.Effective, in.Inheritable, in.Permitted, in.Ambient) {
		if !capability.MatchString(c) {
			return nil, fmt.Errorf("process: %q is not the name of a capability", c)
		}
		if slices.Contains(refused, c) && !allowed(c) {
			return nil, fmt.Errorf("process: %s is not offered, privileged containers are not: it reaches out of the container; %s", c, hint)
		}
	}
	return &specs.LinuxCapabilities{
		Bounding:    slices.Clone(in.Bounding),
		Effective:   slices.Clone(in.Effective),
		Inheritable: slices.Clone(in.Inheritable),
		Permitted:   slices.Clone(in.Permitted),
		Ambient:     slices.Clone(in.Ambient),
	}, nil
}

// ExecProcess fills in what the shim leaves out of a further process from the container's init process: environment
// and working folder if they are empty, and capabilities and limits if there are none. No new privileges are allowed
// to it if none are to the init process. Then it is checked as ConvertProcess does, but it may have the capabilities of the
// init process's bounding set, whatever they are.
func ExecProcess(in, init *specs.Process) (*specs.Process, error) {
	if in == nil {
		return nil, errors.New("process: missing")
	}
	p := *in
	if len(p.Env) == 0 {
		p.Env = init.Env
	}
	if p.Cwd == "" {
		p.Cwd = init.Cwd
	}
	if p.Capabilities == nil {
		p.Capabilities = init.Capabilities
	}
	if len(p.Rlimits) == 0 {
		p.Rlimits = init.Rlimits
	}
	if p.OOMScoreAdj == nil {
		p.OOMScoreAdj = init.OOMScoreAdj
	}
	p.NoNewPrivileges = p.NoNewPrivileges || init.NoNewPrivileges
	return convertProcess(&p, func(c string) bool {
		return init.Capabilities != nil && slices.Contains(init.Capabilities.Bounding, c)
	})
}
