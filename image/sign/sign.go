// SPDX-License-Identifier: Apache-2.0
// Copyright The Cloister Authors.

package sign

import (
	"bytes"
	"context"
	_ "crypto/sha256" // go-digest knows the algorithms that are linked
	_ "crypto/sha512"
	"errors"
	"fmt"
	"io"
	"slices"
	"strconv"
	"strings"
	"unicode"

	"github.com/opencontainers/go-digest"
	"go.podman.io/image/v5/docker/reference"
)

// BuildTag is the tag that a program which verifies signatures is built with. One without it refuses to load a policy
// that asks for signatures.
const BuildTag = "containers_image_openpgp"

var (
	// ErrRejected means that the policy does not allow the image. The text names the policy's scope and the reason.
	ErrRejected = errors.New("image signature policy refuses the image")
	// ErrUnsigned means that the image has no signature that the policy accepts for it. Such an error is ErrRejected, too.
	ErrUnsigned = fmt.Errorf("%w", ErrRejected)
	// ErrNotFound is what a Source's errors wrap when what was asked for is not there. It ends a list of signatures.
	ErrNotFound = errors.New("not found")
)

// Limits on what is read. A larger policy is an error of New, anything else one of Check.
const (
	// MaxPolicySize bounds policy.json, the lookaside configuration, and each key, in bytes.
	MaxPolicySize = 1 << 20
	// MaxManifestSize bounds the manifest or index of an image, in bytes.
	MaxManifestSize = 4 << 20
	// MaxSignatureSize bounds a signature or its payload, in bytes; compressed ones may have as many again unpacked.
	MaxSignatureSize = 128 << 10
	// MaxSignatures bounds the signatures of an image in a lookaside store, and those in its registry.
	MaxSignatures = 64
	// maxSignatureManifest bounds the manifest that lists the signatures in a registry, with their annotations.
	maxSignatureManifest = 1 << 20
	// maxReasonSize bounds the text of a rejection, of which a registry determines a part.
	maxReasonSize = 1 << 10
)

// Source fetches what a policy asks for. References have the form host/repository:tag or host/repository@digest. An
// error that wraps ErrNotFound means that there is nothing under that name; every other one is a failure. Readers are
// read up to a limit, and closed. What comes from them is not trusted and need not have been checked.
type Source interface {
	// Manifest opens the manifest or index of a reference.
	Manifest(ctx context.Context, ref string) (io.ReadCloser, error)
	// Blob opens the blob that a reference with a digest names; its manifest says that it has size bytes.
	Blob(ctx context.Context, ref string, size int64) (io.ReadCloser, error)
	// Lookaside opens the body of a GET of an https URL.
	Lookaside(ctx context.Context, url string) (io.ReadCloser, error)
}

// Config is what a Policy is made of.
type Config struct {
	// Policy holds the bytes of a policy.json. Empty means that every image is refused.
	//
	// A field of key data is base64, as containers-policy.json(5) says, or plain PEM or OpenPGP armor: those begin with
	// "-----BEGIN ", which base64 cannot.
	Policy []byte
	// Keys holds the files that the policy names by paths. A name is the whole string of the policy, see KeyNames.
	Keys map[string][]byte
	// Lookaside holds the bytes of a YAML file as containers-registries.d(5) describes it. Only https URLs are allowed.
	// Empty means that there is no lookaside store. Unlike there, a registry is asked for sigstore signatures unless
	// use-sigstore-attachments is false.
	Lookaside []byte
	// TempDir is a folder for the signatures that are being verified, best on tmpfs. It must exist where the policy asks
	// for signatures.
	TempDir string
}

// Policy decides about images. It may be used from many goroutines. The zero value, and nil, refuse every image.
type Policy struct {
	rules     *rules
	lookaside lookaside
	engine    *engine
}

// New reads a policy. It fails where a policy is malformed, has fields or kinds of requirements that are not known,
// names a key that is not in c.Keys, or has a key that cannot be read.
func New(c Config) (*Policy, error) {
	stores, err := parseLookaside(c.Lookaside)
	if err != nil {
		return nil, fmt.Errorf("lookaside configuration: %w", err)
	}
	if len(bytes.TrimSpace(c.Policy)) == 0 {
		return &Policy{}, nil
	}
	r, err := parseRules(c.Policy)
	if err != nil {
		return nil, fmt.Errorf("image policy: %w", err)
	}
	e, err := newEngine(r, c.Keys, c.TempDir)
	if err != nil {
		return nil, fmt.Errorf("image policy: %w", err)
	}
	return &Policy{rules: r, lookaside: stores, engine: e}, nil
}

// KeyNames returns the names of the key files that a policy.json refers to, without duplicates: what New wants in
// Config.Keys.
func KeyNames(policy []byte) ([]string, error) {
	if len(bytes.TrimSpace(policy)) == 0 {
		return nil, nil
	}
	r, err := parseRules(policy)
	if err != nil {
		return nil, fmt.Errorf("image policy: %w", err)
	}
	names, err := r.keyNames()
	if err != nil {
		return nil, fmt.Errorf("image policy: %w", err)
	}
	return names, nil
}

// Check decides whether the image with a manifest of that digest may be used for a reference; nil means that it may.
// The error wraps ErrRejected, and maybe ErrUnsigned, where the policy does not allow it. Every other error means that something could not be
// fetched, or was too large or malformed where it came from: the image may not be used either, and a retry may help.
//
// The reference has the form host/repository with a tag or digest; where it has both, the tag does not count. A digest
// must be manifestDigest.
func (p *Policy) Check(ctx context.Context, ref string, manifestDigest digest.Digest, src Source) error {
	if strings.HasPrefix(ref, "[") {
		return p.checkAddress(ref, manifestDigest)
	}
	named, err := parseReference(ref)
	if err != nil {
		return err
	}
	return p.check(ctx, request{ref: named, scopeOf: named, digest: manifestDigest, src: src})
}

// CheckImage is Check for what may be an index: a signature on it, as cosign makes them, is as good as one on the manifest
// that is used of it, as podman wants them. What is asked for is decided by the reference in either case. manifest returns
// the digest of the manifest, d itself if there is no index. It is called only where signatures are asked for and d has
// none that is accepted.
func (p *Policy) CheckImage(ctx context.Context, ref string, d digest.Digest, manifest func(context.Context) (digest.Digest, error), src Source) error {
	refused := p.Check(ctx, ref, d, src)
	if !errors.Is(refused, ErrUnsigned) {
		return refused
	}
	used, err := manifest(ctx)
	if err != nil { // which is no refusal: a retry may help
		return fmt.Errorf("verify %s: manifest: %w (%s)", ref, err, refused.Error())
	}
	if used == d {
		return refused
	}
	named, err := parseReference(ref)
	if err != nil {
		return err
	}
	r := request{ref: named, scopeOf: named, digest: used, src: src}
	if _, ok := named.(reference.Digested); ok {
		if r.ref, err = reference.WithDigest(reference.TrimNamed(named), used); err != nil {
			return fmt.Errorf("verify %s: %w", ref, err)
		}
	}
	err = p.check(ctx, r)
	if errors.Is(err, ErrRejected) {
		return fmt.Errorf("%w; and its manifest %s: %w", refused, used, err)
	}
	return err
}

// check decides on a request whose reference is sound.
func (p *Policy) check(ctx context.Context, r request) error {
	if err := checkDigest(r.digest); err != nil {
		return fmt.Errorf("verify %s: %w", r.ref, err)
	}
	if digested, ok := r.ref.(reference.Digested); ok && digested.Digest() != r.digest {
		return fmt.Errorf("verify %s: the manifest has digest %s", r.ref, r.digest)
	}
	if p == nil || p.rules == nil {
		return reject(ErrRejected, "", "there is no policy")
	}
	var reqs []requirement
	r.scope, reqs = p.rules.of(r.scopeOf)
	switch r.need = needs(reqs); r.need {
	case needNothing:
		return nil
	case needRefusal:
		return reject(ErrRejected, r.scope, "the policy rejects every image here")
	default:
		return p.verify(ctx, r)
	}
}

// Unsigned returns the scopes of a policy in which images need no signature, sorted.
func (p *Policy) Unsigned() []string {
	if p == nil || p.rules == nil {
		return nil
	}
	var scopes []string
	if needs(p.rules.Default) == needNothing {
		scopes = append(scopes, "default")
	}
	for scope, reqs := range p.rules.Transports["docker"] {
		if needs(reqs) == needNothing {
			scopes = append(scopes, strconv.Quote(scope))
		}
	}
	slices.Sort(scopes)
	return scopes
}

// request is one question to a policy.
type request struct {
	// ref is what a signature must be for, scopeOf what decides which ones are asked for.
	ref, scopeOf reference.Named
	digest       digest.Digest
	src          Source
	scope        string
	need         need
}

// verify asks for the signatures that a scope needs, and the engine about them.
func (p *Policy) verify(ctx context.Context, r request) error {
	manifest, err := r.manifest(ctx)
	if err != nil {
		return fmt.Errorf("verify %s: %w", r.ref, err)
	}
	signatures, err := p.signatures(ctx, r)
	if err != nil {
		return fmt.Errorf("verify %s: signatures: %w", r.ref, err)
	}
	reason, err := p.engine.evaluate(ctx, r, manifest, signatures)
	if err != nil {
		return fmt.Errorf("verify %s: %w", r.ref, err)
	}
	if reason != nil {
		return reject(ErrUnsigned, r.scope, reason.Error())
	}
	return nil
}

// reject returns the error for an image that the policy does not allow. A part of the reason may be a registry's, and
// goes to a console that the host reads.
func reject(kind error, scope, reason string) error {
	reason = strings.Map(func(r rune) rune {
		if r == unicode.ReplacementChar || !unicode.IsPrint(r) {
			return '?'
		}
		return r
	}, reason)
	if len(reason) > maxReasonSize {
		reason = strings.ToValidUTF8(reason[:maxReasonSize], "") + "..."
	}
	if scope == "" {
		return fmt.Errorf("%w: %s", kind, reason)
	}
	return fmt.Errorf("%w: policy of %s: %s", kind, scope, reason)
}

// parseReference reads a reference with an explicit host.
func parseReference(s string) (reference.Named, error) {
	named, err := reference.ParseNormalizedNamed(s)
	if err != nil {
		return nil, fmt.Errorf("image reference %.200q: %w", s, err)
	}
	if !strings.HasPrefix(s, reference.Domain(named)+"/") {
		return nil, fmt.Errorf("image reference %.200q does not name its registry", s)
	}
	if reference.IsNameOnly(named) {
		return nil, fmt.Errorf("image reference %.200q has neither a tag nor a digest", s)
	}
	if digested, ok := named.(reference.Digested); ok {
		return reference.WithDigest(reference.TrimNamed(named), digested.Digest())
	}
	return named, nil
}

// checkDigest accepts well-formed sha256 and sha512 digests.
func checkDigest(d digest.Digest) error {
	if err := d.Validate(); err != nil {
		return fmt.Errorf("digest %.200q: %w", string(d), err)
	}
	if a := d.Algorithm(); a != digest.SHA256 && a != digest.SHA512 {
		return errors.New("digest algorithm is neither sha256 nor sha512")
	}
	return nil
}
