// SPDX-License-Identifier: Apache-2.0
// Copyright The Cloister Authors.

package decrypt

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"maps"
	"slices"
	"strings"

	"github.com/containers/ocicrypt/blockcipher"
)

// Annotations of an encrypted layer's descriptor.
const (
	// KeysPrefix starts every annotation that holds wrapped layer keys; the protocol follows.
	KeysPrefix = "org.opencontainers.image.enc.keys."
	// KeysAnnotation holds the layer key wrapped for a Confidential Containers guest.
	KeysAnnotation = KeysPrefix + "provider.attestation-agent"
	// PublicAnnotation holds the public parameters of the layer cipher.
	PublicAnnotation = "org.opencontainers.image.enc.pubopts"
	// encryptionPrefix starts all of them.
	encryptionPrefix = "org.opencontainers.image.enc."
)

// Protocols other than packets, what follows KeysPrefix.
const (
	protocolJWE    = "jwe"
	protocolPKCS7  = "pkcs7"
	protocolPGP    = "pgp"
	protocolPKCS11 = "pkcs11"
	providerPrefix = "provider."
)

// Errors that callers tell apart. Of one failure, it is never ErrNoKey and ErrWrongKey both.
var (
	// ErrNoKey means that the guest has none of the keys that unwrap the layer's key. A KeyFunc returns it, too.
	ErrNoKey = errors.New("no such key")
	// ErrWrongKey means that the guest has a key of the right name, and that it does not unwrap the layer's key.
	ErrWrongKey = errors.New("wrong key")
	// ErrUnauthentic means that the layer is not what was encrypted: its HMAC does not match.
	ErrUnauthentic = errors.New("encrypted layer does not match its HMAC: it was changed after encryption")
)

// KeyFunc returns the key of a URI; the caller owns the bytes and wipes them. ErrNoKey says that there is no such key,
// any other error that it could not be told.
type KeyFunc func(ctx context.Context, uri string) ([]byte, error)

// keyError is an error whose text is complete without those of its kinds.
type keyError struct {
	text  string
	kinds []error
}

func (e *keyError) Error() string   { return e.text }
func (e *keyError) Unwrap() []error { return e.kinds }

func noKey(format string, args ...any) error {
	return &keyError{fmt.Sprintf(format, args...), []error{ErrNoKey}}
}

func wrongKey(format string, args ...any) error {
	return &keyError{fmt.Sprintf(format, args...), []error{ErrWrongKey}}
}

// Keys is what a guest opens layers with.
type Keys struct {
	// ByURI returns the keys that packets name, and those of PrivateKeys. nil has no keys.
	ByURI KeyFunc
	// PrivateKeys names the private keys for layers that are encrypted with jwe, pkcs7 or pgp, which do not name them
	// themselves: URIs kbs:///repository/type/tag, at most MaxPrivateKeys, tried in order. Each is one key of RSA or an
	// elliptic curve (PEM, DER or JWK), or a ring of PGP's private keys (binary or armoured). None has a passphrase.
	PrivateKeys []string
}

// MaxPrivateKeys bounds Keys.PrivateKeys.
const MaxPrivateKeys = 16

// Check tells a configuration that cannot work.
func (k Keys) Check() error {
	if len(k.PrivateKeys) > MaxPrivateKeys {
		return fmt.Errorf("%d private keys for image layers, at most %d are allowed", len(k.PrivateKeys), MaxPrivateKeys)
	}
	for _, uri := range k.PrivateKeys {
		if err := checkKeyURI(uri); err != nil {
			return fmt.Errorf("private key for image layers: %w", err)
		}
	}
	return nil
}

// get returns a key; no bytes are no key.
func (k Keys) get(ctx context.Context, uri string) ([]byte, error) {
	if k.ByURI == nil {
		return nil, noKey("no key %s in this guest", uri)
	}
	key, err := k.ByURI(ctx, uri)
	switch {
	case errors.Is(err, ErrNoKey) || err == nil && len(key) == 0:
		return nil, noKey("no key %s in this guest", uri)
	case err != nil:
		clear(key)
		return nil, fmt.Errorf("get key %s: %w", uri, err)
	}
	return key, nil
}

// Unwrap is Keys.Unwrap without private keys.
func Unwrap(ctx context.Context, annotations map[string]string, keys KeyFunc) (*LayerKey, error) {
	return Keys{ByURI: keys}.Unwrap(ctx, annotations)
}

// Unwrap finds the layer's key: with the first recipient for whom the guest has a key that opens. Packets come first,
// then jwe, pkcs7 and pgp. If nothing opens, the error says why for each recipient. It is ErrWrongKey where a key does not
// fit, else ErrNoKey where the guest has none of the keys; and errors of ByURI besides.
func (k Keys) Unwrap(ctx context.Context, annotations map[string]string) (*LayerKey, error) {
	if err := k.Check(); err != nil {
		return nil, err
	}
	found, failed := parseRecipients(annotations)
	if len(found.packets)+len(found.messages)+len(failed) == 0 {
		return nil, fmt.Errorf("encrypted layer has no annotation %s*", KeysPrefix)
	}
	if len(found.packets)+len(found.messages) == 0 {
		return nil, joinFailed(failed)
	}
	public, err := parsePublic(annotations[PublicAnnotation])
	if err != nil {
		return nil, err
	}
	key, more := k.unwrapPackets(ctx, found.packets, public)
	if key != nil && key.unproven == "" {
		return key, nil
	}
	failed = append(failed, more...)
	private, more := k.unwrapMessages(ctx, found.messages)
	if private != nil {
		if key != nil {
			key.Wipe()
		}
		return newLayerKey(public, private), nil
	}
	if key != nil {
		return key, nil
	}
	if err := ctx.Err(); err != nil {
		return nil, fmt.Errorf("unwrap layer key: %w", context.Cause(ctx))
	}
	return nil, joinFailed(append(failed, more...))
}

// recipients are those of a layer's recipients that a guest may be.
type recipients struct {
	packets  []packet
	messages []message
}

// parseRecipients reads all annotations with wrapped keys, in a fixed order, and returns errors for those that it cannot
// use: another recipient may open.
func parseRecipients(annotations map[string]string) (found recipients, failed []error) {
	seen := 0
	for _, name := range slices.SortedFunc(maps.Keys(annotations), protocolOrder) {
		protocol, ok := strings.CutPrefix(name, KeysPrefix)
		if !ok {
			continue
		}
		if seen++; seen > maxProtocols {
			return found, append(failed, fmt.Errorf("layer has more than %d annotations with wrapped keys", maxProtocols))
		}
		var err error
		switch {
		case strings.HasPrefix(protocol, providerPrefix):
			err = found.addPackets(name, annotations[name])
		case protocol == protocolJWE || protocol == protocolPKCS7 || protocol == protocolPGP:
			err = found.addMessages(protocol, annotations[name])
		case protocol == protocolPKCS11:
			err = errors.New("layer is encrypted for a pkcs11 token, which is not supported in this build")
		default:
			err = fmt.Errorf("layer is encrypted for %.40q, which is not supported", protocol)
		}
		if err != nil {
			failed = append(failed, err)
		}
	}
	return found, failed
}

// protocolOrder sorts KeysAnnotation first; then jwe, pgp, pkcs7 and the others by their names.
func protocolOrder(a, b string) int {
	switch {
	case a == b:
		return 0
	case a == KeysAnnotation:
		return -1
	case b == KeysAnnotation:
		return 1
	}
	return strings.Compare(a, b)
}

// joinFailed makes one error of those of all recipients, with only the more telling of the kinds ErrWrongKey and ErrNoKey.
func joinFailed(failed []error) error {
	joined := errors.Join(failed...)
	if !errors.Is(joined, ErrWrongKey) || !errors.Is(joined, ErrNoKey) {
		return joined
	}
	kinds := slices.DeleteFunc(slices.Clone(failed), func(err error) bool { return errors.Is(err, ErrNoKey) })
	return &keyError{joined.Error(), kinds}
}

// unwrapPackets returns the key that the first packet gives that opens. One that nothing proves to be right is returned
// only where no other does, with the errors of all; of several such ones it is the first, whatever it looks like: see
// parseUnproven.
func (k Keys) unwrapPackets(ctx context.Context, packets []packet, public *blockcipher.PublicLayerBlockCipherOptions) (*LayerKey, []error) {
	var unproven *LayerKey
	var failed []error
	for _, p := range packets {
		if ctx.Err() != nil {
			break
		}
		private, err := k.unwrapPacket(ctx, p)
		switch {
		case err != nil:
			failed = append(failed, err)
		case p.WrapType != wrapCTR:
			if unproven != nil {
				unproven.Wipe()
			}
			return newLayerKey(public, private), nil
		case unproven == nil:
			unproven = newLayerKey(public, private)
			unproven.unproven = p.KeyURI
		default:
			wipePrivate(private)
		}
	}
	return unproven, failed
}

// KeyURIs returns the URIs of the keys that a layer was encrypted for, none if there is no KeysAnnotation. Packets of other
// key providers than kbs are left out; if there are only such, that is an error.
func KeyURIs(annotations map[string]string) ([]string, error) {
	value, ok := annotations[KeysAnnotation]
	if !ok {
		return nil, nil
	}
	packets, err := parsePackets(KeysAnnotation, value)
	if err != nil {
		return nil, err
	}
	var uris []string
	for _, p := range packets {
		if p.unsupported != nil {
			err = p.unsupported
			continue
		}
		uris = append(uris, p.KeyURI)
	}
	if uris == nil {
		return nil, err
	}
	return uris, nil
}

// Reads tells whether an annotation of that name has a part in the decryption of a layer.
func Reads(annotation string) bool { return strings.HasPrefix(annotation, encryptionPrefix) }

// Identity returns a digest over everything in a descriptor's annotations that decides how the layer is decrypted. Two
// pulls of the same blob with different ones must not share their outcome.
func Identity(annotations map[string]string) string {
	h := sha256.New()
	for _, name := range slices.Sorted(maps.Keys(annotations)) {
		if strings.HasPrefix(name, encryptionPrefix) {
			_, _ = fmt.Fprintf(h, "%d:%s%d:%s", len(name), name, len(annotations[name]), annotations[name]) // a hash does not fail
		}
	}
	return hex.EncodeToString(h.Sum(nil))
}
