// SPDX-License-Identifier: Apache-2.0
// Copyright The Cloister Authors.

package sign

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"strconv"
	"strings"

	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
	"go.podman.io/image/v5/docker/reference"
)

// cosignPayload is the media type of the layers of a signature manifest that are signatures.
const cosignPayload = "application/vnd.dev.cosign.simplesigning.v1+json"

// sigstorePrefix begins a stored signature in sigstore's format, see "signature protocols" of containers/image.
const sigstorePrefix = "\x00sigstore-json\n"

// rawSignature is a signature of which nothing is verified.
type rawSignature struct {
	// simple is an OpenPGP message, unless sigstore is there.
	simple   []byte
	sigstore *sigstoreSignature
}

// sigstoreSignature is what follows sigstorePrefix in a stored signature.
type sigstoreSignature struct {
	MIMEType    string            `json:"mimeType"`
	Payload     []byte            `json:"payload"`
	Annotations map[string]string `json:"annotations"`
}

// manifest returns the bytes of the manifest in question; they have its digest.
func (r request) manifest(ctx context.Context) ([]byte, error) {
	ref, err := reference.WithDigest(reference.TrimNamed(r.ref), r.digest)
	if err != nil {
		return nil, fmt.Errorf("manifest: %w", err)
	}
	data, err := readAll(MaxManifestSize)(r.src.Manifest(ctx, ref.String()))
	if err != nil {
		return nil, fmt.Errorf("manifest: %w", err)
	}
	return data, checkContent(data, r.digest)
}

// signatures returns every signature that the image has, at most twice MaxSignatures.
func (p *Policy) signatures(ctx context.Context, r request) ([]rawSignature, error) {
	all, err := p.fromLookaside(ctx, r)
	if err != nil {
		return nil, err
	}
	if r.need == needSigstore && p.lookaside.attachments(r.scopeOf) {
		attached, err := r.attached(ctx)
		if err != nil {
			return nil, err
		}
		all = append(all, attached...)
	}
	return all, nil
}

// fromLookaside fetches signature-1, signature-2 and so on until there is none.
func (p *Policy) fromLookaside(ctx context.Context, r request) ([]rawSignature, error) {
	base, err := p.lookaside.base(r)
	if err != nil || base == "" {
		return nil, err
	}
	var all []rawSignature
	for {
		url := base + "/signature-" + strconv.Itoa(len(all)+1)
		data, err := readAll(MaxSignatureSize)(r.src.Lookaside(ctx, url))
		if errors.Is(err, ErrNotFound) {
			return all, nil
		}
		if err != nil {
			return nil, fmt.Errorf("%s: %w", url, err)
		}
		if len(all) == MaxSignatures {
			return nil, fmt.Errorf("%s has more than %d signatures", base, MaxSignatures)
		}
		all = append(all, parseStored(data))
	}
}

// parseStored reads a signature as a lookaside store keeps it. What is not in sigstore's format is taken for an OpenPGP
// message, and turns out to be none later: a bad signature must not hide a good one.
func parseStored(data []byte) rawSignature {
	if rest, ok := bytes.CutPrefix(data, []byte(sigstorePrefix)); ok {
		var s sigstoreSignature
		if json.Unmarshal(rest, &s) == nil {
			return rawSignature{sigstore: &s}
		}
	}
	return rawSignature{simple: bytes.TrimPrefix(data, []byte("\x00simple-signing\n"))}
}

// attached fetches the signatures that the registry keeps beside the image, where cosign puts them: the layers of a
// manifest that has a tag made of the image's digest.
func (r request) attached(ctx context.Context) ([]rawSignature, error) {
	ref, err := reference.WithTag(reference.TrimNamed(r.ref), strings.Replace(r.digest.String(), ":", "-", 1)+".sig")
	if err != nil {
		return nil, nil //nolint:nilerr // a sha512 digest makes no tag, so that no such signatures can exist
	}
	data, err := readAll(maxSignatureManifest)(r.src.Manifest(ctx, ref.String()))
	if errors.Is(err, ErrNotFound) {
		return nil, nil
	}
	if err != nil {
		return nil, fmt.Errorf("%s: %w", ref, err)
	}
	layers, err := parseSignatureManifest(data)
	if err != nil {
		return nil, fmt.Errorf("%s: %w", ref, err)
	}
	all := make([]rawSignature, 0, len(layers))
	for _, layer := range layers {
		blob, err := reference.WithDigest(reference.TrimNamed(r.ref), layer.Digest)
		if err != nil {
			return nil, fmt.Errorf("%s: %w", ref, err)
		}
		payload, err := readAll(layer.Size)(r.src.Blob(ctx, blob.String(), layer.Size))
		if err == nil {
			err = checkContent(payload, layer.Digest)
		}
		if err != nil {
			return nil, fmt.Errorf("%s: signature: %w", ref, err)
		}
		all = append(all, rawSignature{sigstore: &sigstoreSignature{
			MIMEType: layer.MediaType, Payload: payload, Annotations: layer.Annotations,
		}})
	}
	return all, nil
}

// parseSignatureManifest returns the layers of a signature manifest that are signatures, at most MaxSignatures, each of
// at most MaxSignatureSize bytes.
func parseSignatureManifest(data []byte) ([]ocispec.Descriptor, error) {
	var m struct {
		ocispec.Manifest
		Manifests json.RawMessage `json:"manifests"`
	}
	if err := json.Unmarshal(data, &m); err != nil {
		return nil, fmt.Errorf("signature manifest: %w", err)
	}
	if m.SchemaVersion != 2 || m.Manifests != nil || (m.MediaType != "" && m.MediaType != ocispec.MediaTypeImageManifest) {
		return nil, errors.New("signature manifest is not an OCI image manifest")
	}
	layers := make([]ocispec.Descriptor, 0, min(len(m.Layers), MaxSignatures))
	for _, layer := range m.Layers {
		if layer.MediaType != cosignPayload {
			continue
		}
		if len(layers) == MaxSignatures {
			return nil, fmt.Errorf("signature manifest has more than %d signatures", MaxSignatures)
		}
		if err := checkDigest(layer.Digest); err != nil {
			return nil, fmt.Errorf("signature manifest: %w", err)
		}
		if layer.Size < 0 || layer.Size > MaxSignatureSize {
			return nil, fmt.Errorf("signature manifest has a signature of %d bytes, at most %d are allowed", layer.Size, MaxSignatureSize)
		}
		layers = append(layers, layer)
	}
	return layers, nil
}

// readAll returns a function that reads what a Source gives, and fails where that is more than limit bytes.
func readAll(limit int64) func(io.ReadCloser, error) ([]byte, error) {
	return func(rc io.ReadCloser, err error) ([]byte, error) {
		if err != nil {
			return nil, err
		}
		defer rc.Close()
		data, err := io.ReadAll(io.LimitReader(rc, limit+1))
		if err != nil {
			return nil, err
		}
		if int64(len(data)) > limit {
			return nil, fmt.Errorf("larger than %d bytes", limit)
		}
		return data, nil
	}
}

// checkContent makes sure that data has digest d, which checkDigest has accepted.
func checkContent(data []byte, d digest.Digest) error {
	if got := d.Algorithm().FromBytes(data); got != d {
		return fmt.Errorf("content has digest %s, want %s", got, d)
	}
	return nil
}
