// SPDX-License-Identifier: Apache-2.0
// Copyright The Cloister Authors.

package image

import (
	"context"
	"crypto/x509"
	"errors"
	"log/slog"
	"runtime"

	"github.com/cloister-cc/cloister/image/decrypt"
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
	// Root is the folder of the image store, on scratch space; New empties it. Keep its path short: see store.Open.
	Root string
	// CA holds the certificates that registries are checked against, instead of any system pool. nil trusts none.
	CA *x509.CertPool
	// PlainLoopback lets a registry on this machine's loopback addresses be spoken to without TLS, if it has none.
	PlainLoopback bool
	// HTTPSProxy is the URL of the proxy by which registries are reached, NoProxy lists with commas what is reached without.
	// Empty means no proxy; the environment is not looked at.
	HTTPSProxy, NoProxy string
	// Auth holds the bytes of an auth.json, see registry.ParseAuth; empty means no credentials. The caller may wipe it
	// once New has returned.
	Auth []byte
	// Keys returns the key of a kbs:/// URI, ErrNoKey if there is none. The service wipes what it gets. nil has no keys.
	Keys func(ctx context.Context, uri string) ([]byte, error)
	// Verify decides whether the image of that digest may be used for a reference; an error refuses it. It is asked at
	// every Mount, cached or not, before a layer is fetched. The reference is the one of Mount in its canonical form, the
	// digest that of the image's index or manifest. nil means that no signature policy is configured: every image that
	// the registry offers is used.
	Verify func(ctx context.Context, reference, digest string) error
	// Log gets one line for each image pulled. nil drops it.
	Log *slog.Logger
	// PauseRootfs is the folder of the built-in pause image's root file system.
	PauseRootfs string
	// Limits bound what an image may cost.
	Limits Limits
	// Arch is the GOARCH of images to take; empty means this program's.
	Arch string
	// Mounts are the kernel's mount calls; zero fields mean the real ones.
	Mounts store.Mounts
}

// Limits bound an image. Zero fields take their defaults. The number of layers (127) and the size of manifests,
// indexes and configs (4 MiB) are fixed, see package registry.
type Limits struct {
	// Blob is the most bytes that a layer may have in the registry, default 8 GiB.
	Blob int64
	// Unpacked is the most bytes that a layer may have uncompressed, default 16 GiB.
	Unpacked int64
	// Ratio is how many times its size in the registry a layer may have uncompressed, default 200. Layers of up to
	// RatioFloor bytes uncompressed are not asked.
	Ratio int64
	// Files is the number of entries of a layer, default 500000.
	Files int
	// Parallel is the number of layers that are fetched at the same time, over all images, default 3.
	Parallel int
}

// Defaults of Limits, and RatioFloor.
const (
	DefaultBlob     = 8 << 30
	DefaultRatio    = 200
	DefaultParallel = 3
	RatioFloor      = 128 << 20
)

func (l Limits) withDefaults() Limits {
	if l.Blob <= 0 {
		l.Blob = DefaultBlob
	}
	if l.Unpacked <= 0 {
		l.Unpacked = unpack.DefaultSize
	}
	if l.Ratio <= 0 {
		l.Ratio = DefaultRatio
	}
	if l.Files <= 0 {
		l.Files = unpack.DefaultFiles
	}
	if l.Parallel <= 0 {
		l.Parallel = DefaultParallel
	}
	return l
}

// layer returns the limits of a layer that has size bytes in the registry; size is at most l.Blob.
func (l Limits) layer(size int64) unpack.Limits {
	most := l.Unpacked
	if size < most/l.Ratio { // no overflow
		most = min(most, max(size*l.Ratio, RatioFloor))
	}
	return unpack.Limits{Size: most, Files: l.Files}
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
	if c.Verify == nil {
		c.Verify = func(context.Context, string, string) error { return nil }
	}
	if c.Arch == "" {
		c.Arch = runtime.GOARCH
	}
	c.Limits = c.Limits.withDefaults()
	return c, nil
}
