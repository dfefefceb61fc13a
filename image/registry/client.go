// SPDX-License-Identifier: Apache-2.0
// Copyright The Cloister Authors.

package registry

import (
	"context"
	"crypto/x509"
	"fmt"
	"io"
	"net/http"

	"github.com/containerd/containerd/v2/core/content"
	"github.com/containerd/containerd/v2/core/remotes"
	"github.com/containerd/containerd/v2/core/remotes/docker"
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
	// HTTPSProxy is the URL of a proxy, NoProxy lists what is reached without it; see golang.org/x/net/http/httpproxy.
	HTTPSProxy, NoProxy string
	// UserAgent is sent with requests.
	UserAgent string
}

// Client talks to registries. It may be used from many goroutines.
type Client struct {
	resolver remotes.Resolver
	http     *http.Client
}

// New returns a client. It opens no connection.
func New(c Config) *Client {
	client := newHTTPClient(strict{newTransport(c.CA, c.HTTPSProxy, c.NoProxy), c.PlainLoopback})
	header := http.Header{"User-Agent": {c.UserAgent}}
	authorizer := docker.NewDockerAuthorizer(
		docker.WithAuthClient(client),
		docker.WithAuthHeader(header),
		docker.WithAuthCreds(func(host string) (string, string, error) {
			user, password := c.Auth.lookup(host)
			return user, password, nil
		}))
	hosts := func(host string) ([]docker.RegistryHost, error) {
		if host == "docker.io" {
			host = dockerHubHost
		}
		return []docker.RegistryHost{{
			Client:       client,
			Authorizer:   authorizer,
			Host:         host,
			Scheme:       "https",
			Path:         "/v2",
			Capabilities: docker.HostCapabilityPull | docker.HostCapabilityResolve | docker.HostCapabilityPush,
		}}, nil
	}
	return &Client{
		resolver: docker.NewResolver(docker.ResolverOptions{Hosts: hosts, Headers: header}),
		http:     client,
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
	_, desc, err := c.resolver.Resolve(withLimit(quiet(ctx), MaxManifestSize), ref.String())
	if err != nil {
		return ocispec.Descriptor{}, Explain(ref, err)
	}
	if err := checkDigest(desc.Digest); err != nil {
		return ocispec.Descriptor{}, fmt.Errorf("resolve %s: %w", ref, err)
	}
	return ocispec.Descriptor{Digest: desc.Digest}, nil
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

func (c *Client) readAll(ctx context.Context, ref Reference, desc ocispec.Descriptor, limit int64) ([]byte, error) {
	rc, err := c.open(ctx, ref, desc, limit)
	if err != nil {
		return nil, err
	}
	defer rc.Close() // read to the end or failed
	data, err := io.ReadAll(rc)
	if err != nil {
		return nil, Explain(ref, err)
	}
	return data, nil
}

// Blob streams a blob. Its reader returns io.EOF only when as many bytes as the descriptor says have come and have the
// descriptor's digest; until then nothing of it is verified.
func (c *Client) Blob(ctx context.Context, ref Reference, desc ocispec.Descriptor) (io.ReadCloser, error) {
	return c.open(ctx, ref, desc, desc.Size)
}

// open fetches desc, whose Size is -1 where it is not known.
func (c *Client) open(ctx context.Context, ref Reference, desc ocispec.Descriptor, limit int64) (io.ReadCloser, error) {
	if err := checkDigest(desc.Digest); err != nil {
		return nil, err
	}
	fetcher, err := c.resolver.Fetcher(quiet(ctx), ref.String())
	if err != nil {
		return nil, Explain(ref, err)
	}
	size := desc.Size
	if size < 0 {
		size = limit
	}
	// Only these three fields: a descriptor's URLs would be followed to any host, with the system's certificates.
	bounded := withLimit(quiet(ctx), max(limit, MaxManifestSize)) // a token on the way may be larger than a small blob
	rc, err := fetcher.Fetch(bounded, ocispec.Descriptor{MediaType: desc.MediaType, Digest: desc.Digest, Size: size})
	if err != nil {
		return nil, Explain(ref, err)
	}
	return &verified{ref: ref, rc: rc, want: desc.Digest, size: desc.Size, hash: desc.Digest.Algorithm().Hash()}, nil
}

// Pusher returns what uploads blobs and manifests under a reference with a tag. The build host uses it.
func (c *Client) Pusher(ctx context.Context, ref Reference) (remotes.Pusher, error) {
	pusher, err := c.resolver.Pusher(quiet(ctx), ref.String())
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
