// SPDX-License-Identifier: Apache-2.0
// Copyright The Cloister Authors.

package guestimage

import (
	"bytes"
	"crypto/x509"
	"encoding/pem"
	"errors"
	"io"
	"os"

	"github.com/cloister-cc/cloister/image/decrypt"
	"github.com/cloister-cc/cloister/image/registry"
	"github.com/cloister-cc/cloister/keys"
	"github.com/cloister-cc/cloister/keys/file"
)

// Limits of the input files, in bytes.
const (
	maxBinarySize = 512 << 20
	maxConfigSize = 1 << 20
)

// imageKeySize is the size of an image key in bytes: AES-256.
const imageKeySize = 32

// readInput reads a regular file of at most limit bytes.
func readInput(input, file string, limit int64) ([]byte, error) {
	f, err := os.Open(file)
	if err != nil {
		return nil, &InputError{Input: input, Err: err}
	}
	defer f.Close()
	st, err := f.Stat()
	if err != nil {
		return nil, &InputError{Input: input, Err: err}
	}
	if !st.Mode().IsRegular() {
		return nil, badInput(input, "", "%s is not a regular file", file)
	}
	if st.Size() > limit {
		return nil, badInput(input, "", "%s has %d bytes, more than %d", file, st.Size(), limit)
	}
	data := make([]byte, st.Size()) // one buffer: no copies that would have to be wiped
	if _, err := io.ReadFull(f, data); err != nil {
		keys.Wipe(data)
		return nil, badInput(input, "", "read %s: %w", file, err)
	}
	return data, nil
}

// readCA reads PEM certificates, all of which must parse.
func readCA(file string) ([]byte, error) {
	data, err := readInput("registry-ca", file, maxConfigSize)
	if err != nil {
		return nil, err
	}
	n := 0
	for rest := data; ; n++ {
		var block *pem.Block
		if block, rest = pem.Decode(rest); block == nil {
			if len(bytes.TrimSpace(rest)) != 0 {
				return nil, badInput("registry-ca", "", "%s holds something after certificate %d that is not PEM", file, n)
			}
			break
		}
		if block.Type != "CERTIFICATE" {
			hint := "give a file that holds certificates only"
			return nil, badInput("registry-ca", hint, "%s holds a PEM block %q, not a certificate", file, block.Type)
		}
		if _, err := x509.ParseCertificate(block.Bytes); err != nil {
			return nil, badInput("registry-ca", "", "certificate %d of %s: %w", n+1, file, err)
		}
	}
	if n == 0 {
		return nil, badInput("registry-ca", "", "%s holds no PEM certificate", file)
	}
	return data, nil
}

// readAuth reads registry credentials. Its errors never quote the file's content.
func readAuth(file string) (*keys.Secret, error) {
	data, err := readInput("registry-auth", file, maxConfigSize)
	if err != nil {
		return nil, err
	}
	secret := keys.NewSecret(data)
	if err := checkAuth(data); err != nil {
		secret.Wipe()
		return nil, badInput("registry-auth", "give a file like Docker's config.json, with an entry below auths", "%s: %w", file, err)
	}
	return secret, nil
}

// checkAuth asks the guest's own parser, so that no guest is built that stops at its credentials when it boots.
func checkAuth(data []byte) error {
	auth, err := registry.ParseAuth(data)
	if err != nil {
		return err
	}
	if auth.Len() == 0 {
		return errors.New("no entry below auths")
	}
	return nil
}

// resource is a secret and its URI.
type resource struct {
	name keys.Resource
	data *keys.Secret
}

// readImageKey reads the image key of one URI.
func readImageKey(uri, path string) (resource, error) {
	r, err := readNamed("image-key", uri, path, maxConfigSize)
	if n := len(r.data.Bytes()); err == nil && n != imageKeySize {
		r.data.Wipe()
		return resource{}, badInput("image-key", "the file holds the key itself, neither hexadecimal nor base64",
			"%s has %d bytes, an image key has %d", path, n, imageKeySize)
	}
	return r, err
}

// readPrivateKey reads a private key for image layers.
func readPrivateKey(uri, path string) (resource, error) {
	r, err := readNamed("image-private-key", uri, path, file.MaxKeySize)
	if err != nil {
		return r, err
	}
	if err := decrypt.CheckPrivateKey(r.data.Bytes()); err != nil {
		r.data.Wipe()
		return resource{}, badInput("image-private-key", "", "%s %w", path, err)
	}
	return r, nil
}

// readResource reads what sealed secrets name by one URI.
func readResource(uri, path string) (resource, error) {
	r, err := readNamed("secret", uri, path, file.MaxKeySize)
	if err == nil && len(r.data.Bytes()) == 0 {
		return resource{}, badInput("secret", "", "%s is empty", path)
	}
	return r, err
}

func readNamed(input, uri, path string, limit int64) (resource, error) {
	name, err := keys.ParseURI(uri)
	if err != nil {
		return resource{}, &InputError{Input: input, Err: err}
	}
	data, err := readInput(input, path, limit)
	if err != nil {
		return resource{}, err
	}
	return resource{name: name, data: keys.NewSecret(data)}, nil
}
