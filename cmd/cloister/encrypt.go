// SPDX-License-Identifier: Apache-2.0
// Copyright The Cloister Authors.

package main

import (
	"crypto/x509"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"

	"github.com/spf13/cobra"

	"github.com/cloister-cc/cloister/guestimage/imagecrypt"
	"github.com/cloister-cc/cloister/internal/progress"
)

const encryptExample = `  head -c 32 /dev/urandom > demo.key
  cloister encrypt --key kbs:///default/image-key/demo=demo.key oci:plain oci:encrypted

  # in a registry, for a guest and for two people
  cloister encrypt --key kbs:///default/image-key/demo=demo.key --recipient jwe:anna.pem --recipient pkcs7:bob.crt docker://registry.example/app:1 docker://registry.example/app:1-encrypted

  # only the top layer, of one platform of an index
  cloister encrypt --key kbs:///default/image-key/demo=demo.key --layer -1 --platform linux/s390x docker-archive:app.tar oci-archive:encrypted.tar`

const locationHelp = "Images are docker://HOST/REPOSITORY:TAG[@DIGEST] (a registry), oci:DIR[:TAG], oci-archive:FILE[:TAG] or\n" +
	"docker-archive:FILE[:NAME:TAG]. Folders and files of a destination must not be there yet; they appear when they are whole."

// copyFlags are the flags of commands that copy an image.
type copyFlags struct {
	source, destination accessFlags
	platforms           []string
	workers             int
	asJSON              bool
}

// accessFlags say how a registry is reached.
type accessFlags struct{ ca, auth string }

// access reads the files of the flags, or what this machine trusts and knows.
func (a accessFlags) access(l imagecrypt.Location) (imagecrypt.Access, error) {
	if l.Transport != imagecrypt.Docker {
		return imagecrypt.Access{}, nil
	}
	auth := a.auth
	if auth == "" {
		auth = dockerConfig()
	}
	access, err := imagecrypt.ReadAccess(a.ca, auth)
	if err == nil && a.ca == "" {
		if access.CA, err = x509.SystemCertPool(); err != nil {
			err = fmt.Errorf("read the certificates that this machine trusts: %w", err)
		}
	}
	return access, err
}

// dockerConfig returns Docker's own file of credentials, empty if there is none.
func dockerConfig() string {
	dir := os.Getenv("DOCKER_CONFIG")
	if dir == "" {
		home, err := os.UserHomeDir()
		if err != nil {
			return ""
		}
		dir = filepath.Join(home, ".docker")
	}
	name := filepath.Join(dir, "config.json")
	if _, err := os.Stat(name); errors.Is(err, fs.ErrNotExist) { //nolint:gosec // G703: the user says where
		return ""
	}
	return name
}

func (c *copyFlags) add(cmd *cobra.Command) {
	f := cmd.Flags()
	f.StringVar(&c.source.ca, "src-ca", "", "PEM certificates that the source's registry is checked against (default: those that this machine trusts)")
	f.StringVar(&c.source.auth, "src-auth", "", "credentials for it, in the auths format of Docker's config.json (default: that file)")
	f.StringVar(&c.destination.ca, "dest-ca", "", "PEM certificates that the destination's registry is checked against")
	f.StringVar(&c.destination.auth, "dest-auth", "", "credentials for it")
	f.StringArrayVar(&c.platforms, "platform", nil, "os/architecture[/variant] that is copied of an index (may be repeated; default: all)")
	f.IntVar(&c.workers, "jobs", 0, "layers that are worked on at a time (default 4)")
	f.BoolVar(&c.asJSON, "json", false, "print a report instead of the digest")
}

// options parses the arguments of a copy.
func (c *copyFlags) options(cmd *cobra.Command, args []string) (o imagecrypt.CopyOptions, err error) {
	if o.Source, err = parseLocation(cmd, args[0]); err != nil {
		return o, err
	}
	if o.Destination, err = parseLocation(cmd, args[1]); err != nil {
		return o, err
	}
	if o.SourceAccess, err = c.source.access(o.Source); err != nil {
		return o, err
	}
	if o.DestinationAccess, err = c.destination.access(o.Destination); err != nil {
		return o, err
	}
	o.Platforms, o.Workers = c.platforms, c.workers
	return o, nil
}

// showProgress shows how far a copy is until the returned func is called.
func showProgress(cmd *cobra.Command, what string, o *imagecrypt.CopyOptions) (done func()) {
	task := progress.Start(cmd.ErrOrStderr(), what, 0)
	o.Progress = task.Set
	return task.Done
}

// locationUsage is a wrong location: wrong usage with the location's own hint.
type locationUsage struct{ usageError }

// Hint is that of the location.
func (e *locationUsage) Hint() string {
	var h interface{ Hint() string }
	if errors.As(e.err, &h) {
		return h.Hint()
	}
	return e.usageError.Hint()
}

// ExitCode is that of wrong usage.
func (e *locationUsage) ExitCode() int { return exitUsage }

func parseLocation(cmd *cobra.Command, s string) (imagecrypt.Location, error) {
	l, err := imagecrypt.ParseLocation(s)
	if err != nil {
		return l, &locationUsage{usageError{cmd: cmd.CommandPath(), err: err}}
	}
	return l, nil
}

// print shows the result of a copy: the digest, which names the image for good.
func (c *copyFlags) print(cmd *cobra.Command, r *imagecrypt.Result, did string) error {
	if c.asJSON {
		return printJSON(cmd.OutOrStdout(), r)
	}
	if r.Unchanged > 0 {
		_, _ = fmt.Fprintf(cmd.ErrOrStderr(), "cloister: %d layers %s, %d copied as they are\n", r.Changed, did, r.Unchanged)
	}
	if r.Skipped > 0 {
		_, _ = fmt.Fprintf(cmd.ErrOrStderr(), "cloister: %d entries of the index are no images and were left out\n", r.Skipped)
	}
	_, err := fmt.Fprintln(cmd.OutOrStdout(), r.Digest)
	return err
}

// newEncryptCommand returns "cloister encrypt".
func newEncryptCommand() *cobra.Command {
	var c copyFlags
	var keyArgs, recipientArgs []string
	var ring string
	var layers []int
	cmd := &cobra.Command{
		Use:   "encrypt {--key URI=FILE | --recipient PROTOCOL:WHO} [flags] SOURCE DESTINATION",
		Short: "Encrypt the layers of a container image",
		Long: "encrypt copies an image with its layers encrypted. Guests that have one of the keys can run it, and whoever has the\n" +
			"private key of a recipient can decrypt it. A key file holds 32 random bytes. What is printed is the new digest.\n" +
			"Layers that are encrypted already stay as they are.\n\n" + locationHelp,
		Example: encryptExample,
		Args:    cobra.ExactArgs(2),
		RunE: func(cmd *cobra.Command, args []string) error {
			o, err := c.options(cmd, args)
			if err != nil {
				return err
			}
			o.Layers = layers
			recipients, err := readRecipients(cmd, keyArgs, recipientArgs, ring)
			if err != nil {
				return err
			}
			defer imagecrypt.Wipe(recipients)
			done := showProgress(cmd, "encrypt", &o)
			defer done()
			r, err := imagecrypt.Encrypt(cmd.Context(), o, recipients)
			if err != nil {
				return err
			}
			return c.print(cmd, r, "encrypted")
		},
	}
	f := cmd.Flags()
	f.StringArrayVar(&keyArgs, "key", nil, "key of guests as kbs:///repository/type/tag=FILE (may be repeated: any of them decrypts)")
	f.StringArrayVar(&recipientArgs, "recipient", nil, "who else can decrypt: jwe:PUBLIC-KEY-FILE, pkcs7:CERTIFICATE-FILE or pgp:ADDRESS (may be repeated)")
	f.StringVar(&ring, "pgp-public-ring", "", "file with the public keys of pgp recipients, as gpg --export writes it")
	f.IntSliceVar(&layers, "layer", nil, "number of a layer to encrypt, 0 is the lowest, -1 the top (may be repeated; default: all)")
	c.add(cmd)
	return cmd
}

func readRecipients(cmd *cobra.Command, keyArgs, recipientArgs []string, ring string) ([]imagecrypt.Recipient, error) {
	if len(keyArgs)+len(recipientArgs) == 0 {
		return nil, &usageError{cmd: cmd.CommandPath(), err: errors.New("not given: --key or --recipient")}
	}
	files, err := parseKeyFiles(cmd, "--key", keyArgs)
	if err != nil {
		return nil, err
	}
	recipients, err := imagecrypt.ReadRecipients(files)
	if err != nil {
		return nil, err
	}
	for _, arg := range recipientArgs {
		r, err := imagecrypt.ReadRecipient(arg, ring)
		if err != nil {
			imagecrypt.Wipe(recipients)
			return nil, err
		}
		recipients = append(recipients, r)
	}
	return recipients, nil
}
