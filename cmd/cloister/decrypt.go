// SPDX-License-Identifier: Apache-2.0
// Copyright The Cloister Authors.

package main

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"os"
	"strings"

	"github.com/spf13/cobra"

	"github.com/cloister-cc/cloister/guestimage/imagecrypt"
	"github.com/cloister-cc/cloister/keys"
)

// maxPassword bounds the password of a private key, in bytes.
const maxPassword = 4096

const decryptExample = `  cloister decrypt --key kbs:///default/image-key/demo=demo.key oci:encrypted oci:plain
  cloister decrypt --key anna.key:passfile=anna.pass docker://registry.example/app:1-encrypted docker-archive:app.tar:app:1
  cloister decrypt --key bob.key --key bob.crt oci-archive:encrypted.tar oci:plain`

// newDecryptCommand returns "cloister decrypt".
func newDecryptCommand() *cobra.Command {
	var c copyFlags
	var keyArgs []string
	var folder string
	cmd := &cobra.Command{
		Use:   "decrypt {--key [URI=]FILE | --keys-dir DIR} [flags] SOURCE DESTINATION",
		Short: "Decrypt the layers of a container image",
		Long: "decrypt copies an image with its layers decrypted. Nothing of it is seen at the destination before every layer is\n" +
			"known to be what was encrypted, and to be the layer that the image's config names.\n\n" + locationHelp,
		Example: decryptExample,
		Args:    cobra.ExactArgs(2),
		RunE: func(cmd *cobra.Command, args []string) error {
			o, err := c.options(cmd, args)
			if err != nil {
				return err
			}
			ring := new(imagecrypt.KeyRing)
			defer ring.Wipe()
			if err := fillRing(cmd, ring, keyArgs, folder); err != nil {
				return err
			}
			done := showProgress(cmd, "decrypt", &o)
			defer done()
			r, err := imagecrypt.Decrypt(cmd.Context(), o, ring)
			if err != nil {
				return err
			}
			return c.print(cmd, r, "decrypted")
		},
	}
	f := cmd.Flags()
	f.StringArrayVar(&keyArgs, "key", nil, "kbs:///repository/type/tag=FILE with the key of a guest, or FILE[:pass=PASSWORD|:passfile=FILE] with a\n"+
		"private key, a certificate (pkcs7 needs it beside the key) or a ring of PGP's private keys (may be repeated)")
	f.StringVar(&folder, "keys-dir", "", "folder with the keys of guests: that of kbs:///repository/type/tag is the file repository/type/tag")
	c.add(cmd)
	return cmd
}

func fillRing(cmd *cobra.Command, ring *imagecrypt.KeyRing, keyArgs []string, folder string) error {
	ring.SetFolder(folder)
	for _, arg := range keyArgs {
		if strings.HasPrefix(arg, keys.URIPrefix) {
			files, err := parseKeyFiles(cmd, "--key", []string{arg})
			if err != nil {
				return err
			}
			for uri, file := range files {
				if err := ring.AddPacketKey(uri, file); err != nil {
					return err
				}
			}
			continue
		}
		file, password, err := splitPassword(arg)
		if err != nil {
			return err
		}
		if err := ring.AddFile(file, password); err != nil {
			password.Wipe()
			return err
		}
	}
	if ring.Empty() {
		return &usageError{cmd: cmd.CommandPath(), err: errors.New("not given: a private key or the key of a guest (--key, --keys-dir)")}
	}
	return nil
}

// splitPassword reads FILE[:pass=PASSWORD|:passfile=FILE].
func splitPassword(arg string) (file string, password *keys.Secret, err error) {
	if file, pass, ok := strings.Cut(arg, ":pass="); ok {
		return file, keys.NewSecret([]byte(pass)), nil
	}
	file, passFile, ok := strings.Cut(arg, ":passfile=")
	if !ok {
		return arg, nil, nil
	}
	f, err := os.Open(passFile)
	if err != nil {
		return "", nil, fmt.Errorf("read password: %w", err)
	}
	defer f.Close()
	data, err := io.ReadAll(io.LimitReader(f, maxPassword))
	if err != nil {
		return "", nil, fmt.Errorf("read password: %w", err)
	}
	return file, keys.NewSecret(bytes.TrimRight(data, "\r\n")), nil
}
