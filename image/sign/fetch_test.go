// SPDX-License-Identifier: Apache-2.0
// Copyright The Cloister Authors.

package sign

import (
	"encoding/json"
	"strings"
	"testing"

	"github.com/opencontainers/go-digest"
	"github.com/opencontainers/image-spec/specs-go"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
)

// signatureManifest returns the manifest that lists signatures.
func signatureManifest(t testing.TB, layers ...ocispec.Descriptor) []byte {
	t.Helper()
	data, err := json.Marshal(ocispec.Manifest{
		Versioned: specs.Versioned{SchemaVersion: 2},
		MediaType: ocispec.MediaTypeImageManifest,
		Config:    ocispec.Descriptor{MediaType: ocispec.MediaTypeImageConfig, Digest: digest.FromString("{}"), Size: 2},
		Layers:    layers,
	})
	if err != nil {
		t.Fatal(err)
	}
	return data
}

func TestSignatureManifest(t *testing.T) {
	good := ocispec.Descriptor{MediaType: cosignPayload, Digest: digest.FromString("x"), Size: 1}
	change := func(f func(*ocispec.Descriptor)) ocispec.Descriptor {
		d := good
		f(&d)
		return d
	}
	many := make([]ocispec.Descriptor, MaxSignatures+1)
	for i := range many {
		many[i] = good
	}
	other := change(func(d *ocispec.Descriptor) { d.MediaType, d.Digest = "text/plain", "what" })
	for name, tt := range map[string]struct {
		data []byte
		n    int
		want string
	}{
		"one":            {signatureManifest(t, good), 1, ""},
		"none":           {signatureManifest(t), 0, ""},
		"others beside":  {signatureManifest(t, other, good, other), 1, ""},
		"most":           {signatureManifest(t, many[1:]...), MaxSignatures, ""},
		"too many":       {signatureManifest(t, many...), 0, "more than 64 signatures"},
		"too large":      {signatureManifest(t, change(func(d *ocispec.Descriptor) { d.Size = MaxSignatureSize + 1 })), 0, "at most 131072 are allowed"},
		"negative size":  {signatureManifest(t, change(func(d *ocispec.Descriptor) { d.Size = -1 })), 0, "-1 bytes"},
		"bad digest":     {signatureManifest(t, change(func(d *ocispec.Descriptor) { d.Digest = "sha256:../../x" })), 0, "digest"},
		"no digest":      {signatureManifest(t, change(func(d *ocispec.Descriptor) { d.Digest = "" })), 0, "digest"},
		"not JSON":       {[]byte("<html>"), 0, "signature manifest"},
		"an index":       {[]byte(`{"schemaVersion":2,"mediaType":"` + ocispec.MediaTypeImageIndex + `","manifests":[]}`), 0, "not an OCI image manifest"},
		"both":           {[]byte(strings.Replace(string(signatureManifest(t, good)), "{", `{"manifests":[],`, 1)), 0, "not an OCI image manifest"},
		"schema 1":       {[]byte(`{"schemaVersion":1}`), 0, "not an OCI image manifest"},
		"odd annotation": {[]byte(strings.Replace(string(signatureManifest(t, good)), `"size":1}`, `"size":1,"annotations":{"a":1}}`, 1)), 0, "signature manifest"},
	} {
		layers, err := parseSignatureManifest(tt.data)
		if tt.want == "" && (err != nil || len(layers) != tt.n) {
			t.Errorf("%s: %d signatures, %v; want %d", name, len(layers), err, tt.n)
		}
		if tt.want != "" && (err == nil || !strings.Contains(err.Error(), tt.want)) {
			t.Errorf("%s: error %v, want %q", name, err, tt.want)
		}
	}
}

func TestStoredSignature(t *testing.T) {
	for data, want := range map[string]struct {
		simple  string
		payload string
	}{
		"":                           {"", ""},
		"\x90OpenPGP":                {"\x90OpenPGP", ""},
		"\x00simple-signing\n\x90ab": {"\x90ab", ""},
		"\x00sigstore-json\n{\"mimeType\":\"m\",\"payload\":\"eA==\"}": {"", "x"},
		"\x00sigstore-json\n{":   {"\x00sigstore-json\n{", ""},
		"\x00sigstore-json":      {"\x00sigstore-json", ""},
		"\x00of-the-future\nabc": {"\x00of-the-future\nabc", ""},
	} {
		got := parseStored([]byte(data))
		if string(got.simple) != want.simple || (got.sigstore != nil) != (want.payload != "") ||
			(got.sigstore != nil && string(got.sigstore.Payload) != want.payload) {
			t.Errorf("%q: %+v", data, got)
		}
	}
}

func FuzzSignatureManifest(f *testing.F) {
	f.Add(signatureManifest(f, ocispec.Descriptor{
		MediaType: cosignPayload, Digest: digest.FromString("x"), Size: 1,
		Annotations: map[string]string{"dev.cosignproject.cosign/signature": "eA=="},
	}))
	f.Add([]byte(`{"schemaVersion":2,"layers":[{"mediaType":"` + cosignPayload + `","digest":"sha256:00","size":1e3}]}`))
	f.Fuzz(func(t *testing.T, data []byte) {
		layers, err := parseSignatureManifest(data)
		if err != nil {
			return
		}
		if len(layers) > MaxSignatures {
			t.Fatalf("%d signatures", len(layers))
		}
		for _, l := range layers {
			if checkDigest(l.Digest) != nil || l.Size < 0 || l.Size > MaxSignatureSize {
				t.Fatalf("%+v", l)
			}
		}
	})
}
