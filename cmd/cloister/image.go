// SPDX-License-Identifier: Apache-2.0
// Copyright The Cloister Authors.

package main

import (
	"fmt"
	"runtime"

	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
	"github.com/spf13/cobra"

	"github.com/cloister-cc/cloister/guestimage/imagecrypt"
)

const imageExample = `  cloister image create --rootfs busybox/ --arch s390x --entrypoint /bin/sh plain/
  head -c 32 /dev/urandom > demo.key
  cloister image encrypt --key kbs:///default/image-key/demo=demo.key plain/ encrypted/
  cloister image push --ca ca.pem --auth auth.json encrypted/ registry.example:5000/demo/busybox:1`

// newImageCommand returns "cloister image".
func newImageCommand() *cobra.Command {
	cmd := &cobra.Command{
		Use:   "image",
		Short: "Make, encrypt and push container images for guests",
		Long: "image works on OCI image layouts in folders. What it encrypts, any Confidential Containers guest that has the\n" +
			"key can run.",
		Example: imageExample,
		Args:    cobra.NoArgs,
		RunE:    func(cmd *cobra.Command, _ []string) error { return cmd.Help() },
	}
	cmd.AddCommand(newImageCreateCommand(), newImageEncryptCommand(), newImagePushCommand())
	return cmd
}

func newImageCreateCommand() *cobra.Command {
	var o imagecrypt.Options
	cmd := &cobra.Command{
		Use:   "create --rootfs DIR [flags] LAYOUT",
		Short: "Make an image with one layer out of a root file system",
		Long:  "create writes an OCI image layout. The same input makes the same image, byte by byte.",
		Args:  cobra.ExactArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			if err := requireFlags(cmd, "rootfs"); err != nil {
				return err
			}
			o.Output = args[0]
			desc, err := imagecrypt.FromRootfs(cmd.Context(), o)
			return printDigest(cmd, desc, err)
		},
	}
	f := cmd.Flags()
	f.StringVar(&o.Rootfs, "rootfs", "", "root file system: folder or uncompressed tar archive")
	f.StringVar(&o.Arch, "arch", runtime.GOARCH, "architecture of the image: s390x or amd64")
	f.StringArrayVar(&o.Config.Entrypoint, "entrypoint", nil, "program that a container runs, and its first arguments (may be repeated)")
	f.StringArrayVar(&o.Config.Cmd, "cmd", nil, "argument that a container's spec may replace (may be repeated)")
	f.StringArrayVar(&o.Config.Env, "env", nil, "environment variable NAME=VALUE (may be repeated)")
	f.StringVar(&o.Config.WorkingDir, "workdir", "", "working folder")
	f.StringVar(&o.Config.User, "user", "", "user[:group]")
	f.StringVar(&o.Compression, "compression", imagecrypt.Gzip, "compression of the layer: gzip, zstd or none")
	return cmd
}

func newImageEncryptCommand() *cobra.Command {
	var keyArgs []string
	cmd := &cobra.Command{
		Use:   "encrypt --key URI=FILE SOURCE DESTINATION",
		Short: "Encrypt every layer of an image",
		Long: "encrypt writes the image of the layout SOURCE to the layout DESTINATION. Guests that have one of the keys can\n" +
			"run it. A key file holds 32 random bytes.",
		Args: cobra.ExactArgs(2),
		RunE: func(cmd *cobra.Command, args []string) error {
			if err := requireFlags(cmd, "key"); err != nil {
				return err
			}
			recipients, err := imagecrypt.ReadRecipients(keyArgs)
			if err != nil {
				return err
			}
			defer imagecrypt.Wipe(recipients)
			desc, err := imagecrypt.Encrypt(cmd.Context(), args[0], args[1], recipients)
			return printDigest(cmd, desc, err)
		},
	}
	cmd.Flags().StringArrayVar(&keyArgs, "key", nil, "key as kbs:///repository/type/tag=FILE (may be repeated: any of them decrypts)")
	return cmd
}

func newImagePushCommand() *cobra.Command {
	var ca, auth string
	cmd := &cobra.Command{
		Use:   "push --ca FILE [--auth FILE] LAYOUT REFERENCE",
		Short: "Copy an image to a registry",
		Long:  "push copies the image of an OCI image layout to host[:port]/repository:tag, over HTTPS only.",
		Args:  cobra.ExactArgs(2),
		RunE: func(cmd *cobra.Command, args []string) error {
			if err := requireFlags(cmd, "ca"); err != nil {
				return err
			}
			o, err := imagecrypt.ReadPushOptions(ca, auth)
			if err != nil {
				return err
			}
			desc, err := imagecrypt.Push(cmd.Context(), args[0], args[1], o)
			return printDigest(cmd, desc, err)
		},
	}
	cmd.Flags().StringVar(&ca, "ca", "", "PEM certificates that the registry is checked against")
	cmd.Flags().StringVar(&auth, "auth", "", "registry credentials in the auths format of Docker's config.json")
	return cmd
}

// printDigest prints the digest of a manifest, which names the image for good.
func printDigest(cmd *cobra.Command, desc ocispec.Descriptor, err error) error {
	if err != nil {
		return err
	}
	_, err = fmt.Fprintln(cmd.OutOrStdout(), desc.Digest)
	return err
}
