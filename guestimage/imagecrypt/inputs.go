// SPDX-License-Identifier: Apache-2.0
// Copyright The Cloister Authors.

package imagecrypt

import (
	"crypto/x509"
	"errors"
	"fmt"
	"io"
	"maps"
	"os"
	"slices"
	"strings"

	"github.com/cloister-cc/cloister/image/registry"
	"github.com/cloister-cc/cloister/keys"
)

// maxCASize bounds a file of CA certificates, in bytes.
const maxCASize = 4 << 20

// ReadRecipients reads the keys of recipients from files (URI to file), each of which holds the KeySize raw bytes of its
// URI's key. They come in the order of their URIs. The caller wipes the keys.
func ReadRecipients(files map[string]string) ([]Recipient, error) {
	var recipients []Recipient
	for _, uri := range slices.Sorted(maps.Keys(files)) {
		r, err := readRecipient(uri, files[uri])
		if err != nil {
			Wipe(recipients)
			return nil, err
		}
		recipients = append(recipients, r)
	}
	return recipients, nil
}

// Wipe wipes the keys of recipients.
func Wipe(recipients []Recipient) {
	for _, r := range recipients {
		r.Key.Wipe()
	}
}

func readRecipient(uri, file string) (Recipient, error) {
	if _, err := keys.ParseURI(uri); err != nil {
		return Recipient{}, err
	}
	key := keys.NewSecret(make([]byte, KeySize+1))
	defer key.Wipe()
	f, err := os.Open(file) // the user's file
	if err != nil {
		return Recipient{}, fmt.Errorf("read key: %w", err)
	}
	defer f.Close() // opened for reading
	n, err := io.ReadFull(f, key.Bytes())
	if !errors.Is(err, io.ErrUnexpectedEOF) || n != KeySize {
		return Recipient{}, fmt.Errorf("key file %s does not hold %d bytes; make one with: head -c %d /dev/urandom > %s", file, KeySize, KeySize, file)
	}
	return Recipient{KeyURI: uri, Key: keys.NewSecret(append([]byte(nil), key.Bytes()[:KeySize]...))}, nil
}

// ReadAccess reads PEM certificates and an auth.json. An empty caFile trusts no registry, an empty authFile has no
// credentials.
func ReadAccess(caFile, authFile string) (Access, error) {
	var a Access
	if caFile != "" {
		pem, err := readFile(caFile, maxCASize)
		if err != nil {
			return a, err
		}
		a.CA = x509.NewCertPool()
		if !a.CA.AppendCertsFromPEM(pem) {
			return a, fmt.Errorf("%s holds no PEM certificate", caFile)
		}
	}
	if authFile != "" {
		var err error
		if a.Auth, err = readFile(authFile, registry.MaxAuthSize); err != nil {
			return a, err
		}
	}
	return a, nil
}

// ReadRecipient reads jwe:PUBLIC-KEY-FILE, pkcs7:CERTIFICATE-FILE or pgp:ADDRESS; the last is looked up in the file of a
// ring of public keys.
func ReadRecipient(spec, pgpRing string) (Recipient, error) {
	protocol, value, _ := strings.Cut(spec, ":")
	r := Recipient{Protocol: protocol}
	file := value
	switch {
	case protocol != JWE && protocol != PKCS7 && protocol != PGP, value == "":
		return r, fmt.Errorf("recipient %.100q is none of jwe:FILE, pkcs7:FILE, pgp:ADDRESS", spec)
	case protocol == PGP && pgpRing == "":
		return r, fmt.Errorf("recipient %.100q needs a ring of public keys", spec)
	case protocol == PGP:
		file, r.Address = pgpRing, value
	}
	var err error
	if r.Public, err = readFile(file, maxKeyFile); err != nil {
		return r, err
	}
	if err := r.check(); err != nil {
		return r, fmt.Errorf("recipient %s: %w", spec, err)
	}
	return r, nil
}

func readFile(name string, limit int64) ([]byte, error) {
	f, err := os.Open(name) // the user's file
	if err != nil {
		return nil, fmt.Errorf("read file: %w", err)
	}
	defer f.Close() // opened for reading
	data, err := io.ReadAll(io.LimitReader(f, limit+1))
	if err != nil {
		return nil, fmt.Errorf("read file: %w", err)
	}
	if int64(len(data)) > limit {
		return nil, fmt.Errorf("%s is larger than %d bytes", name, limit)
	}
	return data, nil
}
