// SPDX-License-Identifier: Apache-2.0
// Copyright The Cloister Authors.

package main

import (
	"fmt"
	"runtime"
	"slices"
	"strings"

	"github.com/opencontainers/go-digest"
	"github.com/spf13/cobra"

	"github.com/cloister-cc/cloister/guestimage/imagecrypt"
	"github.com/cloister-cc/cloister/initramfs"
)

const imageExample = `  cloister image create --rootfs busybox/ --arch s390x --entrypoint /bin/sh plain/
  head -c 32 /dev/urandom > demo.key
  cloister encrypt --key kbs:///default/image-key/demo=demo.key oci:plain oci:encrypted
  cloister image push --ca ca.pem --auth auth.json encrypted/ registry.example:5000/demo/busybox:1`

// newImageCommand returns "cloister image".
func newImageCommand() *cobra.Command {
	cmd := &cobra.Command{
		Use:   "image",
		Short: "Make and push container images for guests",
		Long: "image works on OCI image layouts in folders. The commands encrypt, decrypt and inspect work on those and on images\n" +
			"in registries and archives.",
		Example: imageExample,
		Args:    cobra.NoArgs,
		RunE:    func(cmd *cobra.Command, _ []string) error { return cmd.Help() },
	}
	cmd.AddCommand(newImageCreateCommand(), newImagePushCommand())
	return cmd
}

func newImageCreateCommand() *cobra.Command {
	var o imagecrypt.Options
	cmd := &cobra.Command{
		Use:     "create --rootfs ROOTFS [flags] LAYOUT",
		Example: "  cloister image create --rootfs busybox/ --arch s390x --entrypoint /bin/sh plain/",
		Short:   "Make an image with one layer out of a root file system",
		Long: "create writes an OCI image layout and prints the digest of its manifest. The same input makes the same image, byte\n" +
			"by byte. Files of a folder belong to root in the image; a tar archive becomes the layer as it is.",
		Args: cobra.ExactArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			if err := requireFlags(cmd, "rootfs"); err != nil {
				return err
			}
			if err := checkImageFlags(cmd, &o); err != nil {
				return err
			}
			o.Output = args[0]
			desc, err := imagecrypt.FromRootfs(cmd.Context(), o)
			return printDigest(cmd, desc.Digest, err)
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

// checkImageFlags finds what would make an image that no guest can run.
func checkImageFlags(cmd *cobra.Command, o *imagecrypt.Options) error {
	wrong := func(format string, args ...any) error {
		return &usageError{cmd: cmd.CommandPath(), err: fmt.Errorf(format, args...)}
	}
	if !slices.Contains(initramfs.Architectures(), o.Arch) {
		return wrong("--arch is %s: %q", strings.Join(initramfs.Architectures(), " or "), o.Arch)
	}
	for _, e := range o.Config.Env {
		if name, _, ok := strings.Cut(e, "="); !ok || name == "" {
			return wrong("--env is not NAME=VALUE: %q", e)
		}
	}
	if compressions := []string{imagecrypt.Gzip, imagecrypt.Zstd, imagecrypt.None}; !slices.Contains(compressions, o.Compression) {
		return wrong("--compression is one of %s: %q", strings.Join(compressions, ", "), o.Compression)
	}
	return nil
}

func newImagePushCommand() *cobra.Command {
	var ca, auth string
	cmd := &cobra.Command{
		Use:     "push --ca FILE [flags] LAYOUT REFERENCE",
		Example: "  cloister image push --ca ca.pem --auth auth.json encrypted/ registry.example:5000/demo/busybox:1",
		Short:   "Copy an image to a registry",
		Long:    "push copies the image of an OCI image layout to host[:port]/repository:tag, over HTTPS only.",
		Args:    cobra.ExactArgs(2),
		RunE: func(cmd *cobra.Command, args []string) error {
			if err := requireFlags(cmd, "ca"); err != nil {
				return err
			}
			o, err := imagecrypt.ReadAccess(ca, auth)
			if err != nil {
				return err
			}
			d, err := imagecrypt.Push(cmd.Context(), args[0], args[1], o)
			return printDigest(cmd, d, err)
		},
	}
	cmd.Flags().StringVar(&ca, "ca", "", "PEM certificates that the registry is checked against")
	cmd.Flags().StringVar(&auth, "auth", "", "registry credentials in the auths format of Docker's config.json")
	return cmd
}

// printDigest prints the digest of a manifest, which names the image for good.
func printDigest(cmd *cobra.Command, d digest.Digest, err error) error {
	if err != nil {
		return err
	}
	_, err = fmt.Fprintln(cmd.OutOrStdout(), d)
	return err
}
