// SPDX-License-Identifier: Apache-2.0
// Copyright The Cloister Authors.

//go:build containers_image_openpgp

package sign

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"

	"go.podman.io/image/v5/directory"
	"go.podman.io/image/v5/docker/policyconfiguration"
	"go.podman.io/image/v5/docker/reference"
	"go.podman.io/image/v5/image"
	"go.podman.io/image/v5/signature"
	"go.podman.io/image/v5/types"
)

// engine evaluates policies by the library.
type engine struct {
	policy  *signature.Policy
	tempDir string
}

func newEngine(r *rules, keys map[string][]byte, tempDir string) (*engine, error) {
	signatures := false
	for _, req := range r.all() {
		switch req.kind() {
		case kindSignedBy:
			signatures = true
			if err := inlineSignedBy(req, keys); err != nil {
				return nil, fmt.Errorf("%s: %w", kindSignedBy, err)
			}
		case kindSigstore:
			signatures = true
			if err := inlineSigstore(req, keys); err != nil {
				return nil, fmt.Errorf("%s: %w", kindSigstore, err)
			}
		}
	}
	if signatures && tempDir == "" {
		return nil, errors.New("no folder to verify signatures in")
	}
	data, err := json.Marshal(r)
	if err != nil {
		return nil, fmt.Errorf("encode: %w", err)
	}
	policy, err := signature.NewPolicyFromBytes(data)
	if err != nil {
		return nil, err
	}
	return &engine{policy: policy, tempDir: tempDir}, nil
}

// evaluate asks the library about an image; a reason means that the policy does not allow it.
func (e *engine) evaluate(ctx context.Context, r request, manifest []byte, raw []rawSignature) (reason, err error) {
	dir, err := os.MkdirTemp(e.tempDir, "signatures-")
	if err != nil {
		return nil, fmt.Errorf("make a folder for signatures: %w", err)
	}
	defer func() { err = errors.Join(err, os.RemoveAll(dir)) }()
	unreadable, err := store(dir, raw)
	if err != nil {
		return nil, fmt.Errorf("store signatures: %w", err)
	}
	dirRef, err := directory.NewReference(dir)
	if err != nil {
		return nil, fmt.Errorf("open signatures: %w", err)
	}
	src, err := dirRef.NewImageSource(ctx, &types.SystemContext{})
	if err != nil {
		return nil, fmt.Errorf("open signatures: %w", err)
	}
	defer func() { err = errors.Join(err, src.Close()) }()
	pc, err := signature.NewPolicyContext(e.policy)
	if err != nil {
		return nil, fmt.Errorf("prepare the policy: %w", err)
	}
	defer func() { err = errors.Join(err, pc.Destroy()) }()
	allowed, reason := pc.IsRunningImageAllowed(ctx, &unparsed{
		UnparsedImage: image.UnparsedInstance(src, nil), ref: dockerRef{r.ref, r.scopeOf}, manifest: manifest,
	})
	if allowed && reason == nil {
		return nil, ctx.Err()
	}
	// The library reads nothing but those files, so that any other error is about what is in them.
	if _, ok := errors.AsType[*fs.PathError](reason); ok || ctx.Err() != nil {
		return nil, errors.Join(reason, ctx.Err())
	}
	if reason == nil { // the library promises one
		reason = errors.New("the image is not allowed")
	}
	if len(unreadable) > 0 {
		reason = fmt.Errorf("%w (%d more are no signatures: %w)", reason, len(unreadable), unreadable[0])
	}
	return reason, nil
}

// store writes signatures to a folder as the library's dir transport reads them, and returns why some are none.
func store(dir string, raw []rawSignature) (unreadable []error, err error) {
	n := 0
	for _, s := range raw {
		var data []byte
		if s.sigstore != nil {
			encoded, err := json.Marshal(s.sigstore)
			if err != nil {
				return nil, err
			}
			data = append([]byte(sigstorePrefix), encoded...)
		} else {
			message, err := unpack(s.simple)
			if err != nil {
				unreadable = append(unreadable, err)
				continue
			}
			// With the prefix it is not guessed what the message is.
			data = append([]byte("\x00simple-signing\n"), message...)
		}
		n++
		if err := os.WriteFile(filepath.Join(dir, fmt.Sprintf("signature-%d", n)), data, 0o600); err != nil {
			return nil, err
		}
	}
	return unreadable, nil
}

// unparsed is an image with signatures in a folder, and a manifest that its user has checked already. The embedded
// type has one more method than types.UnparsedImage, by which the library gets at sigstore signatures.
type unparsed struct {
	*image.UnparsedImage
	ref      dockerRef
	manifest []byte
}

// Reference implements types.UnparsedImage.
func (u *unparsed) Reference() types.ImageReference { return u.ref }

// Manifest implements types.UnparsedImage.
func (u *unparsed) Manifest(context.Context) (manifest []byte, mediaType string, err error) {
	return u.manifest, "", nil
}

// errNoAccess is what the library gets if it wants to fetch something itself.
var errNoAccess = errors.New("images are reached by the guest's own client only")

// dockerRef is a reference of the docker transport by which no image can be reached. The library's own one brings its
// client and the configuration files of that.
type dockerRef struct{ named, scopeOf reference.Named }

// Transport implements types.ImageReference.
func (dockerRef) Transport() types.ImageTransport { return dockerTransport{} }

// StringWithinTransport implements types.ImageReference.
func (r dockerRef) StringWithinTransport() string { return "//" + r.named.String() }

// DockerReference implements types.ImageReference.
func (r dockerRef) DockerReference() reference.Named { return r.named }

// PolicyConfigurationIdentity implements types.ImageReference.
func (r dockerRef) PolicyConfigurationIdentity() string {
	identity, err := policyconfiguration.DockerReferenceIdentity(r.scopeOf)
	if err != nil { // parseReference returns no such reference
		return ""
	}
	return identity
}

// PolicyConfigurationNamespaces implements types.ImageReference.
func (r dockerRef) PolicyConfigurationNamespaces() []string {
	return policyconfiguration.DockerReferenceNamespaces(r.scopeOf)
}

// NewImage implements types.ImageReference.
func (dockerRef) NewImage(context.Context, *types.SystemContext) (types.ImageCloser, error) {
	return nil, errNoAccess
}

// NewImageSource implements types.ImageReference.
func (dockerRef) NewImageSource(context.Context, *types.SystemContext) (types.ImageSource, error) {
	return nil, errNoAccess
}

// NewImageDestination implements types.ImageReference.
func (dockerRef) NewImageDestination(context.Context, *types.SystemContext) (types.ImageDestination, error) {
	return nil, errNoAccess
}

// DeleteImage implements types.ImageReference.
func (dockerRef) DeleteImage(context.Context, *types.SystemContext) error { return errNoAccess }

type dockerTransport struct{}

// Name implements types.ImageTransport.
func (dockerTransport) Name() string { return "docker" }

// ParseReference implements types.ImageTransport.
func (dockerTransport) ParseReference(s string) (types.ImageReference, error) {
	named, err := parseReference(strings.TrimPrefix(s, "//"))
	if err != nil {
		return nil, err
	}
	return dockerRef{named, named}, nil
}

// ValidatePolicyConfigurationScope implements types.ImageTransport; the library's docker transport accepts all, too.
func (dockerTransport) ValidatePolicyConfigurationScope(string) error { return nil }
