// SPDX-License-Identifier: Apache-2.0
// Copyright The Cloister Authors.

package main

import (
	"context"
	"crypto/rand"
	"crypto/rsa"
	"crypto/x509"
	"encoding/pem"
	"errors"
	"flag"
	"fmt"
	"os"
	"path/filepath"
	"runtime"
	"time"

	"github.com/klauspost/compress/gzip"
	"golang.org/x/sys/unix"

	"github.com/cloister-cc/cloister/guestimage/imagecrypt"
	"github.com/cloister-cc/cloister/keys"
)

// imageOptions say how pulls are measured.
type imageOptions struct {
	// dir is the folder for images and what they are unpacked to; empty means the system's for temporary files.
	dir  string
	runs int
	// largest leaves out images above so many MB.
	largest int64
	peers   bool
	// profile is the beginning of the names of CPU profiles, empty means none.
	profile string
}

func (o *imageOptions) register(f *flag.FlagSet) {
	f.StringVar(&o.dir, "dir", "", "with --images: `folder` for images and what they are unpacked to, instead of the system's for temporary files")
	f.Int64Var(&o.largest, "largest", 4000, "with --images: leave out images above so many `MB`; that of 4 GB needs 10 GB of space")
	f.BoolVar(&o.peers, "peers", true, "with --images: compare with skopeo and umoci")
	f.StringVar(&o.profile, "profile", "", "with --images: `name` of CPU profiles of the pulls; each gets a number")
}

// referenceLayers are those of the image that is compared: 900 MB of files, about 310 MB compressed.
var referenceLayers = []layerSpec{{120e6, 60}, {300e6, 40}, {480e6, 30}}

// smallImages are pulled together and one after the other, from a registry that takes smallLatency for an answer.
const (
	smallImages  = 32
	smallLatency = 50 * time.Millisecond
)

// imageBench measures pulls through image.Service, the agent's own, from a registry of this process into new stores.
type imageBench struct {
	*table
	o        imageOptions
	dir      string
	maker    *imageMaker
	registry *fileRegistry
	key      []byte
	// private is the key of the images for skopeo, certs its folder of certificates.
	private, certs string
	recipients     []imagecrypt.Recipient
	profiles       int
	tmpfs          scratch
}

// measureImages measures pulls on this machine.
func measureImages(ctx context.Context, o imageOptions) (t *table, err error) {
	if os.Geteuid() != 0 {
		return nil, errors.New("pulls are measured as root only, since they end with a mount")
	}
	if o.runs < 1 {
		return nil, errors.New("--runs must be at least 1")
	}
	if o.peers {
		if err := findPeers(); err != nil {
			return nil, err
		}
	}
	if os.Getenv(outerNamespace) == "" {
		return nil, inNamespace(ctx) // mounts end with it
	}
	if err := unix.Mount("", "/", "", unix.MS_REC|unix.MS_PRIVATE, ""); err != nil {
		return nil, fmt.Errorf("keep mounts to this program: %w", err)
	}
	dir, err := os.MkdirTemp(o.dir, "cloister-bench-")
	if err != nil {
		return nil, err
	}
	defer func() { err = errors.Join(err, os.RemoveAll(dir)) }()
	b := &imageBench{
		table: &table{Title: fmt.Sprintf("pulls on this machine (%s), %d runs", runtime.GOARCH, o.runs)},
		o:     o, dir: dir, tmpfs: scratch{dir: dir},
		maker: &imageMaker{corpus: newCorpus(), dir: dir},
	}
	if b.registry, err = startFileRegistry(ctx, dir); err != nil {
		return nil, err
	}
	defer func() { err = errors.Join(err, b.registry.close()) }()
	if err := b.makeKeys(); err != nil {
		return nil, err
	}
	for _, part := range []struct {
		name string
		run  func(context.Context) error
	}{{"reference image", b.reference}, {"memory", b.memory}, {"many small images", b.many}} {
		fmt.Fprintln(os.Stderr, "measuring:", part.name)
		if err := part.run(ctx); err != nil {
			return nil, fmt.Errorf("%s: %w", part.name, err)
		}
	}
	return b.table, nil
}

// makeKeys makes the keys of the images: one that the guest has by its name, and a private one for skopeo.
func (b *imageBench) makeKeys() error {
	b.key = make([]byte, imagecrypt.KeySize)
	_, _ = rand.Read(b.key) // never fails
	private, err := rsa.GenerateKey(rand.Reader, 3072)
	if err != nil {
		return err
	}
	public, err := x509.MarshalPKIXPublicKey(private.Public())
	if err != nil {
		return err
	}
	b.recipients = []imagecrypt.Recipient{
		{KeyURI: keyURI, Key: keys.NewSecret(b.key)},
		{Protocol: imagecrypt.JWE, Public: pem.EncodeToMemory(&pem.Block{Type: "PUBLIC KEY", Bytes: public})},
	}
	b.private, b.certs = filepath.Join(b.dir, "private.pem"), filepath.Join(b.dir, "certs")
	block := &pem.Block{Type: "RSA PRIVATE KEY", Bytes: x509.MarshalPKCS1PrivateKey(private)}
	ca, err := os.ReadFile(b.registry.pki.CA)
	return errors.Join(err, os.WriteFile(b.private, pem.EncodeToMemory(block), 0o600), os.Mkdir(b.certs, 0o700),
		os.WriteFile(filepath.Join(b.certs, "ca.crt"), ca, 0o600)) //nolint:gosec // G703: below a folder of our own
}

// serve makes an encrypted image and offers it. The plain one is removed unless the caller wants it.
func (b *imageBench) serve(ctx context.Context, name string, c compression, keep bool, layers ...layerSpec) (ref string, plain, encrypted *plainImage, err error) {
	if plain, err = b.maker.make(ctx, name, c, layers...); err != nil {
		return "", nil, nil, err
	}
	if encrypted, err = plain.encrypt(ctx, b.recipients); err != nil {
		return "", nil, nil, err
	}
	if !keep {
		err = os.RemoveAll(plain.layout)
	}
	return b.registry.add(name, encrypted), plain, encrypted, err
}

// reference compares a pull of the reference image with other programs, and pulls its layers once more.
func (b *imageBench) reference(ctx context.Context) error {
	ref, plain, encrypted, err := b.serve(ctx, "reference", gzipped(gzip.DefaultCompression), true, referenceLayers...)
	if err != nil {
		return err
	}
	b.add("reference image: files", "KB", plain.unpacked/1000)
	b.add("reference image: in the registry", "KB", encrypted.size()/1000)
	second := *encrypted // another image, with the same layers
	again := b.registry.add("second", &second)
	for i := range b.o.runs {
		fmt.Fprintf(os.Stderr, "run %d of %d\n", i+1, b.o.runs)
		for _, fs := range []scratch{b.tmpfs, {dir: b.dir, disk: true}} {
			if err := b.compare(ctx, fs, ref, again, plain, encrypted); err != nil {
				return err
			}
		}
	}
	b.registry.drop("reference")
	b.registry.drop("second")
	return errors.Join(os.RemoveAll(plain.layout), os.RemoveAll(encrypted.layout))
}

func (b *imageBench) compare(ctx context.Context, fs scratch, ref, again string, plain, encrypted *plainImage) error {
	on := " (" + fs.name() + ")"
	bare, bareCPU, err := bareUnpack(ctx, fs, plain)
	if err != nil {
		return err
	}
	before := b.sent(encrypted)
	r, err := b.pull(ctx, fs, pullJob{Images: []string{ref, again}})
	if err != nil {
		return err
	}
	ours := r.Took[0].Milliseconds()
	b.add("pull to mounted root file system"+on, "ms", ours)
	b.add("gzip -dc | tar -x, two at a time"+on, "ms", bare.Milliseconds())
	b.add("pull over gzip | tar, aim 110"+on, "%", ours*100/max(bare.Milliseconds(), 1))
	b.add("processor time of the pull"+on, "ms", r.CPU.Milliseconds())
	b.add("processor time of gzip | tar"+on, "ms", bareCPU.Milliseconds())
	b.add("peak memory over idle, reference image, aim 65536"+on, "KiB", r.Peak-r.Idle)
	b.add("second image of the same layers"+on, "µs", r.Took[1].Microseconds())
	b.add("second image, layers fetched again, aim 0"+on, "bytes", b.sent(encrypted)-before-encrypted.size())
	if !b.o.peers {
		return nil
	}
	both, raw, err := b.tools(ctx, fs, ref)
	if err != nil {
		return err
	}
	b.add("pull over skopeo + umoci, aim 45"+on, "%", ours*100/max(both.Milliseconds(), 1))
	b.add("pull over skopeo + umoci raw"+on, "%", ours*100/max(raw.Milliseconds(), 1))
	return nil
}

// sent returns what was sent of an image's layers so far.
func (b *imageBench) sent(img *plainImage) (n int64) {
	for _, l := range img.manifest.Layers {
		n += b.registry.bytes(l.Digest)
	}
	return n
}

// memory measures the memory of the process that pulls, for images of several sizes.
func (b *imageBench) memory(ctx context.Context) error {
	for _, m := range []struct {
		name string
		mb   int64
		c    compression
	}{
		{"100 MB", 100, gzipped(gzip.BestSpeed)},
		{"1 GB", 1000, gzipped(gzip.BestSpeed)},
		{"1 GB, zstd", 1000, zstandard()},
		{"4 GB", 4000, gzipped(gzip.BestSpeed)},
	} {
		if m.mb > b.o.largest {
			fmt.Fprintf(os.Stderr, "left out: image of %s\n", m.name)
			continue
		}
		layer := layerSpec{m.mb * 1e6 / 4, 20}
		name := fmt.Sprintf("memory-%d-%d", m.mb, len(m.name))
		ref, _, encrypted, err := b.serve(ctx, name, m.c, false, layer, layer, layer, layer)
		if err != nil {
			return err
		}
		for range b.o.runs {
			r, err := b.pull(ctx, b.tmpfs, pullJob{Images: []string{ref}})
			if err != nil {
				return err
			}
			b.add("idle memory", "KiB", r.Idle)
			b.add("peak memory over idle, "+m.name+" (aim: 65536)", "KiB", r.Peak-r.Idle)
			b.add("pull, "+m.name, "ms", r.All.Milliseconds())
		}
		b.registry.drop(name)
		if err := os.RemoveAll(encrypted.layout); err != nil {
			return err
		}
	}
	return nil
}

// many pulls different small images one after the other and all together, from a registry that is far away.
func (b *imageBench) many(ctx context.Context) error {
	var refs []string
	for i := range smallImages {
		ref, _, _, err := b.serve(ctx, fmt.Sprint("small-", i), gzipped(gzip.DefaultCompression), false, layerSpec{1e6, 100})
		if err != nil {
			return err
		}
		refs = append(refs, ref)
	}
	b.registry.latency.Store(int64(smallLatency))
	defer b.registry.latency.Store(0)
	for range b.o.runs {
		single, err := b.pull(ctx, b.tmpfs, pullJob{Images: refs})
		if err != nil {
			return err
		}
		together, err := b.pull(ctx, b.tmpfs, pullJob{Images: refs, Together: true})
		if err != nil {
			return err
		}
		b.add("32 small images, one after the other", "ms", single.All.Milliseconds())
		b.add("32 small images, together", "ms", together.All.Milliseconds())
		b.add("rate together over one after the other (aim: 800)", "%", int64(single.All)*100/max(int64(together.All), 1))
		b.add("peak memory over idle, 32 together", "KiB", together.Peak-together.Idle)
	}
	return nil
}
