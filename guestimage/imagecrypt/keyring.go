// SPDX-License-Identifier: Apache-2.0
// Copyright The Cloister Authors.

package imagecrypt

import (
	"context"
	"encoding/base64"
	"encoding/pem"
	"errors"
	"fmt"
	"io/fs"
	"path/filepath"
	"slices"
	"strings"

	"github.com/containers/ocicrypt/config"
	"github.com/containers/ocicrypt/utils"

	"github.com/cloister-cc/cloister/image/decrypt"
	"github.com/cloister-cc/cloister/keys"
)

// Limits on what a key ring reads, in bytes.
const (
	maxKeyFile    = 4 << 20
	maxAnnotation = 128 << 10
)

// KeyRing holds what decrypts layers: keys by URI, and private keys. The zero value is empty and ready.
type KeyRing struct {
	packets map[string]*keys.Secret
	folder  string
	private []privateKey
	certs   [][]byte
}

// privateKey is a private key or a ring of PGP's.
type privateKey struct {
	file     string
	pgp      bool
	data     *keys.Secret
	password *keys.Secret
}

// keyFileError is a key file that cannot be used.
type keyFileError struct{ text, hint string }

func (e *keyFileError) Error() string { return e.text }

// Hint says what to do.
func (e *keyFileError) Hint() string { return e.hint }

// AddPacketKey adds the key of a URI, KeySize raw bytes in a file.
func (k *KeyRing) AddPacketKey(uri, file string) error {
	r, err := readRecipient(uri, file)
	if err != nil {
		return err
	}
	if k.packets == nil {
		k.packets = make(map[string]*keys.Secret)
	}
	k.packets[uri] = r.Key
	return nil
}

// SetFolder makes the ring look for the key kbs:///repository/type/tag in the file repository/type/tag of a folder.
func (k *KeyRing) SetFolder(dir string) { k.folder = dir }

// AddFile adds a file that holds a private key (PEM, DER or JWK), a certificate, which PKCS7 needs beside the key, or a
// ring of PGP's private keys. The password is nil if there is none; the ring owns it from now on.
func (k *KeyRing) AddFile(file string, password *keys.Secret) error {
	data, err := readFile(file, maxKeyFile)
	if err != nil {
		return err
	}
	p := privateKey{file: file, data: keys.NewSecret(data), password: password}
	switch {
	case utils.IsGPGPrivateKeyRing(data):
		p.pgp = true
	case utils.IsCertificate(data):
		k.certs = append(k.certs, data)
		return nil
	default:
		if err := p.normalise(); err != nil {
			p.data.Wipe()
			return err
		}
	}
	k.private = append(k.private, p)
	return nil
}

// normalise takes the key out of its PEM, which ocicrypt does for some types only, and checks that it is one.
func (p *privateKey) normalise() error {
	for rest := p.data.Bytes(); ; {
		block, more := pem.Decode(rest)
		if block == nil {
			break
		}
		if block.Type == "ENCRYPTED PRIVATE KEY" {
			return &keyFileError{
				fmt.Sprintf("private key %s is encrypted in PKCS #8, which cannot be read", p.file),
				"openssl pkey -in " + p.file + " -out KEY writes it without a password",
			}
		}
		if block.Type == "EC PRIVATE KEY" && len(block.Headers) == 0 {
			p.data.Wipe()
			p.data = keys.NewSecret(block.Bytes)
			break
		}
		rest = more
	}
	_, err := utils.ParsePrivateKey(p.data.Bytes(), p.password.Bytes(), "key")
	switch {
	case err == nil:
		return nil
	case utils.IsPasswordError(err) && p.password == nil:
		return &keyFileError{fmt.Sprintf("private key %s wants a password", p.file), "write --key " + p.file + ":passfile=FILE"}
	case utils.IsPasswordError(err):
		return fmt.Errorf("the password given for private key %s is wrong", p.file)
	default: // the parser's own error could quote the key
		return &keyFileError{
			fmt.Sprintf("%s is neither a private key, a certificate nor a ring of PGP's private keys", p.file),
			"a key of Confidential Containers is given with its name: --key kbs:///repository/type/tag=" + p.file,
		}
	}
}

// Empty says that there is no key in the ring.
func (k *KeyRing) Empty() bool { return len(k.packets) == 0 && len(k.private) == 0 && k.folder == "" }

// Wipe wipes the keys.
func (k *KeyRing) Wipe() {
	for _, s := range k.packets {
		s.Wipe()
	}
	for _, p := range k.private {
		p.data.Wipe()
		p.password.Wipe()
	}
}

// Errors of a layer whose key does not open. Their texts name keys and recipients, never a key's bytes.
var (
	// ErrNoKey means that no key of any recipient was given.
	ErrNoKey = decrypt.ErrNoKey
	// ErrWrongKey means that a key was given that does not fit.
	ErrWrongKey = decrypt.ErrWrongKey
)

// unwrapError says why no key opens a layer.
type unwrapError struct {
	text   string
	kind   error
	noCert bool
}

func (e *unwrapError) Error() string { return e.text }
func (e *unwrapError) Unwrap() error { return e.kind }

// Hint says what may be missing, or where the needs of an image are seen.
func (e *unwrapError) Hint() string {
	if e.noCert {
		return "pkcs7 needs the recipient's certificate beside the private key: give it as another --key"
	}
	return "cloister inspect shows what each layer is encrypted for"
}

// unwrap opens a layer's key with the first key that fits.
func (k *KeyRing) unwrap(ctx context.Context, annotations map[string]string) (*decrypt.LayerKey, error) {
	var tried []string
	for _, p := range protocols(annotations) {
		var key *decrypt.LayerKey
		var used []string
		var err error
		if p == Packet {
			key, used, err = k.unwrapPacket(ctx, annotations)
		} else {
			key, used, err = k.unwrapPrivate(p, annotations)
		}
		if key != nil || err != nil {
			return key, err
		}
		tried = append(tried, used...)
	}
	needs := strings.Join(needs(annotations), " or ")
	if needs == "" {
		return nil, errors.New("the annotations of an encrypted layer are missing")
	}
	e := &unwrapError{text: "no key was given that the layer is encrypted for: it needs " + needs, kind: ErrNoKey}
	if len(tried) > 0 {
		e.text = fmt.Sprintf("wrong key: %s does not open the layer, which needs %s", strings.Join(tried, ", "), needs)
		e.kind = ErrWrongKey
	}
	e.noCert = annotations[decrypt.KeysPrefix+PKCS7] != "" && len(k.private) > 0 && len(k.certs) == 0
	return nil, e
}

// unwrapPacket tries the keys by their URIs. It returns neither key nor error if none fits, and the URIs that it had.
func (k *KeyRing) unwrapPacket(ctx context.Context, annotations map[string]string) (*decrypt.LayerKey, []string, error) {
	var used []string
	var broken error
	key, err := decrypt.Unwrap(ctx, annotations, func(_ context.Context, uri string) ([]byte, error) {
		data, err := k.packetKey(uri)
		if err == nil {
			used = append(used, uri)
		} else if !errors.Is(err, ErrNoKey) {
			broken = err
		}
		return data, err
	})
	switch {
	case err == nil:
		return key, nil, nil
	case broken != nil:
		return nil, nil, broken
	case errors.Is(err, ErrNoKey) || errors.Is(err, ErrWrongKey):
		return nil, used, nil
	}
	return nil, nil, err
}

// packetKey returns a copy of the key of a URI.
func (k *KeyRing) packetKey(uri string) ([]byte, error) {
	if s := k.packets[uri]; s != nil {
		return slices.Clone(s.Bytes()), nil
	}
	resource, err := keys.ParseURI(uri)
	if err != nil || k.folder == "" {
		return nil, ErrNoKey // a URI that we would not accept ourselves names no file either
	}
	r, err := readRecipient(uri, filepath.Join(k.folder, resource.Repository, resource.Type, resource.Tag))
	if errors.Is(err, fs.ErrNotExist) {
		return nil, ErrNoKey
	}
	if err != nil {
		return nil, err
	}
	return r.Key.Bytes(), nil
}

// unwrapPrivate tries the private keys. It returns neither key nor error if none fits, and the files that it tried.
func (k *KeyRing) unwrapPrivate(protocol string, annotations map[string]string) (*decrypt.LayerKey, []string, error) {
	wrapped, err := wrappedKeys(annotations[decrypt.KeysPrefix+protocol])
	if err != nil {
		return nil, nil, fmt.Errorf("annotation %s%s: %w", decrypt.KeysPrefix, protocol, err)
	}
	var used []string
	for _, p := range k.private {
		if p.pgp != (protocol == PGP) || protocol == PKCS7 && len(k.certs) == 0 {
			continue
		}
		used = append(used, p.file)
		for _, w := range wrapped {
			private, err := wrapper(protocol).UnwrapKey(p.decryptConfig(k.certs), w)
			if err != nil {
				continue // its text adds nothing to that no key fits
			}
			key, err := decrypt.NewLayerKey(annotations, private)
			clear(private)
			return key, nil, err
		}
	}
	return nil, used, nil
}

func (p privateKey) decryptConfig(certs [][]byte) *config.DecryptConfig {
	if !p.pgp {
		return &config.DecryptConfig{Parameters: map[string][][]byte{
			"privkeys": {p.data.Bytes()}, "privkeys-passwords": {p.password.Bytes()}, "x509s": certs,
		}}
	}
	parameters := map[string][][]byte{"gpg-privatekeys": {p.data.Bytes()}}
	if p.password != nil {
		parameters["gpg-privatekeys-passwords"] = [][]byte{p.password.Bytes()}
	}
	return &config.DecryptConfig{Parameters: parameters}
}

// wrappedKeys decodes the value of an annotation with wrapped keys.
func wrappedKeys(value string) ([][]byte, error) {
	if len(value) > maxAnnotation {
		return nil, fmt.Errorf("larger than %d bytes", maxAnnotation)
	}
	parts := strings.SplitN(value, ",", maxRecipients+1)
	if len(parts) > maxRecipients {
		return nil, fmt.Errorf("more than %d wrapped keys", maxRecipients)
	}
	out := make([][]byte, len(parts))
	for i, part := range parts {
		data, err := base64.StdEncoding.DecodeString(part)
		if err != nil {
			return nil, fmt.Errorf("decode base64: %w", err)
		}
		out[i] = data
	}
	return out, nil
}

// protocols returns those of ours that a layer is encrypted with.
func protocols(annotations map[string]string) []string {
	var out []string
	for _, p := range []string{Packet, JWE, PKCS7, PGP} {
		name := decrypt.KeysPrefix + p
		if p == Packet {
			name = decrypt.KeysAnnotation
		}
		if annotations[name] != "" {
			out = append(out, p)
		}
	}
	return out
}
