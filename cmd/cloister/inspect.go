// SPDX-License-Identifier: Apache-2.0
// Copyright The Cloister Authors.

package main

import (
	"fmt"
	"io"
	"strings"
	"text/tabwriter"

	"github.com/spf13/cobra"

	"github.com/cloister-cc/cloister/guestimage/imagecrypt"
)

// newInspectCommand returns "cloister inspect".
func newInspectCommand() *cobra.Command {
	var a accessFlags
	var asJSON bool
	cmd := &cobra.Command{
		Use:   "inspect [flags] SOURCE",
		Short: "Show which layers of a container image are encrypted, and for whom",
		Long:  "inspect reads the manifests of an image, no layers, and needs no key.\n\n" + locationHelp,
		Example: `  cloister inspect oci:encrypted
  cloister inspect --json docker://registry.example/app:1-encrypted`,
		Args: cobra.ExactArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			l, err := parseLocation(cmd, args[0])
			if err != nil {
				return err
			}
			access, err := a.access(l)
			if err != nil {
				return err
			}
			r, err := imagecrypt.Inspect(cmd.Context(), l, access)
			if err != nil {
				return err
			}
			if asJSON {
				return printJSON(cmd.OutOrStdout(), r)
			}
			return printReport(cmd.OutOrStdout(), r)
		},
	}
	f := cmd.Flags()
	f.StringVar(&a.ca, "ca", "", "PEM certificates that the registry is checked against (default: those that this machine trusts)")
	f.StringVar(&a.auth, "auth", "", "credentials for it, in the auths format of Docker's config.json (default: that file)")
	f.BoolVar(&asJSON, "json", false, "print JSON")
	return cmd
}

// printReport prints for people. What the image says of itself is quoted: it must not command a terminal.
func printReport(out io.Writer, r *imagecrypt.Report) error {
	if r.Index {
		_, _ = fmt.Fprintf(out, "index     %s\n", r.Digest)
	}
	for _, img := range r.Images {
		_, _ = fmt.Fprintf(out, "manifest  %s", img.Digest)
		if img.Platform != "" {
			_, _ = fmt.Fprintf(out, "  %s", plain(img.Platform))
		}
		_, _ = fmt.Fprintln(out)
		w := tabwriter.NewWriter(out, 0, 0, 2, ' ', 0)
		for i, l := range img.Layers {
			_, _ = fmt.Fprintf(w, "  layer %d\t%s\t%s\t%s\t%s\n", i, l.Digest, byteSize(l.Size), plain(l.MediaType), decryptedBy(l))
		}
		if err := w.Flush(); err != nil {
			return err
		}
	}
	for _, d := range r.Skipped {
		_, _ = fmt.Fprintf(out, "no image  %s\n", d)
	}
	return nil
}

// decryptedBy says what a layer needs.
func decryptedBy(l imagecrypt.LayerReport) string {
	if !l.Encrypted {
		return "not encrypted"
	}
	var who []string
	for _, r := range l.Recipients {
		who = append(who, strings.TrimSpace(plain(r.Protocol)+" "+plain(r.Name)))
	}
	text := "needs " + strings.Join(who, " or ")
	if l.Problem != "" {
		text += "; broken: " + plain(l.Problem)
	}
	return text
}

// plain makes text that is not trusted safe to print: at most 200 bytes, and what is not printable is escaped.
func plain(s string) string {
	q := fmt.Sprintf("%.200q", s)
	return strings.ReplaceAll(q[1:len(q)-1], `\"`, `"`)
}
