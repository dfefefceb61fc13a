// SPDX-License-Identifier: Apache-2.0
// Copyright The Cloister Authors.

package main

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"fmt"
	"os"
	"path/filepath"
	"strings"

	"github.com/cloister-cc/cloister/initramfs/layout"
	"github.com/cloister-cc/cloister/internal/qemu"
	"github.com/cloister-cc/cloister/test/story"
)

// canaries are texts that the host must not see.
type canaries struct {
	root, layer, token string
	// written is what the container makes of the layer's canary and writes into a file; nobody ever sends it.
	written string
	// sealedToken is what the host sees of the token.
	sealedToken string
}

// makeCanaries makes the texts, and the sealed secret by which the container gets one of them in its environment.
func (d *demo) makeCanaries(ctx context.Context) error {
	d.canaries = canaries{root: story.NewCanary(), layer: story.NewCanary(), token: story.NewCanary()}
	d.canaries.written = digest(d.canaries.layer + d.canaries.layer)
	if err := os.WriteFile(d.owner("token"), []byte(d.canaries.token), 0o600); err != nil {
		return err
	}
	if _, err := d.cloister(ctx, "secret", "new-key", "--private", d.owner("signing.jwk"), "--public", d.owner("signing.pub.jwk")); err != nil {
		return err
	}
	out, err := d.cloister(ctx, "secret", "seal", "--name", tokenURI, "--key-id", signingKeyURI, "--key", d.owner("signing.jwk"))
	d.canaries.sealedToken = strings.TrimSpace(string(out))
	return err
}

// digest returns the sha256 of a text in hexadecimal.
func digest(text string) string {
	sum := sha256.Sum256([]byte(text))
	return hex.EncodeToString(sum[:])
}

// script is what the container does: it writes a file that holds a canary, and shows of every canary a digest alone.
const script = `cat /etc/canary /etc/canary | sha256sum > /root/written
sha256sum < /etc/canary; sha256sum < /root/written; echo -n "$TOKEN" | sha256sum; uname -m`

// wantOutput is what the script prints, if the container has what it should have.
func (c *canaries) wantOutput(machine string) string {
	const end = "  -\n"
	return digest(c.layer) + end + digest(c.written+end) + end + digest(c.token) + end + machine + "\n"
}

// scanArgs are the arguments of leakscan for one artefact.
type scanArgs struct {
	name    string
	paths   []string
	control string
	known   []string
}

// hostSaw searches everything that the host has held.
func (d *demo) hostSaw(ctx context.Context) (string, error) {
	secrets, err := d.writeSecrets()
	if err != nil {
		return "", err
	}
	artefacts, err := d.artefacts()
	if err != nil {
		return "", err
	}
	args := []string{"leakscan"}
	for _, s := range secrets {
		args = append(args, "--secret", s+"=@"+d.private(s))
	}
	for _, a := range artefacts {
		args = append(args, "--control", a.name+"="+a.control)
		for _, k := range a.known {
			args = append(args, "--known", a.name+"="+k)
		}
		for _, p := range a.paths {
			args = append(args, a.name+"="+p)
		}
	}
	out, err := d.cloister(ctx, args...)
	d.table = string(out)
	if err != nil {
		return "", fmt.Errorf("%w\n%s", err, out)
	}
	return fmt.Sprintf("none of %d canaries and keys, in none of %d artefacts%s", len(secrets), len(artefacts), map[bool]string{
		true: "", false: ", but for the initramfs, where all keys are",
	}[d.sealed()]), nil
}

// writeSecrets writes what is searched into files, and returns their names.
func (d *demo) writeSecrets() ([]string, error) {
	diskKey, err := story.InitramfsFile(filepath.Join(d.guestDir(), "initramfs.img"), layout.DiskKeyPath)
	if err != nil {
		return nil, err
	}
	imageKey, err := os.ReadFile(d.owner("image.key"))
	if err != nil {
		return nil, err
	}
	names := []string{"root-canary", "layer-canary", "written-canary", "token", "disk-key", "image-key"}
	for i, value := range [][]byte{
		[]byte(d.canaries.root), []byte(d.canaries.layer), []byte(d.canaries.written), []byte(d.canaries.token), diskKey, imageKey,
	} {
		if err := os.WriteFile(d.private(names[i]), value, 0o600); err != nil { //nolint:gosec // G703: below the demo's own folder
			return nil, err
		}
	}
	return names, nil
}

// artefacts says what the host has held, and makes the twins that show that the search can see.
func (d *demo) artefacts() ([]scanArgs, error) {
	captured := func(name string) string { return d.host(filepath.Join("capture", name)) }
	layer, err := d.plainLayer()
	if err != nil {
		return nil, err
	}
	if err := story.WriteCapture(d.private("network.pcap"), layer); err != nil {
		return nil, err
	}
	planted := func(name string) (string, error) {
		twin := d.private("twin-" + strings.ReplaceAll(name, "/", "-"))
		return twin, story.Plant(captured(name), twin, []byte(d.canaries.written))
	}
	streams, err := filepath.Glob(captured(filepath.Join(qemu.CaptureVsock, "*-from-guest")))
	if err != nil || len(streams) == 0 {
		return nil, fmt.Errorf("no vsock connection was captured: %w", err)
	}
	vsock, err := planted(filepath.Join(qemu.CaptureVsock, filepath.Base(streams[0])))
	if err != nil {
		return nil, err
	}
	console, err := planted(qemu.CaptureConsole)
	if err != nil {
		return nil, err
	}
	log, err := planted(qemu.CaptureArgs)
	if err != nil {
		return nil, err
	}
	initramfs := filepath.Join(d.guestDir(), "initramfs.img")
	image := scanArgs{name: "sealed-image", paths: []string{d.host("se.img")}, control: initramfs}
	if !d.sealed() {
		image = scanArgs{name: "initramfs", paths: []string{d.host("initramfs.img")}, control: initramfs, known: []string{"token", "disk-key", "image-key"}}
	}
	return []scanArgs{
		{name: "root-disk", paths: []string{d.host("root.img")}, control: d.owner("rootfs")},
		image,
		{name: "registry", paths: []string{d.registry.Root}, control: d.owner("image")},
		{name: "network", paths: []string{captured(qemu.CaptureNetwork)}, control: d.private("network.pcap")},
		{name: "vsock", paths: []string{captured(qemu.CaptureVsock)}, control: vsock},
		{name: "console", paths: []string{captured(qemu.CaptureConsole)}, control: console},
		{name: "qemu", paths: []string{captured(qemu.CaptureArgs), captured(qemu.CaptureLog)}, control: log},
	}, nil
}

// plainLayer returns the largest blob of the image before its encryption: the layer.
func (d *demo) plainLayer() ([]byte, error) {
	blobs, err := filepath.Glob(d.owner("image/blobs/sha256/*"))
	if err != nil {
		return nil, err
	}
	var layer []byte
	for _, b := range blobs {
		data, err := os.ReadFile(b)
		if err != nil {
			return nil, err
		}
		if len(data) > len(layer) {
			layer = data
		}
	}
	return layer, nil
}
