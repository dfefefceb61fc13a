// SPDX-License-Identifier: Apache-2.0
// Copyright The Cloister Authors.

package main

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"slices"
	"strings"
	"time"

	"github.com/spf13/cobra"
	"github.com/spf13/pflag"

	"github.com/cloister-cc/cloister/guestimage"
	"github.com/cloister-cc/cloister/guestimage/imagecrypt"
	"github.com/cloister-cc/cloister/initramfs"
	"github.com/cloister-cc/cloister/internal/version"
	"github.com/cloister-cc/cloister/keys"
)

const buildExample = `  # a guest whose agent answers no request until it gets a policy
  cloister build --arch s390x --rootfs rootfs/ --kernel boot/vmlinuz --modules lib/modules/6.12-s390x \
      --agent cloister-agent --crun crun --pause pause --output guest/

  # one that uses encrypted images of a registry of yours, if they are signed as a policy wants it
  cloister build ... --registry-ca ca.pem --registry-auth auth.json --image-policy policy.json \
      --image-key kbs:///default/image-key/demo=demo.key --output guest/

  # one for a test: every request passes, and every image is used
  cloister build ... --registry-ca ca.pem --image-policy insecureAcceptAnything --policy allow-all --output guest/

  # one that needs no registry for two images: they lie in its root disk
  cloister build ... --image docker.io/library/busybox:1 --image registry.example/app:2=oci:app/ --output guest/`

// valueFlags are the flags of build whose values stand in no file: a wrong one is wrong usage.
var valueFlags = []string{"arch", "policy", "log-level", "compression"}

// newBuildCommand returns "cloister build".
func newBuildCommand() *cobra.Command {
	var o guestimage.Options
	var images, imageKeys, privateKeys, secrets []string
	var compression string
	var asJSON bool
	cmd := &cobra.Command{
		Use:   "build",
		Short: "Build a guest: encrypted root disk, initramfs that unlocks it, kernel",
		Long: "build writes a folder with a kernel, an initramfs, an encrypted root disk and guest.json, which describes them.\n" +
			"It needs no privileges. The initramfs holds the disk's key: seal it before it leaves a trusted machine.\n\n" +
			"--image takes an image from its registry, or from LOCATION: docker://HOST/REPOSITORY:TAG, oci:DIR[:TAG],\n" +
			"oci-archive:FILE[:TAG] or docker-archive:FILE[:NAME:TAG]. Containers name it by its REFERENCE.\n\n" +
			"'make build' makes the agent; 'cloister setup --json' names a kernel, its modules, a static crun and a pause process.",
		Example: buildExample,
		Args:    cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			if err := requireFlags(cmd, "rootfs", "kernel", "modules", "agent", "crun", "pause", "output"); err != nil {
				return err
			}
			var err error
			if o.ImageKeys, err = parseKeyFiles(cmd, "--image-key", imageKeys); err != nil {
				return err
			}
			if o.Image.PrivateKeys, err = parseKeyFiles(cmd, "--image-private-key", privateKeys); err != nil {
				return err
			}
			if o.Secrets, err = parseKeyFiles(cmd, "--secret", secrets); err != nil {
				return err
			}
			if o.Images, o.ImageAccess, err = parseImages(cmd, images, accessFlags{o.RegistryCA, o.RegistryAuth}); err != nil {
				return err
			}
			o.Compression = initramfs.Compression(compression)
			o.Builder = version.String()
			err = runBuild(cmd, o, asJSON)
			if in, ok := errors.AsType[*guestimage.InputError](err); ok && slices.Contains(valueFlags, in.Input) {
				return &usageError{cmd: cmd.CommandPath(), err: fmt.Errorf("--%w", err)}
			}
			return err
		},
	}
	f := cmd.Flags()
	f.StringVar(&o.Arch, "arch", initramfs.ArchS390x, "architecture of the guest: s390x or amd64")
	f.StringVar(&o.Rootfs, "rootfs", "", "root file system: folder or uncompressed tar archive")
	f.StringVar(&o.Kernel, "kernel", "", "bootable kernel image (vmlinuz)")
	f.StringVar(&o.ModulesDir, "modules", "", "the kernel's modules: its lib/modules/VERSION folder")
	f.StringVar(&o.Agent, "agent", "", "cloister-agent for the guest's architecture")
	f.StringVar(&o.Crun, "crun", "", "static crun for the guest's architecture")
	f.StringVar(&o.Pause, "pause", "", "static pause process for the guest's architecture")
	f.StringArrayVar(&images, "image", nil, "container image to put into the root disk, as REFERENCE[=LOCATION] (may be repeated)")
	f.StringVar(&o.RegistryCA, "registry-ca", "", "PEM certificates that registries are checked against")
	f.StringVar(&o.RegistryAuth, "registry-auth", "", "registry credentials, like Docker's config.json")
	f.StringArrayVar(&imageKeys, "image-key", nil, "URI=FILE: the 32 byte image key of kbs:///repository/type/tag (may be repeated)")
	addImageFlags(f, &o.Image, &privateKeys)
	f.StringArrayVar(&secrets, "secret", nil, "URI=FILE: what a sealed secret names, or the public key of its signer (may be repeated)")
	f.StringVar(&o.Policy, "policy", "", "requests of the host: deny-all (default) or allow-all")
	f.StringVar(&o.LogLevel, "log-level", "", "agent's log level: debug, info (default), warn or error")
	f.Uint32Var(&o.LogPort, "log-port", 0, "vsock port on which the host can read the agent's log, 1025 for the Kata shim")
	f.BoolVar(&o.DebugConsole, "debug-console", false, "give the host a shell in the guest, on vsock port 1026: for development")
	f.BoolVar(&o.Privileged, "privileged", false, "allow privileged containers, which are root in the guest")
	f.StringVar(&o.GuestHookPath, "guest-hook-path", "", "folder of the root file system with hooks for containers")
	f.IntVar(&o.ContainerPipeSize, "container-pipe-size", 0, "size of containers' pipes in bytes (default: the kernel's)")
	f.BoolVar(&o.Tracing, "tracing", false, "write a span of each request to the agent's log")
	f.StringSliceVar(&o.ExtraModules, "module", nil, "further kernel module to load (may be repeated)")
	f.StringVar(&compression, "compression", "", "compression of the initramfs: none (default) or zstd")
	f.StringVarP(&o.Output, "output", "o", "", "folder to write; a guest that is there is replaced")
	f.BoolVar(&asJSON, "json", false, "print the result as JSON on standard output")
	return cmd
}

// addImageFlags adds the flags that say which images the guest will use.
func addImageFlags(f *pflag.FlagSet, o *guestimage.ImageOptions, privateKeys *[]string) {
	f.StringArrayVar(privateKeys, "image-private-key", nil, "URI=FILE: private key for layers encrypted with jwe, pkcs7 or pgp (may be repeated)")
	f.StringVar(&o.Policy, "image-policy", "", "policy.json that decides on images, or "+guestimage.AcceptAnything+" (default: all are refused)")
	f.StringVar(&o.SigstoreConfig, "sigstore-config", "", "where signatures are kept beside registries, as in containers-registries.d(5)")
	f.StringVar(&o.Registries, "registries-conf", "", "mirrors and blocked registries, as in containers-registries.conf(5)")
	f.BoolVar(&o.AllowInsecure, "allow-insecure-registries", false, "let registries.conf name registries whose certificates are not checked")
	f.StringVar(&o.HTTPSProxy, "https-proxy", "", "URL of the proxy by which registries are reached")
	f.StringVar(&o.NoProxy, "no-proxy", "", "what is reached without it, separated by commas")
	f.StringVar(&o.CDHConfig, "cdh-config", "", "cdh.toml of Confidential Containers, whose [image] table says more")
}

// requireFlags makes a usage error of flags that are not given, all at once.
func requireFlags(cmd *cobra.Command, names ...string) error {
	var missing []string
	for _, name := range names {
		if f := cmd.Flags().Lookup(name); f == nil || !f.Changed || f.Value.String() == "" {
			missing = append(missing, "--"+name)
		}
	}
	if len(missing) == 0 {
		return nil
	}
	return &usageError{cmd: cmd.CommandPath(), err: fmt.Errorf("not given: %s", strings.Join(missing, ", "))}
}

// parseKeyFiles reads the values of a flag that is URI=FILE into a map from URI to file.
func parseKeyFiles(cmd *cobra.Command, flag string, args []string) (map[string]string, error) {
	wrong := func(format string, a ...any) error {
		return &usageError{cmd: cmd.CommandPath(), err: fmt.Errorf(flag+" "+format, a...)}
	}
	out := make(map[string]string, len(args))
	for _, arg := range args {
		uri, file, ok := strings.Cut(arg, "=")
		if !ok || file == "" {
			return nil, wrong("wants URI=FILE, for instance kbs:///default/image-key/demo=demo.key")
		}
		if _, err := keys.ParseURI(uri); err != nil {
			return nil, wrong("wants URI=FILE: %w", err)
		}
		if _, ok := out[uri]; ok {
			return nil, wrong("is given twice for %s", uri)
		}
		out[uri] = file
	}
	return out, nil
}

// parseImages reads the values of --image. Where the guest is to trust no registry, those are used that this machine
// trusts.
func parseImages(cmd *cobra.Command, args []string, access accessFlags) ([]guestimage.Image, imagecrypt.Access, error) {
	if len(args) == 0 {
		return nil, imagecrypt.Access{}, nil
	}
	var images []guestimage.Image
	for _, arg := range args {
		i, err := guestimage.ParseImage(arg)
		if err != nil {
			return nil, imagecrypt.Access{}, &locationUsage{usageError{cmd: cmd.CommandPath(), err: fmt.Errorf("--image: %w", err)}}
		}
		images = append(images, i)
	}
	a, err := access.access(imagecrypt.Location{Transport: imagecrypt.Docker})
	return images, a, err
}

func runBuild(cmd *cobra.Command, o guestimage.Options, asJSON bool) error {
	stderr := cmd.ErrOrStderr()
	o.Progress = func(s guestimage.Step) {
		_, _ = fmt.Fprintf(stderr, "%-16s %10s %8s\n", s.Name, byteSize(s.Size), s.Took.Round(time.Millisecond))
	}
	res, err := guestimage.Build(cmd.Context(), o)
	if err != nil {
		return err
	}
	for _, w := range res.Guest.Warnings {
		_, _ = fmt.Fprintf(stderr, "warning: %s\n", w)
	}
	if asJSON {
		return printJSON(cmd.OutOrStdout(), res)
	}
	_, err = fmt.Fprintf(cmd.OutOrStdout(), "%s\n", o.Output)
	return err
}

// printJSON writes v indented.
func printJSON(w io.Writer, v any) error {
	enc := json.NewEncoder(w)
	enc.SetEscapeHTML(false)
	enc.SetIndent("", "  ")
	return enc.Encode(v)
}

// byteSize prints a size with a binary unit.
func byteSize(n int64) string {
	const unit = 1024
	if n < unit {
		return fmt.Sprintf("%d B", n)
	}
	v, prefix := float64(n)/unit, 0
	for v >= unit && prefix < 3 {
		v /= unit
		prefix++
	}
	return fmt.Sprintf("%.1f %ciB", v, "KMGT"[prefix])
}
