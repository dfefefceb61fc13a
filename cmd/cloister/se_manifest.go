// SPDX-License-Identifier: Apache-2.0
// Copyright The Cloister Authors.

package main

import (
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"

	"github.com/cloister-cc/cloister/guestimage"
	"github.com/cloister-cc/cloister/se"
)

// What a manifest says of itself.
const (
	manifestFormat  = "cloister-sealed-image"
	manifestVersion = 1
)

// sealManifest says what went into an image. It holds no secret; with the digests and the tag, a verifier of attestation
// evidence knows the image again.
type sealManifest struct {
	Format   string            `json:"format"`
	Version  int               `json:"version"`
	Builder  string            `json:"builder"`
	Output   string            `json:"output"`
	Size     int64             `json:"size"`
	HostKeys []manifestHostKey `json:"host_keys"`
	// SigningKey is the subject of the key by which the documents were verified; "" if they were not.
	SigningKey string               `json:"signing_key,omitempty"`
	Kernel     guestimage.FileInfo  `json:"kernel"`
	Ramdisk    *guestimage.FileInfo `json:"ramdisk,omitempty"`
	// CommandLine describes the command line, whose text is sealed.
	CommandLine *guestimage.FileInfo `json:"command_line,omitempty"`
	PCF         string               `json:"pcf_hex"`
	PCFNames    []string             `json:"pcf_names"`
	Pages       uint64               `json:"nep"`
	PLD         string               `json:"pld_hex"`
	ALD         string               `json:"ald_hex"`
	TLD         string               `json:"tld_hex"`
	Tag         string               `json:"tag_hex"`
	Warnings    []string             `json:"warnings,omitempty"`
}

type manifestHostKey struct {
	Document string `json:"document"`
	Hash     string `json:"hash"`
	Serial   string `json:"serial_hex"`
	Verified bool   `json:"verified"`
}

// describe fills in what is known once the image has been written.
func (m *sealManifest) describe(img *se.Image, in *sealInputs) {
	h := img.Header
	m.PCF, m.PCFNames, m.Pages = fmt.Sprintf("%016x", uint64(h.PCF)), se.PCFNames(h.PCF), h.Digests.Pages
	m.PLD, m.ALD, m.TLD = hex.EncodeToString(h.Digests.PLD[:]), hex.EncodeToString(h.Digests.ALD[:]), hex.EncodeToString(h.Digests.TLD[:])
	m.Tag = hex.EncodeToString(h.Tag[:])
	m.Kernel = in.kernel.info()
	if in.ramdisk != nil {
		info := in.ramdisk.info()
		m.Ramdisk = &info
	}
	if in.commandLine != nil {
		sum := sha256.Sum256(in.commandLine)
		m.CommandLine = &guestimage.FileInfo{Name: "cmdline", Size: int64(len(in.commandLine)), SHA256: hex.EncodeToString(sum[:])}
	}
}

// info describes a file that has been read to its end.
func (h *hashedFile) info() guestimage.FileInfo {
	info := guestimage.FileInfo{Name: filepath.Base(h.Name()), SHA256: hex.EncodeToString(h.sum.Sum(nil))}
	if st, err := h.Stat(); err == nil {
		info.Size = st.Size()
	}
	return info
}

// write puts the manifest into place as a whole.
func (m *sealManifest) write(path string) (err error) {
	data, err := json.MarshalIndent(m, "", "  ")
	if err != nil {
		return err
	}
	tmp, err := os.CreateTemp(filepath.Dir(path), "."+filepath.Base(path)+".*")
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, removeIfThere(tmp.Name())) }()
	_, err = tmp.Write(append(data, '\n'))
	if err = errors.Join(err, tmp.Chmod(0o644), tmp.Close()); err != nil {
		return err
	}
	return os.Rename(tmp.Name(), path)
}
