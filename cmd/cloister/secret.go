// SPDX-License-Identifier: Apache-2.0
// Copyright The Cloister Authors.

package main

import (
	"errors"
	"fmt"
	"io"
	"os"

	"github.com/spf13/cobra"

	"github.com/cloister-cc/cloister/keys"
	"github.com/cloister-cc/cloister/keys/sealed"
)

// maxKeyFile bounds the file of a signing key, in bytes.
const maxKeyFile = 64 << 10

const secretExample = `  cloister secret new-key --private owner.jwk --public owner.pub.jwk
  cloister secret seal --name kbs:///default/secret/token --key-id kbs:///default/signing-key/owner --key owner.jwk

  # the guest that opens it
  cloister build ... --secret kbs:///default/secret/token=token.txt --secret kbs:///default/signing-key/owner=owner.pub.jwk`

// newSecretCommand returns "cloister secret" and all below it.
func newSecretCommand() *cobra.Command {
	cmd := &cobra.Command{
		Use:   "secret",
		Short: "Seal secrets: text that stands for a secret in a container's environment",
		Long: "A sealed secret is text that can be given to the host, in the environment of a pod for instance. It names a secret\n" +
			"of the guest and is signed; the guest checks the signature and puts the secret into its place. The format is that of\n" +
			"Confidential Containers (type vault, provider kbs, ES256).",
		Example: secretExample,
		Args:    cobra.NoArgs,
		RunE:    func(cmd *cobra.Command, _ []string) error { return cmd.Help() },
	}
	cmd.AddCommand(newSecretKeyCommand(), newSecretSealCommand())
	return cmd
}

func newSecretKeyCommand() *cobra.Command {
	var private, public string
	cmd := &cobra.Command{
		Use:     "new-key",
		Short:   "Make the key of a signer",
		Long:    "new-key makes a P-256 key: the private one stays with the owner of the secrets, the public one goes into the guest.",
		Example: "  cloister secret new-key --private owner.jwk --public owner.pub.jwk",
		Args:    cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			if err := requireFlags(cmd, "private", "public"); err != nil {
				return err
			}
			secret, pub, err := sealed.NewKey()
			if err != nil {
				return err
			}
			defer secret.Wipe()
			if err := writeNew(private, secret.Bytes(), 0o600); err != nil {
				return fmt.Errorf("write private key: %w", err)
			}
			if err := writeNew(public, pub, 0o644); err != nil {
				return errors.Join(fmt.Errorf("write public key: %w", err), os.Remove(private))
			}
			return nil
		},
	}
	f := cmd.Flags()
	f.StringVar(&private, "private", "", "file for the private key; one that is there is never replaced")
	f.StringVar(&public, "public", "", "file for the public key")
	return cmd
}

// writeNew writes a file that must not be there; after an error it is not.
func writeNew(path string, data []byte, perm os.FileMode) error {
	f, err := os.OpenFile(path, os.O_WRONLY|os.O_CREATE|os.O_EXCL, perm)
	if err != nil {
		return err
	}
	_, err = f.Write(data)
	if err = errors.Join(err, f.Close()); err != nil {
		return errors.Join(err, os.Remove(path))
	}
	return nil
}

func newSecretSealCommand() *cobra.Command {
	var name, keyID, keyFile string
	cmd := &cobra.Command{
		Use:     "seal",
		Short:   "Print the text that stands for a secret",
		Example: "  cloister secret seal --name kbs:///default/secret/token --key-id kbs:///default/signing-key/owner --key owner.jwk",
		Args:    cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			if err := requireFlags(cmd, "name", "key-id", "key"); err != nil {
				return err
			}
			for _, uri := range []struct{ flag, value string }{{"name", name}, {"key-id", keyID}} {
				if _, err := keys.ParseURI(uri.value); err != nil {
					return &usageError{cmd: cmd.CommandPath(), err: fmt.Errorf("--%s: %w", uri.flag, err)}
				}
			}
			text, err := sealSecret(name, keyID, keyFile)
			if err != nil {
				return err
			}
			_, err = fmt.Fprintln(cmd.OutOrStdout(), text)
			return err
		},
	}
	f := cmd.Flags()
	f.StringVar(&name, "name", "", "URI of the secret in the guest: kbs:///repository/type/tag")
	f.StringVar(&keyID, "key-id", "", "URI of the signer's public key in the guest")
	f.StringVar(&keyFile, "key", "", "the signer's private key, as new-key writes it")
	return cmd
}

func sealSecret(name, keyID, keyFile string) (string, error) {
	f, err := os.Open(keyFile)
	if err != nil {
		return "", fmt.Errorf("read signing key: %w", err)
	}
	defer f.Close()
	data, err := io.ReadAll(io.LimitReader(f, maxKeyFile))
	if err != nil {
		return "", fmt.Errorf("read signing key: %w", err)
	}
	defer keys.Wipe(data)
	key, err := sealed.ParsePrivateKey(data)
	if err != nil {
		return "", fmt.Errorf("%s: %w", keyFile, err)
	}
	return sealed.Seal(name, keyID, key)
}
