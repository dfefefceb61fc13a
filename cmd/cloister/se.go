// SPDX-License-Identifier: Apache-2.0
// Copyright The Cloister Authors.

package main

import (
	"crypto/ecdh"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"os"
	"strings"

	"github.com/spf13/cobra"

	"github.com/cloister-cc/cloister/keys"
	"github.com/cloister-cc/cloister/se"
	"github.com/cloister-cc/cloister/se/hostkey"
)

const seExample = `  cloister se create --guest guest/ -k HKD-8561-0001.crt -C ibm-z-host-key-signing-gen2.crt -C DigiCertCA.crt \
      --crl ibm-z-host-key-gen2.crl --crl DigiCertRoot.crl --crl DigiCertCA.crl
  cloister se info guest/se.img
  cloister se test -k HKD-8561-0001.crt guest/se.img`

// newSECommand returns "cloister se" and all below it.
func newSECommand() *cobra.Command {
	cmd := &cobra.Command{
		Use:   "se",
		Short: "Make and inspect images of IBM Secure Execution",
		Long: "se seals a kernel, an initramfs and a command line for the ultravisor of chosen IBM Z machines, and reads images of\n" +
			"any tool (pvimg, genprotimg and ours).",
		Example: seExample,
		Args:    cobra.NoArgs,
		RunE:    func(cmd *cobra.Command, _ []string) error { return cmd.Help() },
	}
	cmd.AddCommand(newSECreateCommand(), newSEInfoCommand(), newSETestCommand(), newSEOpenCommand())
	return cmd
}

// openImage reads the descriptions in an image file; the caller closes the file.
func openImage(path string) (*os.File, *se.Image, error) {
	f, size, err := openRegular(path)
	if err != nil {
		return nil, nil, err
	}
	img, err := se.OpenImage(f, size)
	if err != nil {
		_ = f.Close()
		return nil, nil, fmt.Errorf("%s: %w", path, err)
	}
	return f, img, nil
}

func openRegular(path string) (*os.File, int64, error) {
	f, err := os.Open(path)
	if err != nil {
		return nil, 0, err
	}
	st, err := f.Stat()
	if err == nil && !st.Mode().IsRegular() {
		err = fmt.Errorf("%s is not a regular file", path)
	}
	if err != nil {
		_ = f.Close()
		return nil, 0, err
	}
	return f, st.Size(), nil
}

// readLimited reads a file of at most limit bytes.
func readLimited(path string, limit int64) ([]byte, error) {
	f, err := os.Open(path)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	data, err := io.ReadAll(io.LimitReader(f, limit+1))
	if err != nil {
		return nil, err
	}
	if int64(len(data)) > limit {
		return nil, fmt.Errorf("%s has more than %d bytes", path, limit)
	}
	return data, nil
}

// readKeyFile reads a key of exactly size bytes; "" is none.
func readKeyFile(flag, path string, size int) (*keys.Secret, error) {
	if path == "" {
		return nil, nil //nolint:nilnil // no file is no key
	}
	data, err := readLimited(path, int64(size))
	if err == nil && len(data) != size {
		err = fmt.Errorf("%s has %d bytes, the key has %d: the file holds the key itself, neither hexadecimal nor base64", path, len(data), size)
	}
	if err != nil {
		keys.Wipe(data)
		return nil, fmt.Errorf("--%s: %w", flag, err)
	}
	return keys.NewSecret(data), nil
}

// document is a host key document and where it came from.
type document struct {
	*hostkey.Document
	path string
	hash [32]byte
}

// readDocuments reads host key documents and warns of what is not used.
func readDocuments(paths []string, warn io.Writer) ([]document, error) {
	var out []document
	for _, path := range paths {
		data, err := readLimited(path, hostkey.MaxFileSize)
		if err != nil {
			return nil, fmt.Errorf("host key document: %w", err)
		}
		d, err := hostkey.Parse(data)
		if err != nil {
			return nil, fmt.Errorf("%s: %w", path, err)
		}
		hash, err := d.Hash()
		if err != nil {
			return nil, fmt.Errorf("%s: %w", path, err)
		}
		if d.Ignored > 0 {
			_, _ = fmt.Fprintf(warn, "warning: %s holds %d certificates, only the first is used\n", path, d.Ignored+1)
		}
		out = append(out, document{d, path, hash})
	}
	return out, nil
}

func publicKeys(documents []document) []*ecdh.PublicKey {
	out := make([]*ecdh.PublicKey, 0, len(documents))
	for _, d := range documents {
		out = append(out, d.PublicKey)
	}
	return out
}

// newSETestCommand returns "cloister se test".
func newSETestCommand() *cobra.Command {
	var documents []string
	var hashes string
	var asJSON bool
	cmd := &cobra.Command{
		Use:   "test IMAGE",
		Short: "Say whether a machine can open an image",
		Long: "test compares the host keys for which an image was made with host key documents, or with the hashes of this machine's\n" +
			"keys. It exits with 0 if one is among them and with 1 if none is. The documents are not verified.",
		Example: "  cloister se test -k HKD-8561-0001.crt se.img\n  cloister se test --key-hashes /sys/firmware/uv/keys/all se.img",
		Args:    cobra.ExactArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			if len(documents) == 0 && hashes == "" {
				return &usageError{cmd: cmd.CommandPath(), err: errors.New("give --host-key-document, --key-hashes or both")}
			}
			wanted, err := wantedHashes(documents, hashes, cmd.ErrOrStderr())
			if err != nil {
				return err
			}
			f, img, err := openImage(args[0])
			if err != nil {
				return err
			}
			defer f.Close()
			return printTest(cmd, img.Header, wanted, asJSON)
		},
	}
	f := cmd.Flags()
	f.StringArrayVarP(&documents, "host-key-document", "k", nil, "host key document (may be repeated)")
	f.StringVar(&hashes, "key-hashes", "", "file with the hashes of a machine's host keys, one in a line")
	f.BoolVar(&asJSON, "json", false, "print the result as JSON")
	return cmd
}

// namedHash is the hash of a host key, and where it came from.
type namedHash struct {
	name string
	hash [32]byte
}

// maxHashFile bounds a file of hashes, in bytes.
const maxHashFile = 64 << 10

func wantedHashes(paths []string, file string, warn io.Writer) ([]namedHash, error) {
	var out []namedHash
	documents, err := readDocuments(paths, warn)
	if err != nil {
		return nil, err
	}
	for _, d := range documents {
		out = append(out, namedHash{d.path, d.hash})
	}
	if file == "" {
		return out, nil
	}
	data, err := readLimited(file, maxHashFile)
	if err != nil {
		return nil, fmt.Errorf("key hashes: %w", err)
	}
	for n, line := range strings.Fields(string(data)) {
		raw, err := hex.DecodeString(strings.TrimPrefix(line, "0x"))
		if err != nil || len(raw) != 32 {
			return nil, fmt.Errorf("key hashes: %s: entry %d is not 64 hexadecimal digits", file, n+1)
		}
		if hash := [32]byte(raw); hash != [32]byte{} { // unused ones are zeros
			out = append(out, namedHash{fmt.Sprintf("%s, entry %d", file, n+1), hash})
		}
	}
	return out, nil
}

// testResult is one host key in the output of test.
type testResult struct {
	Source string `json:"source"`
	Hash   string `json:"host_key_hash"`
	Match  bool   `json:"match"`
}

func printTest(cmd *cobra.Command, h *se.Header, wanted []namedHash, asJSON bool) error {
	results, found := make([]testResult, 0, len(wanted)), false
	for _, w := range wanted {
		r := testResult{Source: w.name, Hash: hex.EncodeToString(w.hash[:])}
		for _, s := range h.Slots {
			r.Match = r.Match || s.HostKeyHash == w.hash
		}
		found = found || r.Match
		results = append(results, r)
	}
	out := cmd.OutOrStdout()
	if asJSON {
		if err := printJSON(out, map[string]any{"match": found, "keys": results}); err != nil {
			return err
		}
	} else {
		for _, r := range results {
			verdict := "no match"
			if r.Match {
				verdict = "match"
			}
			if _, err := fmt.Fprintf(out, "%-8s  %s  %s\n", verdict, r.Hash, r.Source); err != nil {
				return err
			}
		}
	}
	if !found {
		return exitStatus(exitFailure)
	}
	return nil
}
