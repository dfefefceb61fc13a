// SPDX-License-Identifier: Apache-2.0
// Copyright The Cloister Authors.

package oci

import (
	"errors"
	"fmt"
	"regexp"
	"slices"

	specs "github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"
)

const (
	// maxSyscalls bounds the names of system calls of a filter, over all of its rules.
	maxSyscalls = 4096
	// maxErrno is the largest error number that a system call can return.
	maxErrno = 4095
)

// The words of a filter, see the runtime spec, config-linux.md. SCMP_ACT_NOTIFY is not among the actions: it needs a
// listener, which no guest has.
var (
	seccompActions = []specs.LinuxSeccompAction{
		specs.ActKill, specs.ActKillProcess, specs.ActKillThread, specs.ActTrap, specs.ActErrno, specs.ActTrace, specs.ActAllow, specs.ActLog,
	}
	seccompOperators = []specs.LinuxSeccompOperator{
		specs.OpNotEqual, specs.OpLessThan, specs.OpLessEqual, specs.OpEqualTo, specs.OpGreaterEqual, specs.OpGreaterThan, specs.OpMaskedEqual,
	}
	seccompFlags = []specs.LinuxSeccompFlag{
		"SECCOMP_FILTER_FLAG_TSYNC", specs.LinuxSeccompFlagLog, specs.LinuxSeccompFlagSpecAllow, specs.LinuxSeccompFlagWaitKillableRecv,
	}
	seccompArch = regexp.MustCompile(`^SCMP_ARCH_[A-Z0-9_]{1,24}$`)
	syscallName = regexp.MustCompile(`^[a-zA-Z0-9_]{1,64}$`)
)

// convertSeccomp checks a filter. What a filter allows or denies is the container's own business, but not what it makes of the
// OCI runtime: that (crun) has the filter on itself before it gives up its capabilities. A filter that answers capset(2) or
// prctl(2) by success, or the latter by the error for a capability that the kernel does not have, would leave the container
// with every capability of the guest.
func convertSeccomp(in *specs.LinuxSeccomp) (*specs.LinuxSeccomp, error) {
	if in == nil {
		return nil, nil //nolint:nilnil // no filter is a value of the spec
	}
	if in.ListenerPath != "" || in.ListenerMetadata != "" {
		return nil, errors.New("container spec: a seccomp listener is not offered")
	}
	if err := checkAction(in.DefaultAction, in.DefaultErrnoRet, true); err != nil {
		return nil, err
	}
	for _, a := range in.Architectures {
		if !seccompArch.MatchString(string(a)) {
			return nil, fmt.Errorf("container spec: seccomp architecture %q is malformed", a)
		}
	}
	for _, f := range in.Flags {
		if !slices.Contains(seccompFlags, f) {
			return nil, fmt.Errorf("container spec: seccomp flag %q is not offered", f)
		}
	}
	names := 0
	for _, s := range in.Syscalls {
		if names += max(len(s.Names), 1); names > maxSyscalls {
			return nil, fmt.Errorf("container spec: seccomp filter of more than %d system calls", maxSyscalls)
		}
		if err := checkSyscall(s); err != nil {
			return nil, err
		}
	}
	out := *in
	return &out, nil
}

func checkSyscall(s specs.LinuxSyscall) error {
	if err := checkAction(s.Action, s.ErrnoRet, slices.Contains(s.Names, "prctl")); err != nil {
		return err
	}
	for _, name := range s.Names {
		if !syscallName.MatchString(name) {
			return fmt.Errorf("container spec: seccomp: %q is not the name of a system call", name)
		}
	}
	if len(s.Args) > 6 {
		return fmt.Errorf("container spec: seccomp: %d conditions on a system call, at most 6 are offered", len(s.Args))
	}
	for _, a := range s.Args {
		if a.Index > 5 || !slices.Contains(seccompOperators, a.Op) {
			return fmt.Errorf("container spec: seccomp: condition %q on argument %d is not offered", a.Op, a.Index)
		}
	}
	return nil
}

// checkAction checks what becomes of system calls; prctl says that prctl(2) may be one of them. Without a number, the error
// is EPERM, by which the runtime fails.
func checkAction(action specs.LinuxSeccompAction, errno *uint, prctl bool) error {
	if !slices.Contains(seccompActions, action) {
		return fmt.Errorf("container spec: seccomp action %q is not offered", action)
	}
	if errno == nil {
		return nil
	}
	fails := action == specs.ActErrno
	switch {
	case *errno > maxErrno:
		return fmt.Errorf("container spec: seccomp: there is no error number %d", *errno)
	case fails && *errno == 0:
		return errors.New("container spec: seccomp: a system call that fails by error number 0 seems to succeed, which is not offered")
	case fails && prctl && *errno == uint(unix.EINVAL):
		return errors.New("container spec: seccomp: prctl with the error EINVAL is not offered")
	}
	return nil
}
