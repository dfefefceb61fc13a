// SPDX-License-Identifier: Apache-2.0
// Copyright The Cloister Authors.

package main

import (
	"context"
	"crypto/ecdh"
	"crypto/ecdsa"
	"crypto/x509"
	"encoding/pem"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"

	"github.com/spf13/cobra"

	"github.com/cloister-cc/cloister/keys"
	"github.com/cloister-cc/cloister/se/uvsim"
)

// newSEOpenCommand returns "cloister se open".
func newSEOpenCommand() *cobra.Command {
	var hostKeys, backupKeys []string
	var dir, unsealed string
	cmd := &cobra.Command{
		Use:   "open IMAGE",
		Short: "Open an image as the ultravisor would, with a private host key",
		Long: "open simulates the ultravisor: it makes the checks of a real machine, answers with its return codes, and opens the\n" +
			"image. Private host keys of real machines never leave them; this is for demonstrations and tests with keys of your\n" +
			"own. What it writes is in the clear. With --unseal, it writes an image that an emulated machine boots.",
		Example: "  cloister se open --host-key host.key --output opened/ se.img\n  cloister se open --host-key host.key --unseal plain.img se.img",
		Args:    cobra.ExactArgs(1),
		RunE: func(cmd *cobra.Command, args []string) (err error) {
			if err := requireFlags(cmd, "host-key"); err != nil {
				return err
			}
			m := &uvsim.Machine{}
			if m.HostKeys, err = readHostKeys(hostKeys); err != nil {
				return err
			}
			if m.BackupKeys, err = readHostKeys(backupKeys); err != nil {
				return err
			}
			return openSealed(cmd, m, args[0], dir, unsealed)
		},
	}
	f := cmd.Flags()
	f.StringArrayVar(&hostKeys, "host-key", nil, "private host key, PEM (may be repeated)")
	f.StringArrayVar(&backupKeys, "backup-host-key", nil, "private backup host key, PEM (may be repeated)")
	f.StringVarP(&dir, "output", "o", "", "folder to make for kernel, initramfs and command line")
	f.StringVar(&unsealed, "unseal", "", "file to write with the image in the clear")
	return cmd
}

// maxHostKeyFile bounds the file of a private key, in bytes.
const maxHostKeyFile = 64 << 10

func readHostKeys(paths []string) ([]*ecdh.PrivateKey, error) {
	var out []*ecdh.PrivateKey
	for _, path := range paths {
		data, err := readLimited(path, maxHostKeyFile)
		if err != nil {
			return nil, fmt.Errorf("host key: %w", err)
		}
		key, err := parseHostKey(data)
		keys.Wipe(data)
		if err != nil {
			return nil, fmt.Errorf("host key %s: %w", path, err)
		}
		out = append(out, key)
	}
	return out, nil
}

// parseHostKey reads a PEM private key, PKCS #8 or SEC 1. Errors do not quote it.
func parseHostKey(data []byte) (*ecdh.PrivateKey, error) {
	wrong := errors.New("not a PEM private key of the curve P-521")
	for {
		var block *pem.Block
		if block, data = pem.Decode(data); block == nil {
			return nil, wrong
		}
		defer keys.Wipe(block.Bytes)
		var key any
		var err error
		switch block.Type {
		case "PRIVATE KEY":
			key, err = x509.ParsePKCS8PrivateKey(block.Bytes)
		case "EC PRIVATE KEY":
			key, err = x509.ParseECPrivateKey(block.Bytes)
		default: // openssl writes the curve's parameters before the key
			continue
		}
		if err != nil {
			return nil, wrong
		}
		private, ok := key.(*ecdsa.PrivateKey)
		if !ok {
			return nil, wrong
		}
		host, err := private.ECDH()
		if err != nil || host.Curve() != ecdh.P521() {
			return nil, wrong
		}
		return host, nil
	}
}

// openSealed opens an image and writes what was asked for.
func openSealed(cmd *cobra.Command, m *uvsim.Machine, image, dir, unsealed string) error {
	for _, path := range []string{dir, unsealed} { // before anything is written
		if _, err := os.Lstat(path); path != "" && err == nil {
			return fmt.Errorf("%s is there already: choose another name", path)
		}
	}
	f, size, err := openRegular(image)
	if err != nil {
		return err
	}
	defer f.Close()
	g, err := m.Open(cmd.Context(), f, size)
	if err != nil {
		return fmt.Errorf("%s: %w", image, err)
	}
	defer g.Close()
	if dir != "" {
		if err := writeParts(cmd.Context(), g, dir); err != nil {
			return err
		}
	}
	if unsealed != "" {
		if err := writeUnsealed(cmd.Context(), g, f, size, unsealed); err != nil {
			return err
		}
	}
	_, err = fmt.Fprintf(cmd.OutOrStdout(), "%s opens: header authentic, %d pages verified\n", image, g.Image.Header.Digests.Pages)
	return err
}

// writeParts writes the parts into a new folder; after an error there is none.
func writeParts(ctx context.Context, g *uvsim.Guest, dir string) (err error) {
	if err := os.Mkdir(dir, 0o700); err != nil {
		return err
	}
	defer func() {
		if err != nil {
			err = errors.Join(err, os.RemoveAll(dir))
		}
	}()
	for name, write := range map[string]func(context.Context, io.Writer) error{
		"kernel": g.WriteKernel, "initramfs.img": g.WriteRamdisk, "cmdline": g.WriteCommandLine,
	} {
		if err := writeClear(filepath.Join(dir, name), func(f *os.File) error { return write(ctx, f) }); err != nil {
			return err
		}
	}
	return nil
}

// writeUnsealed writes a copy of the image with its components in the clear.
func writeUnsealed(ctx context.Context, g *uvsim.Guest, image io.ReaderAt, size int64, path string) error {
	return writeClear(path, func(f *os.File) error {
		first := int64(g.Image.IPIB.Components[0].Address)
		if _, err := io.Copy(f, io.NewSectionReader(image, 0, min(first, size))); err != nil {
			return err
		}
		return g.Unseal(ctx, f)
	})
}

// writeClear writes a new file that only its owner may read; after an error it is not there.
func writeClear(path string, fill func(*os.File) error) error {
	f, err := os.OpenFile(path, os.O_WRONLY|os.O_CREATE|os.O_EXCL, 0o600)
	if err != nil {
		return err
	}
	err = fill(f)
	if err = errors.Join(err, f.Close()); err != nil {
		return errors.Join(fmt.Errorf("write %s: %w", path, err), os.Remove(path))
	}
	return nil
}
