// SPDX-License-Identifier: Apache-2.0
// Copyright The Cloister Authors.

package main

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"time"

	"github.com/cloister-cc/cloister/se/hostkey/hostkeytest"
)

// makeHostKey makes what a real machine and IBM bring: a host key, its document, and the chain that signs it.
func (d *demo) makeHostKey(context.Context) (string, error) {
	for _, dir := range []string{d.owner("ibm"), d.private("machine")} {
		if err := os.Mkdir(dir, 0o700); err != nil {
			return "", err
		}
	}
	a, err := hostkeytest.New(time.Now(), nil)
	if err != nil {
		return "", err
	}
	files, err := a.WriteFiles(d.owner("ibm"))
	if err != nil {
		return "", err
	}
	if err := os.Rename(files.HostKey, d.hostKey()); err != nil {
		return "", err
	}
	return "one machine's, its document and a chain like IBM's, made for this demo and trusted by nobody else", nil
}

// hostKey is the private host key, which on a real machine nobody ever sees.
func (d *demo) hostKey() string { return d.private("machine/host.key") }

// seal verifies the document as a real one and seals the guest for it. The host gets the image.
func (d *demo) seal(ctx context.Context) (string, error) {
	ibm := func(name string) string { return d.owner(filepath.Join("ibm", name)) }
	if _, err := d.cloister(ctx, "se", "create", "--guest", d.guestDir(), "--host-key-document", ibm("HKD.crt"),
		"--cert", ibm("ibm-signing.crt"), "--cert", ibm("intermediate-ca.crt"), "--root-ca", ibm("root-ca.crt"),
		"--crl", ibm("root-ca.crl"), "--crl", ibm("intermediate-ca.crl"), "--crl", ibm("ibm-signing.crl"),
		"--bootloader-dir", d.bed.Bootloader); err != nil {
		return "", err
	}
	if err := os.Rename(filepath.Join(d.guestDir(), "se.img"), d.host("se.img")); err != nil {
		return "", err
	}
	return "host key document verified by its chain; kernel, initramfs and command line are se.img, which the host gets", nil
}

// open does what the machine's ultravisor does in memory that the host cannot read; a private folder stands for it.
func (d *demo) open(ctx context.Context) (string, error) {
	out, err := d.cloister(ctx, "se", "open", "--host-key", d.hostKey(), "--unseal", d.private("memory.img"), d.host("se.img"))
	if err != nil {
		return "", err
	}
	_, result, _ := strings.Cut(strings.TrimSpace(string(out)), "opens: ")
	return fmt.Sprintf("the ultravisor's simulator says: %s", result), nil
}
