// SPDX-License-Identifier: Apache-2.0
// Copyright The Cloister Authors.

package imagecrypt

import (
	"context"
	"encoding/asn1"
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"math/big"
	"slices"
	"strings"

	"github.com/opencontainers/go-digest"

	"github.com/cloister-cc/cloister/image/decrypt"
)

// Report is what can be seen of an image without any key. Nothing in it is authenticated but the digests.
type Report struct {
	// Source is the location as it was given.
	Source string `json:"source"`
	// Digest is that of the index, or of the manifest if there is none. Index says which.
	Digest digest.Digest `json:"digest"`
	Index  bool          `json:"index"`
	// Images are those for a platform, Skipped the digests of an index's entries that are no images.
	Images  []ImageReport   `json:"images"`
	Skipped []digest.Digest `json:"skipped,omitempty"`
}

// ImageReport is an image for one platform.
type ImageReport struct {
	// Platform is os/architecture[/variant], empty where the image is in no index.
	Platform string        `json:"platform,omitempty"`
	Digest   digest.Digest `json:"digest"`
	Config   digest.Digest `json:"config"`
	Layers   []LayerReport `json:"layers"`
}

// LayerReport is one layer, the lowest first.
type LayerReport struct {
	MediaType string        `json:"mediaType"`
	Digest    digest.Digest `json:"digest"`
	// Size is that of the layer as it is stored, in bytes.
	Size      int64 `json:"size"`
	Encrypted bool  `json:"encrypted"`
	// Recipients are those who can decrypt; any of them is enough.
	Recipients []RecipientReport `json:"recipients,omitempty"`
	// Problem says what is wrong with the annotations of an encrypted layer.
	Problem string `json:"problem,omitempty"`
}

// RecipientReport is who can decrypt a layer, as far as that is written there.
type RecipientReport struct {
	// Protocol is provider.attestation-agent, jwe, pkcs7, pgp or another of ocicrypt's.
	Protocol string `json:"protocol"`
	// Name is a key URI, a PGP key ID, a certificate's serial number or a JWE key ID; empty if it cannot be known.
	Name string `json:"name,omitempty"`
}

// Inspect reads an image's manifests and shows which layers are encrypted and for whom. It reads no layer.
func Inspect(ctx context.Context, l Location, a Access) (_ *Report, err error) {
	s, err := openSource(l, a)
	if err != nil {
		return nil, err
	}
	defer func() { err = errors.Join(err, s.Close()) }()
	g, err := readGraph(ctx, s, nil)
	if err != nil {
		return nil, fmt.Errorf("read %s: %w", l, err)
	}
	report := &Report{Source: l.String(), Digest: g.root.Digest, Index: g.index != nil}
	for _, d := range g.skipped {
		report.Skipped = append(report.Skipped, d.Digest)
	}
	for _, img := range g.images {
		r := ImageReport{Platform: platformName(img.desc.Platform), Digest: img.desc.Digest, Config: img.manifest.Config.Digest}
		for _, l := range img.manifest.Layers {
			layer := LayerReport{MediaType: l.MediaType, Digest: l.Digest, Size: l.Size, Encrypted: encrypted(l)}
			if layer.Encrypted {
				layer.Recipients, layer.Problem = recipientsOf(l.Annotations)
			}
			r.Layers = append(r.Layers, layer)
		}
		report.Images = append(report.Images, r)
	}
	return report, nil
}

// recipientsOf reads for whom a layer is encrypted, in a fixed order.
func recipientsOf(annotations map[string]string) (out []RecipientReport, problem string) {
	if annotations[decrypt.PublicAnnotation] == "" {
		problem = "no annotation " + decrypt.PublicAnnotation
	}
	for name, value := range annotations {
		protocol, ok := strings.CutPrefix(name, decrypt.KeysPrefix)
		if !ok {
			continue
		}
		names, err := namesOf(protocol, value)
		if err != nil {
			problem = fmt.Sprintf("%.60s: %v", protocol, err)
		}
		for _, n := range names {
			out = append(out, RecipientReport{Protocol: protocol, Name: n})
		}
	}
	if len(out) == 0 && problem == "" {
		problem = "no annotation " + decrypt.KeysPrefix + "*"
	}
	slices.SortFunc(out, func(a, b RecipientReport) int {
		return strings.Compare(a.Protocol+" "+a.Name, b.Protocol+" "+b.Name)
	})
	return out, problem
}

// namesOf returns one name for each recipient, empty ones for those that cannot be known.
func namesOf(protocol, value string) ([]string, error) {
	if decrypt.KeysPrefix+protocol == decrypt.KeysAnnotation {
		return decrypt.KeyURIs(map[string]string{decrypt.KeysAnnotation: value})
	}
	wrapped, err := wrappedKeys(value)
	if err != nil {
		return []string{""}, err
	}
	var names []string
	for _, w := range wrapped {
		var some []string
		switch protocol {
		case JWE:
			some = jweNames(w)
		case PKCS7:
			some = pkcs7Names(w)
		case PGP:
			some, _ = wrapper(PGP).GetRecipients(base64.StdEncoding.EncodeToString(w)) // none where it cannot be read
		}
		if len(some) == 0 {
			some = []string{""}
		}
		names = append(names, some[:min(len(some), maxRecipients)]...)
	}
	return names, nil
}

// jweNames returns the key IDs in the header of each recipient (RFC 7516, section 7.2).
func jweNames(data []byte) []string {
	type header struct {
		KeyID string `json:"kid"`
	}
	var w struct {
		Header     header `json:"header"`
		Recipients []struct {
			Header header `json:"header"`
		} `json:"recipients"`
	}
	if json.Unmarshal(data, &w) != nil {
		return nil
	}
	names := []string{w.Header.KeyID}
	for i, r := range w.Recipients {
		if i == 0 {
			names = nil
		}
		names = append(names, r.Header.KeyID)
	}
	return names
}

// pkcs7Names returns the serial numbers of the recipients' certificates (EnvelopedData of RFC 2315, section 10.1).
func pkcs7Names(data []byte) []string {
	var info struct {
		Type    asn1.ObjectIdentifier
		Content asn1.RawValue `asn1:"explicit,tag:0"`
	}
	type recipient struct {
		Version int
		Issuer  struct {
			Name   asn1.RawValue
			Serial *big.Int
		}
		Algorithm asn1.RawValue
		Key       []byte
	}
	var content struct {
		Version    int
		Recipients []recipient `asn1:"set"`
		Encrypted  asn1.RawValue
	}
	if _, err := asn1.Unmarshal(data, &info); err != nil {
		return nil
	}
	if _, err := asn1.Unmarshal(info.Content.Bytes, &content); err != nil {
		return nil
	}
	var names []string
	for _, r := range content.Recipients {
		names = append(names, fmt.Sprintf("serial %.80s", r.Issuer.Serial.String()))
	}
	return names
}

// needs says for whom a layer is encrypted, for an error message.
func needs(annotations map[string]string) []string {
	recipients, _ := recipientsOf(annotations)
	var out []string
	for _, r := range recipients[:min(len(recipients), maxRecipients)] {
		protocol := fmt.Sprintf("%.40s", r.Protocol)
		if decrypt.KeysPrefix+protocol == decrypt.KeysAnnotation {
			out = append(out, "the key "+r.Name)
		} else {
			out = append(out, strings.TrimSpace("a private key of "+protocol+" "+r.Name))
		}
	}
	return slices.Compact(out)
}
