// SPDX-License-Identifier: Apache-2.0
// Copyright The Cloister Authors.

package imagecrypt

import (
	"crypto/x509"
	"errors"
	"fmt"
	"io"
	"os"
	"strings"

	"github.com/cloister-cc/cloister/image/registry"
	"github.com/cloister-cc/cloister/keys"
)

// maxCASize bounds a file of CA certificates, in bytes.
const maxCASize = 4 << 20

// ReadRecipients reads recipients written as URI=FILE; each file holds the KeySize raw bytes of the key of that URI. The
// caller wipes the keys.
func ReadRecipients(args []string) ([]Recipient, error) {
	var recipients []Recipient
	for _, arg := range args {
		r, err := readRecipient(arg)
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

func readRecipient(arg string) (Recipient, error) {
	uri, file, ok := strings.Cut(arg, "=")
	if !ok || file == "" {
		return Recipient{}, fmt.Errorf("key %q is not URI=FILE, for instance kbs:///default/image-key/demo=demo.key", arg)
	}
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

// ReadPushOptions reads PEM certificates and an auth.json. An empty caFile trusts no registry, an empty authFile has no
// credentials.
func ReadPushOptions(caFile, authFile string) (PushOptions, error) {
	var o PushOptions
	if caFile != "" {
		pem, err := readFile(caFile, maxCASize)
		if err != nil {
			return o, err
		}
		o.CA = x509.NewCertPool()
		if !o.CA.AppendCertsFromPEM(pem) {
			return o, fmt.Errorf("%s holds no PEM certificate", caFile)
		}
	}
	if authFile != "" {
		var err error
		if o.Auth, err = readFile(authFile, registry.MaxAuthSize); err != nil {
			return o, err
		}
	}
	return o, nil
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
