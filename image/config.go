// SPDX-License-Identifier: Apache-2.0
// Copyright The Cloister Authors.

package image

import (
	"context"
	"crypto/x509"
	"errors"
	"log/slog"
	"runtime"
	"time"

	"github.com/cloister-cc/cloister/image/decrypt"
	"github.com/cloister-cc/cloister/image/registry"
	"github.com/cloister-cc/cloister/image/sign"
	"github.com/cloister-cc/cloister/image/store"
	"github.com/cloister-cc/cloister/image/unpack"
)

// Errors that callers tell apart. Their texts name the key's URI.
var (
	// ErrNoKey means that the guest has no key for an encrypted layer. Config.Keys returns it for a key it has not.
	ErrNoKey = decrypt.ErrNoKey
	// ErrWrongKey means that the guest's key of that URI is not the one that the layer was encrypted with.
	ErrWrongKey = decrypt.ErrWrongKey
)

// Config is what a Service needs.
type Config struct {
	// Root is the folder of the image store, on scratch space; New empties it unless Keep is set. Keep its path short: see
	// store.Config.
	Root string
	// Keep lets New take over the verified layers that an earlier process has left in Root. Only for a folder that nobody
	// but this guest can have written to, see store.Config.
	Keep bool
	// CA holds the certificates that registries are checked against, instead of any system pool. nil trusts none.
	CA *x509.CertPool
	// PlainLoopback lets a registry on this machine's loopback addresses be spoken to without TLS, if it has none.
	PlainLoopback bool
	// HTTPSProxy is the URL of the proxy by which registries are reached, NoProxy lists with commas what is reached without.
	// Empty means no proxy; the environment is not looked at.
	HTTPSProxy, NoProxy string
	// Registries holds the bytes of a registries.conf, see registry.ParseRegistries; empty means none.
	Registries []byte
	// AllowInsecure lets Registries name registries whose certificates are not checked.
	AllowInsecure bool
	// Retry says how pulls go on after failures of registries.
	Retry registry.Retry
	// Auth holds the bytes of an auth.json, see registry.ParseAuth; empty means no credentials. The caller may wipe it
	// once New has returned.
	Auth []byte
	// Keys returns the key of a kbs:/// URI, ErrNoKey if there is none. The service wipes what it gets. nil has no keys.
	Keys func(ctx context.Context, uri string) ([]byte, error)
	// PrivateKeys are the URIs of the private keys for layers encrypted with jwe, pkcs7 or pgp, see decrypt.Keys.
	PrivateKeys []string
	// Policy decides whether an image may be used. It is asked about the reference of every Mount and the digest that
	// the reference stands for then, whether layers are here or not, before a layer is fetched. nil refuses every image.
	Policy *sign.Policy
	// Measure, if not nil, records that an image is about to be mounted: the reference of Mount in its canonical form and
	// the digest that it stands for. An error refuses the image.
	Measure func(ctx context.Context, reference, digest string) error
	// Log gets one line for each image pulled. nil drops it.
	Log *slog.Logger
	// PauseRootfs is the folder of the built-in pause image's root file system.
	PauseRootfs string
	// Preseeded are the images of the guest's root file system. Policy is not asked about them.
	Preseeded []Preseeded
	// Limits bound what an image may cost.
	Limits Limits
	// Arch is the GOARCH of images to take; empty means this program's.
	Arch string
	// Mounts are the kernel's mount calls; zero fields mean the real ones.
	Mounts store.Mounts
}

// Limits bound an image, and what pulls may cost together. Zero fields take their defaults. The size of manifests, indexes
// and configs (4 MiB) is fixed, see package registry.
type Limits struct {
	// Image is the most bytes that the layers of an image may have together in the registry, default 32 GiB.
	Image int64
	// ImageUnpacked is the most bytes that the layers of an image may take together in the store, default 64 GiB.
	ImageUnpacked int64
	// Layers is the number of layers of an image, default and at most 127.
	Layers int
	// Blob is the most bytes that a layer may have in the registry, default 8 GiB.
	Blob int64
	// Unpacked is the most bytes that a layer may have uncompressed, default 16 GiB.
	Unpacked int64
	// Ratio is how many times its size in the registry a layer may have uncompressed, default 200. Layers of up to
	// RatioFloor bytes uncompressed are not asked.
	Ratio int64
	// Files is the number of entries of a layer, default 500000.
	Files int
	// Path is the most bytes that a name in a layer may have, default 4095, and Depth how many folders may lie in each
	// other there, default 256.
	Path, Depth int
	// Parallel is the number of layers that are fetched at the same time, over all images, default 3. Layers of up to 4 MiB
	// in the registry that are not zstd have 16 places of their own.
	Parallel int
	// Expand is how many times its size in the registry a compressed layer is taken to need before it is here, default 2:
	// most need more, few less. A pull that has not so much space is not begun.
	Expand int64
	// Reserve is how many bytes pulls leave free for containers, default 64 MiB but at most 1/16 of the file system.
	Reserve int64
	// Budget is how many bytes layers may take before those that no container uses are removed, the one that was not used
	// for the longest time first. By default they are removed only when there is no space for others.
	Budget int64
	// Abandoned is how many pulls go on without anybody who waits for them, default 8, and Linger for how long, default
	// 15 minutes. A Mount of the same image joins such a pull.
	Abandoned int
	Linger    time.Duration
}

// Defaults of Limits, and RatioFloor.
const (
	DefaultImage         = 32 << 30
	DefaultImageUnpacked = 64 << 30
	DefaultBlob          = 8 << 30
	DefaultRatio         = 200
	DefaultParallel      = 3
	DefaultExpand        = 2
	DefaultAbandoned     = 8
	DefaultLinger        = 15 * time.Minute
	RatioFloor           = 128 << 20
)

// or returns a if it is set, else b.
func or[N int | int64 | time.Duration](a, b N) N {
	if a <= 0 {
		return b
	}
	return a
}

func (l Limits) withDefaults() Limits {
	return Limits{
		Image:         or(l.Image, DefaultImage),
		ImageUnpacked: or(l.ImageUnpacked, DefaultImageUnpacked),
		Layers:        min(or(l.Layers, registry.MaxLayers), registry.MaxLayers),
		Blob:          or(l.Blob, DefaultBlob),
		Unpacked:      or(l.Unpacked, unpack.DefaultSize),
		Ratio:         or(l.Ratio, DefaultRatio),
		Files:         or(l.Files, unpack.DefaultFiles),
		Path:          or(l.Path, unpack.DefaultPath),
		Depth:         or(l.Depth, unpack.DefaultDepth),
		Parallel:      or(l.Parallel, DefaultParallel),
		Expand:        or(l.Expand, DefaultExpand),
		Reserve:       or(l.Reserve, store.DefaultReserve),
		Budget:        or(l.Budget, 0),
		Abandoned:     or(l.Abandoned, DefaultAbandoned),
		Linger:        or(l.Linger, DefaultLinger),
	}
}

// layer returns the limits of a layer that has size bytes in the registry; size is at most l.Blob.
func (l Limits) layer(size int64) unpack.Limits {
	most := l.Unpacked
	if size < most/l.Ratio { // no overflow
		most = min(most, max(size*l.Ratio, RatioFloor))
	}
	return unpack.Limits{Size: most, Files: l.Files, Path: l.Path, Depth: l.Depth}
}

func (c Config) withDefaults() (Config, error) {
	if c.Root == "" {
		return c, errors.New("image: no folder for the image store")
	}
	if c.Log == nil {
		c.Log = slog.New(slog.DiscardHandler)
	}
	if c.Keys == nil {
		c.Keys = func(context.Context, string) ([]byte, error) { return nil, ErrNoKey }
	}
	if c.Measure == nil {
		c.Measure = func(context.Context, string, string) error { return nil }
	}
	if err := c.keys().Check(); err != nil {
		return c, err
	}
	if c.Arch == "" {
		c.Arch = runtime.GOARCH
	}
	c.Limits = c.Limits.withDefaults()
	return c, nil
}

// keys are all that layers are decrypted with.
func (c Config) keys() decrypt.Keys { return decrypt.Keys{ByURI: c.Keys, PrivateKeys: c.PrivateKeys} }
