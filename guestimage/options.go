// SPDX-License-Identifier: Apache-2.0
// Copyright The Cloister Authors.

package guestimage

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"time"

	"github.com/cloister-cc/cloister/guestimage/imagecrypt"
	"github.com/cloister-cc/cloister/initramfs"
	"github.com/cloister-cc/cloister/initramfs/layout"
)

// Options say what Build makes. All paths are files or folders of the build host.
type Options struct {
	// Arch is initramfs.ArchS390x or initramfs.ArchAMD64.
	Arch string
	// Rootfs is the root file system: a folder or an uncompressed tar archive.
	Rootfs string
	// Kernel is a bootable kernel image (bzImage, "vmlinuz").
	Kernel string
	// ModulesDir is the kernel's lib/modules/VERSION folder.
	ModulesDir string
	// Agent, Crun and Pause are the static ELF binaries of the guest: cloister-agent, the OCI runtime and the process
	// of the pause container.
	Agent, Crun, Pause string
	// RegistryCA is a file of PEM certificates that registries are checked against; "" means none.
	RegistryCA string
	// RegistryAuth is a file of registry credentials, as Docker's config.json has them below "auths"; "" means none.
	RegistryAuth string
	// ImageKeys maps key URIs (kbs:///repository/type/tag) to files that hold the 32 bytes of an image key.
	ImageKeys map[string]string
	// Secrets maps URIs (kbs:///repository/type/tag) to files of what sealed secrets name, and of the public keys that
	// sign them; at most 64 KiB each.
	Secrets map[string]string
	// Images are put into the root disk, at most layout.MaxImages: containers start from them without a registry. Layers
	// that are encrypted are opened with ImageKeys and Image.PrivateKeys. Where Image has a policy, it is asked about them.
	Images []Image
	// ImageAccess says how the registries of Images are reached.
	ImageAccess imagecrypt.Access
	// Image says which images the guest will use and where they come from.
	Image ImageOptions
	// Policy is layout.PolicyDenyAll (also when empty) or layout.PolicyAllowAll.
	Policy string
	// LogLevel is the agent's: debug, info, warn or error; "" means info.
	LogLevel string
	// LogPort, DebugConsole, Privileged, GuestHookPath, ContainerPipeSize and Tracing are as in layout.BootConfig.
	LogPort                  uint32
	DebugConsole, Privileged bool
	GuestHookPath            string
	ContainerPipeSize        int
	Tracing                  bool
	// ExtraModules are kernel modules to load beside those of initramfs.GuestModules.
	ExtraModules []string
	// Compression of the initramfs; "" means initramfs.CompressNone.
	Compression initramfs.Compression
	// Output is the folder to write. One that is there is replaced if it holds a guest or nothing, else refused.
	Output string
	// Builder is the version of the building program, for guest.json.
	Builder string
	// Progress, if not nil, is called after each step, from one goroutine.
	Progress func(Step)
}

// Step is one finished step of a build.
type Step struct {
	// Name says what was done, for instance "root disk".
	Name string
	// Size is the size of its result in bytes.
	Size int64
	// Took is how long it took.
	Took time.Duration
}

// InputError is an error in one of the inputs of a build.
type InputError struct {
	// Input is the name of the input as the command line spells it, for instance "modules".
	Input string
	// Err says what is wrong.
	Err error
	// What says what to do about it, or is empty.
	What string
}

// Error implements error.
func (e *InputError) Error() string { return e.Input + ": " + e.Err.Error() }

// Unwrap returns the cause.
func (e *InputError) Unwrap() error { return e.Err }

// Hint says what to do about the error; "" where nothing better than the error itself can be said.
func (e *InputError) Hint() string { return e.What }

func badInput(input, hint, format string, args ...any) error {
	return &InputError{Input: input, Err: fmt.Errorf(format, args...), What: hint}
}

// check looks at everything that can be said about the options without reading a file.
func (o *Options) check() error {
	if o.Arch != initramfs.ArchS390x && o.Arch != initramfs.ArchAMD64 {
		return badInput("arch", "", "%q is neither %s nor %s", o.Arch, initramfs.ArchS390x, initramfs.ArchAMD64)
	}
	for _, in := range []struct{ name, value string }{
		{"rootfs", o.Rootfs},
		{"kernel", o.Kernel},
		{"modules", o.ModulesDir},
		{"agent", o.Agent},
		{"crun", o.Crun},
		{"pause", o.Pause},
		{"output", o.Output},
	} {
		if in.value == "" {
			return &InputError{Input: in.name, Err: errors.New("not given")}
		}
	}
	switch o.Policy {
	case "", layout.PolicyDenyAll, layout.PolicyAllowAll:
	default:
		return badInput("policy", "", "%q is neither %s nor %s", o.Policy, layout.PolicyDenyAll, layout.PolicyAllowAll)
	}
	if !slices.Contains([]string{"", "debug", "info", "warn", "error"}, o.LogLevel) {
		return badInput("log-level", "", "%q is none of debug, info, warn, error", o.LogLevel)
	}
	if _, err := initramfs.ParseCompression(string(o.Compression)); err != nil {
		return &InputError{Input: "compression", Err: err}
	}
	if err := o.checkImages(); err != nil {
		return err
	}
	return o.checkFolders()
}

// checkFolders looks at the inputs that are folders, which later steps would report less clearly.
func (o *Options) checkFolders() error {
	st, err := os.Stat(o.Rootfs)
	if err != nil {
		return &InputError{Input: "rootfs", Err: err}
	}
	if !st.IsDir() && !st.Mode().IsRegular() {
		return badInput("rootfs", "", "%s is neither a folder nor a tar archive", o.Rootfs)
	}
	if st, err = os.Stat(o.ModulesDir); err != nil {
		return &InputError{Input: "modules", Err: err}
	}
	if !st.IsDir() {
		return badInput("modules", "give the kernel's lib/modules/VERSION folder", "%s is not a folder", o.ModulesDir)
	}
	parent, err := filepath.Abs(filepath.Dir(filepath.Clean(o.Output)))
	if err != nil {
		return &InputError{Input: "output", Err: err}
	}
	if st, err = os.Stat(parent); err != nil {
		return &InputError{Input: "output", Err: err, What: "make the folder that the output is to lie in"}
	}
	if !st.IsDir() {
		return badInput("output", "", "%s is not a folder", parent)
	}
	return nil
}
