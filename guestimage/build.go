// SPDX-License-Identifier: Apache-2.0
// Copyright The Cloister Authors.

package guestimage

import (
	"context"
	"crypto/rand"
	"crypto/sha256"
	"encoding/hex"
	"fmt"
	"hash"
	"io"
	"os"
	"path/filepath"
	"time"

	"github.com/cloister-cc/cloister/guestimage/imagecrypt"
	"github.com/cloister-cc/cloister/guestimage/rootdisk"
	"github.com/cloister-cc/cloister/image/registry"
	"github.com/cloister-cc/cloister/image/unpack"
	"github.com/cloister-cc/cloister/initramfs"
	"github.com/cloister-cc/cloister/initramfs/layout"
	"github.com/cloister-cc/cloister/keys"
)

// Result names what Build has written.
type Result struct {
	// Kernel, Initramfs, Disk and Manifest (guest.json) are the paths of the files.
	Kernel    string `json:"kernel"`
	Initramfs string `json:"initramfs"`
	Disk      string `json:"disk"`
	Manifest  string `json:"manifest"`
	// Guest is the content of guest.json.
	Guest *Guest `json:"guest"`
}

// Build makes a guest. Either the whole output folder is there afterwards, or the folder is as it was before. What is
// wrong with an input is reported as an *InputError.
func Build(ctx context.Context, o Options) (*Result, error) {
	return (&builder{o: o, random: rand.Reader, writeDisk: rootdisk.Write}).build(ctx)
}

// builder holds what differs between a real build and one of a test.
type builder struct {
	o         Options
	random    io.Reader
	writeDisk func(context.Context, rootdisk.Options) (*rootdisk.Result, error)
	// layerLimits bound each layer of the images in the root disk.
	layerLimits unpack.Limits
	// verify decides whether an image may be put into the root disk, before a layer is read; nil stands for the policy that
	// the guest gets.
	verify func(ctx context.Context, ref registry.Reference, img *imagecrypt.Image) error
}

func (b *builder) build(ctx context.Context) (*Result, error) {
	if err := b.o.check(); err != nil {
		return nil, err
	}
	out, err := newOutput(b.o.Output)
	if err != nil {
		return nil, err
	}
	defer out.discard() // nothing is left of it once it has been published
	g, err := b.fill(ctx, out.dir)
	if err != nil {
		return nil, err
	}
	if err := ctx.Err(); err != nil {
		return nil, err
	}
	if err := out.publish(); err != nil {
		return nil, err
	}
	in := func(name string) string { return filepath.Join(b.o.Output, name) }
	return &Result{Kernel: in(KernelFile), Initramfs: in(InitramfsFile), Disk: in(DiskFile), Manifest: in(GuestFile), Guest: g}, nil
}

// fill writes all files of the guest into dir.
func (b *builder) fill(ctx context.Context, dir string) (*Guest, error) {
	start := time.Now()
	c, err := load(&b.o)
	if err != nil {
		return nil, err
	}
	defer c.wipe()
	b.progress("kernel modules", modulesSize(c.modules), start)
	if b.verify == nil {
		client, err := b.o.ImageAccess.Client()
		if err != nil {
			return nil, &InputError{Input: "registry-auth", Err: err}
		}
		defer client.Close()
		b.verify = c.image.verifier(client)
	}

	key := keys.NewSecret(make([]byte, layout.DiskKeySize))
	defer key.Wipe()
	if _, err := io.ReadFull(b.random, key.Bytes()); err != nil {
		return nil, fmt.Errorf("make disk key: %w", err)
	}
	g := &Guest{
		Format: guestFormat, Version: GuestVersion, Builder: b.o.Builder, Arch: b.o.Arch, CommandLine: CommandLine(b.o.Arch),
		KernelRelease: c.release, Policy: policyOf(&b.o), Warnings: warnings(&b.o, c.image),
		BuiltinModules: c.modules.Builtin, MissingModules: c.modules.Missing,
	}
	header, err := b.disk(ctx, dir, key, g)
	if err != nil {
		return nil, err
	}
	if err := b.initramfs(ctx, dir, c, header, key, g); err != nil {
		return nil, err
	}
	if g.Files.Kernel, err = writeFile(dir, KernelFile, 0o644, func(w io.Writer) error {
		_, err := w.Write(c.kernel)
		return err
	}); err != nil {
		return nil, err
	}
	data, err := g.encode()
	if err != nil {
		return nil, err
	}
	_, err = writeFile(dir, GuestFile, 0o644, func(w io.Writer) error {
		_, err := w.Write(data)
		return err
	})
	return g, err
}

// disk writes the root disk and returns the header to pin.
func (b *builder) disk(ctx context.Context, dir string, key *keys.Secret, g *Guest) ([]byte, error) {
	images, err := b.images(ctx, dir)
	if err != nil {
		return nil, err
	}
	defer images.close()
	g.Images = images.list
	start := time.Now()
	file := filepath.Join(dir, DiskFile)
	res, err := b.writeDisk(ctx, rootdisk.Options{Source: b.o.Rootfs, Images: images.trees, Output: file, Key: key, Rand: b.random})
	if err != nil {
		return nil, fmt.Errorf("write root disk: %w", err)
	}
	if int64(len(res.Header)) != res.Root.HeaderSize {
		return nil, fmt.Errorf("write root disk: header of %d bytes instead of %d", len(res.Header), res.Root.HeaderSize)
	}
	g.Root = res.Root
	if g.Files.Disk, err = hashFile(ctx, file); err != nil {
		return nil, fmt.Errorf("hash root disk: %w", err)
	}
	b.progress("root disk", g.Files.Disk.Size, start)
	return res.Header, nil
}

// initramfs writes the initramfs, with its manifest in it.
func (b *builder) initramfs(ctx context.Context, dir string, c *contents, header []byte, key *keys.Secret, g *Guest) error {
	start := time.Now()
	cfg := c.bootConfig(&b.o, g.Root)
	cfg.Images = g.Images
	config, err := cfg.Encode()
	if err != nil {
		return err
	}
	g.Modules = cfg.Modules
	tree, err := c.tree(config, header, key)
	if err != nil {
		return err
	}
	m, err := tree.Manifest()
	if err != nil {
		return err
	}
	g.Initramfs = m.Entries
	manifest, err := m.Encode()
	if err != nil {
		return err
	}
	if err := tree.Add(initramfs.File{Path: layout.ManifestPath, Mode: 0o644, Data: manifest}); err != nil {
		return err
	}
	compression, err := initramfs.ParseCompression(string(b.o.Compression))
	if err != nil {
		return err
	}
	g.Files.Initramfs, err = writeFile(dir, InitramfsFile, 0o600, func(w io.Writer) error {
		return tree.WriteImage(ctx, w, compression)
	})
	if err != nil {
		return err
	}
	b.progress("initramfs", g.Files.Initramfs.Size, start)
	return nil
}

func (b *builder) progress(name string, size int64, start time.Time) {
	if b.o.Progress != nil {
		b.o.Progress(Step{Name: name, Size: size, Took: time.Since(start)})
	}
}

func modulesSize(c *initramfs.Closure) int64 {
	var n int64
	for _, m := range c.Modules {
		n += int64(len(m.Data))
	}
	return n
}

// hashingWriter counts and hashes what passes through it.
type hashingWriter struct {
	w io.Writer
	h hash.Hash
	n int64
}

// Write implements io.Writer.
func (w *hashingWriter) Write(p []byte) (int, error) {
	n, err := w.w.Write(p)
	w.h.Write(p[:n])
	w.n += int64(n)
	return n, err
}

func (w *hashingWriter) info(name string) FileInfo {
	return FileInfo{Name: name, Size: w.n, SHA256: hex.EncodeToString(w.h.Sum(nil))}
}

// writeFile makes a new file of what fill writes, on stable storage, and describes it.
func writeFile(dir, name string, perm os.FileMode, fill func(io.Writer) error) (_ FileInfo, err error) {
	f, err := os.OpenFile(filepath.Join(dir, name), os.O_WRONLY|os.O_CREATE|os.O_EXCL, perm)
	if err != nil {
		return FileInfo{}, fmt.Errorf("write %s: %w", name, err)
	}
	w := &hashingWriter{w: f, h: sha256.New()}
	if err = fill(w); err == nil {
		err = f.Chmod(perm) // whatever the umask
	}
	if err == nil {
		err = f.Sync()
	}
	if cerr := f.Close(); err == nil {
		err = cerr
	}
	if err != nil {
		return FileInfo{}, fmt.Errorf("write %s: %w", name, err)
	}
	return w.info(name), nil
}

// hashFile describes a file that is there.
func hashFile(ctx context.Context, file string) (FileInfo, error) {
	f, err := os.Open(file)
	if err != nil {
		return FileInfo{}, err
	}
	defer f.Close()
	w := &hashingWriter{w: io.Discard, h: sha256.New()}
	for {
		n, err := io.CopyN(w, f, 16<<20)
		if err != nil && err != io.EOF { //nolint:errorlint // CopyN returns io.EOF itself
			return FileInfo{}, err
		}
		if n == 0 {
			return w.info(filepath.Base(file)), nil
		}
		if err := ctx.Err(); err != nil {
			return FileInfo{}, err
		}
	}
}
