// SPDX-License-Identifier: Apache-2.0
// Copyright The Cloister Authors.

package registry

import (
	"context"
	"crypto/x509"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net/http"

	"github.com/containerd/containerd/v2/core/content"
	"github.com/containerd/containerd/v2/core/remotes"
	"github.com/containerd/log"
	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
	"github.com/sirupsen/logrus"
)

// MaxManifestSize bounds manifests, indexes and image configs, in bytes.
const MaxManifestSize = 4 << 20

// Config is what a Client needs.
type Config struct {
	// CA holds the certificates that registries are checked against; nil trusts none.
	CA *x509.CertPool
	// PlainLoopback lets a registry on a loopback address be spoken to without TLS, if it has none.
	PlainLoopback bool
	// Auth holds credentials; nil means none.
	Auth *Auth
	// HTTPSProxy is the URL of a proxy, NoProxy lists what is reached without it; see golang.org/x/net/http/httpproxy. The
	// certificate of a proxy with https is checked against CA, also on the way to an insecure registry. A registry that is
	// spoken to without TLS is reached through the proxy as well, which then sees the credentials like anyone on the way.
	HTTPSProxy, NoProxy string
	// UserAgent is sent with requests.
	UserAgent string
	// Retry says how to go on after failures.
	Retry Retry
	// Registries says where images are to be had; nil means where their references say. See ParseRegistries.
	Registries *Registries
	// Log gets a line for each failure that is followed by another attempt. nil drops it.
	Log *slog.Logger
}

// Client talks to registries. It may be used from many goroutines.
type Client struct {
	auth       *Auth
	http       *http.Client
	header     http.Header
	retry      Retry
	registries *Registries
	log        *slog.Logger

	grants grants
}

// New returns a client. It opens no connection.
func New(c Config) *Client {
	transport := newBySize(newTransport(c.CA, c.HTTPSProxy, c.NoProxy), newTransport(c.CA, c.HTTPSProxy, c.NoProxy))
	rt := strict{next: transport, plainLoopback: c.PlainLoopback, insecure: c.Registries.insecureHosts()}
	if len(rt.insecure) > 0 {
		rt.unverified = newUnverified(c.CA, c.HTTPSProxy, c.NoProxy)
	}
	return newClientWith(c, rt)
}

// newClientWith returns a client whose requests are made by rt.
func newClientWith(c Config, rt http.RoundTripper) *Client {
	client := newHTTPClient(rt)
	header := http.Header{"User-Agent": {c.UserAgent}}
	l := c.Log
	if l == nil {
		l = slog.New(slog.DiscardHandler)
	}
	return &Client{
		auth:       c.Auth,
		http:       client,
		header:     header,
		retry:      c.Retry.withDefaults(),
		registries: c.Registries,
		log:        l,
	}
}

// Close drops idle connections.
func (c *Client) Close() { c.http.CloseIdleConnections() }

// Resolve asks the registry for the manifest or index that a reference stands for. A reference with a digest is not
// asked for: its digest is the answer, and the descriptor has no size and no media type then.
func (c *Client) Resolve(ctx context.Context, ref Reference) (ocispec.Descriptor, error) {
	if ref.Digest != "" {
		return ocispec.Descriptor{Digest: ref.Digest}, nil
	}
	var desc ocispec.Descriptor
	err := c.each(ctx, ref, func(ctx context.Context, place Reference) (err error) {
		_, desc, err = c.resolver(place).Resolve(withLimit(quiet(ctx), MaxManifestSize), place.String())
		if err != nil {
			return err
		}
		return checkDigest(desc.Digest)
	})
	if err != nil {
		return ocispec.Descriptor{}, err
	}
	return ocispec.Descriptor{Digest: desc.Digest}, nil
}

// places returns where the image of a reference is to be looked for, in that order.
func (c *Client) places(ctx context.Context, ref Reference) ([]Reference, error) {
	places, err := c.registries.Places(ref)
	if err != nil {
		return nil, fmt.Errorf("registry: %s: %w", ref, err)
	}
	if ctx.Value(noMirrors{}) != nil {
		return places[len(places)-1:], nil
	}
	return places, nil
}

// noMirrors is the context key of WithoutMirrors.
type noMirrors struct{}

// WithoutMirrors makes requests of ctx go to the registry itself.
func WithoutMirrors(ctx context.Context) context.Context {
	return context.WithValue(ctx, noMirrors{}, true)
}

// Mirrored tells whether there are mirrors for a reference.
func (c *Client) Mirrored(ref Reference) bool {
	places, err := c.registries.Places(ref)
	return err == nil && len(places) > 1
}

// each calls f with one place after the other until it succeeds. The last one's error is returned, with the others' texts.
func (c *Client) each(ctx context.Context, ref Reference, f func(ctx context.Context, place Reference) error) error {
	places, err := c.places(ctx, ref)
	if err != nil {
		return err
	}
	var errs []error
	for i, place := range places {
		attempts := c.retry.Attempts
		if i < len(places)-1 {
			attempts = min(attempts, mirrorAttempts)
		}
		err := c.again(ctx, place.String(), attempts, func(ctx context.Context) error { return f(ctx, place) })
		if err == nil {
			return nil
		}
		errs = append(errs, Explain(place, err))
		if ctx.Err() != nil {
			break
		}
	}
	return errors.Join(errs...)
}

// Manifest returns the bytes of a manifest or index; they have the digest. ref gives registry and repository.
func (c *Client) Manifest(ctx context.Context, ref Reference, d digest.Digest) ([]byte, error) {
	// The media type only chooses the endpoint; what the bytes are is read from them.
	desc := ocispec.Descriptor{MediaType: ocispec.MediaTypeImageManifest, Digest: d, Size: -1}
	return c.readAll(ctx, ref, desc, MaxManifestSize)
}

// small returns a whole blob of at most MaxManifestSize bytes, checked against its descriptor's size and digest.
func (c *Client) small(ctx context.Context, ref Reference, desc ocispec.Descriptor) ([]byte, error) {
	if desc.Size < 0 || desc.Size > MaxManifestSize {
		return nil, fmt.Errorf("blob %s has %d bytes, at most %d are allowed", desc.Digest, desc.Size, MaxManifestSize)
	}
	return c.readAll(ctx, ref, desc, desc.Size)
}

// readAll returns all of a blob whose Size is -1 where it is not known. A place that has something else under the same
// digest is like one that has nothing.
func (c *Client) readAll(ctx context.Context, ref Reference, desc ocispec.Descriptor, limit int64) ([]byte, error) {
	if err := checkDigest(desc.Digest); err != nil {
		return nil, err
	}
	var data []byte
	err := c.each(ctx, ref, func(ctx context.Context, place Reference) error {
		rc, err := c.fetch(ctx, place, desc, limit)
		if err != nil {
			return err
		}
		defer rc.Close() // read to the end or failed
		data, err = io.ReadAll(&verified{rc: rc, want: desc.Digest, size: desc.Size, hash: desc.Digest.Algorithm().Hash()})
		return err
	})
	if err != nil {
		return nil, err
	}
	return data, nil
}

// fetch makes one attempt to get desc, whose Size is -1 where it is not known. The request is sent at the first Read.
func (c *Client) fetch(ctx context.Context, ref Reference, desc ocispec.Descriptor, limit int64) (io.ReadCloser, error) {
	fetcher, err := c.resolver(ref).Fetcher(quiet(ctx), ref.String())
	if err != nil {
		return nil, err
	}
	size := desc.Size
	if size < 0 {
		size = limit
	}
	// Only these three fields: a descriptor's URLs would be followed to any host, with the system's certificates.
	bounded := withLimit(quiet(ctx), max(limit, MaxManifestSize)) // an error's answer may be larger than a small blob
	return fetcher.Fetch(bounded, ocispec.Descriptor{MediaType: desc.MediaType, Digest: desc.Digest, Size: size})
}

// Pusher returns what uploads blobs and manifests under a reference with a tag. The build host uses it.
func (c *Client) Pusher(ctx context.Context, ref Reference) (remotes.Pusher, error) {
	pusher, err := c.resolver(ref).Pusher(quiet(ctx), ref.String())
	if err != nil {
		return nil, Explain(ref, err)
	}
	return quietPusher{pusher}, nil
}

type quietPusher struct{ remotes.Pusher }

func (p quietPusher) Push(ctx context.Context, d ocispec.Descriptor) (content.Writer, error) {
	return p.Pusher.Push(quiet(ctx), d)
}

// quiet keeps containerd's own log lines off the console, which the host reads: errors say it all.
func quiet(ctx context.Context) context.Context {
	l := logrus.New()
	l.SetOutput(io.Discard)
	return log.WithLogger(ctx, logrus.NewEntry(l))
}
