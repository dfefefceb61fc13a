// SPDX-License-Identifier: Apache-2.0
// Copyright The Cloister Authors.

package guestimage

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"

	"github.com/cloister-cc/cloister/initramfs"
	"github.com/cloister-cc/cloister/initramfs/layout"
)

// Names of the files in an output folder.
const (
	// KernelFile is the kernel image.
	KernelFile = "kernel"
	// InitramfsFile is the initramfs. It holds the disk key: only its owner may read it.
	InitramfsFile = "initramfs.img"
	// DiskFile is the encrypted root disk.
	DiskFile = "root.img"
	// SealedFile is the image of Secure Execution that 'cloister se create' makes of kernel, initramfs and command line.
	SealedFile = "se.img"
	// GuestFile describes the guest, see Guest. A folder that holds it is one of ours.
	GuestFile = "guest.json"
)

// GuestVersion is the version of Guest that this code writes and reads.
const GuestVersion = 1

// guestFormat marks guest.json as ours.
const guestFormat = "cloister-guest"

// maxGuestSize bounds guest.json, in bytes.
const maxGuestSize = 16 << 20

// Guest is what guest.json says of a guest. It holds no secret.
type Guest struct {
	// Format is always "cloister-guest".
	Format string `json:"format"`
	// Version is GuestVersion.
	Version int `json:"version"`
	// Builder is the version of the program that built the guest.
	Builder string `json:"builder,omitempty"`
	// Arch is s390x or amd64.
	Arch string `json:"arch"`
	// CommandLine is what the kernel is to be started with.
	CommandLine string `json:"command_line"`
	// KernelRelease is the kernel's release, or empty where the kernel does not say.
	KernelRelease string `json:"kernel_release,omitempty"`
	// Files are the other files of the folder.
	Files Files `json:"files"`
	// Policy decides on the host's requests: deny-all or allow-all.
	Policy string `json:"policy"`
	// Modules are the kernel modules in load order.
	Modules []layout.Module `json:"modules"`
	// BuiltinModules are wanted modules that are part of the kernel; MissingModules are optional ones that it lacks.
	BuiltinModules []string `json:"builtin_modules,omitempty"`
	MissingModules []string `json:"missing_modules,omitempty"`
	// Root says how the root disk is unlocked and checked.
	Root layout.Root `json:"root"`
	// Images are the container images in the root disk, in the order of their references.
	Images []layout.Image `json:"images,omitempty"`
	// Initramfs lists what is in the initramfs, besides the list itself.
	Initramfs []initramfs.ManifestEntry `json:"initramfs"`
	// Sealed describes the image of Secure Execution, if one was made.
	Sealed *Sealed `json:"sealed,omitempty"`
	// Warnings are things that whoever uses the guest should know.
	Warnings []string `json:"warnings,omitempty"`
}

// Files are the files of an output folder.
type Files struct {
	Kernel    FileInfo `json:"kernel"`
	Initramfs FileInfo `json:"initramfs"`
	Disk      FileInfo `json:"disk"`
}

// Sealed is what guest.json says of the sealed image.
type Sealed struct {
	// File is the name of its file, Size its size in bytes.
	File string `json:"file"`
	Size int64  `json:"size"`
	// HeaderTag is the tag of its header in hexadecimal, which names this image and no other.
	HeaderTag string `json:"header_tag"`
	// HostKeysVerified says that the host key documents were verified.
	HostKeysVerified bool `json:"host_keys_verified"`
}

// FileInfo is one file of an output folder.
type FileInfo struct {
	// Name is the file's name in the folder.
	Name string `json:"name"`
	// Size is its size in bytes.
	Size int64 `json:"size"`
	// SHA256 is the hash of its content in hexadecimal.
	SHA256 string `json:"sha256"`
}

// Load reads the guest.json of an output folder.
func Load(dir string) (*Guest, error) {
	f, err := os.Open(filepath.Join(dir, GuestFile))
	if err != nil {
		return nil, &InputError{Input: "guest", Err: err, What: "give a folder that 'cloister build' wrote"}
	}
	defer f.Close()
	data, err := io.ReadAll(io.LimitReader(f, maxGuestSize+1))
	if err != nil {
		return nil, fmt.Errorf("load guest: %w", err)
	}
	g, err := parseGuest(data)
	if err != nil {
		return nil, fmt.Errorf("load guest: %s: %w", f.Name(), err)
	}
	return g, nil
}

func parseGuest(data []byte) (*Guest, error) {
	if len(data) > maxGuestSize {
		return nil, fmt.Errorf("more than %d bytes", maxGuestSize)
	}
	dec := json.NewDecoder(bytes.NewReader(data))
	var g Guest
	if err := dec.Decode(&g); err != nil {
		return nil, err
	}
	if g.Format != guestFormat {
		return nil, errors.New("not the description of a guest")
	}
	if g.Version != GuestVersion {
		return nil, fmt.Errorf("version %d, this program reads version %d", g.Version, GuestVersion)
	}
	for _, f := range []FileInfo{g.Files.Kernel, g.Files.Initramfs, g.Files.Disk} {
		if f.Name == "" || filepath.Base(f.Name) != f.Name || !filepath.IsLocal(f.Name) {
			return nil, fmt.Errorf("file name %q", f.Name)
		}
	}
	return &g, nil
}

// Save replaces the guest.json of an output folder, as a whole.
func Save(dir string, g *Guest) (err error) {
	data, err := g.encode()
	if err != nil {
		return err
	}
	tmp, err := os.CreateTemp(dir, "."+GuestFile+".*")
	if err != nil {
		return fmt.Errorf("save guest: %w", err)
	}
	_, err = tmp.Write(data)
	err = errors.Join(err, tmp.Chmod(0o644), tmp.Close())
	if err == nil {
		err = os.Rename(tmp.Name(), filepath.Join(dir, GuestFile))
	}
	if err != nil {
		return errors.Join(fmt.Errorf("save guest: %w", err), os.Remove(tmp.Name()))
	}
	return nil
}

func (g *Guest) encode() ([]byte, error) {
	data, err := json.MarshalIndent(g, "", "  ")
	if err != nil {
		return nil, fmt.Errorf("encode %s: %w", GuestFile, err)
	}
	return append(data, '\n'), nil
}

// Unprotected is what every banner of an amd64 guest says, as long as there is no way to give it keys but its initramfs.
const Unprotected = "this amd64 guest is UNPROTECTED until keys come by attestation: its initramfs holds them in the clear"

// warnings says what is weak about a guest as it is built.
func warnings(o *Options, image *imageSettings) []string {
	w := []string{"initramfs holds the disk key in the clear until it is sealed: keep it from the host that runs the guest"}
	if o.Arch == initramfs.ArchAMD64 {
		w[0] = Unprotected
	}
	if policyOf(o) == layout.PolicyAllowAll {
		w = append(w, "policy allow-all: every request of the host passes")
	}
	if o.Privileged {
		w = append(w, "privileged containers are allowed: one that the host starts is root in the guest")
	}
	if o.DebugConsole {
		w = append(w, "the debug console is on: the host is root in the guest")
	}
	switch {
	case o.RegistryCA != "" || len(image.ExtraRootCertificates) > 0:
	case len(o.Images) > 0:
		w = append(w, "no registry CA: the guest trusts no registry and has no images but those of its root disk")
	default:
		w = append(w, "no registry CA: the guest trusts no registry and can pull no image")
	}
	return append(w, image.warnings()...)
}
