// SPDX-License-Identifier: Apache-2.0
// Copyright The Cloister Authors.

package main

import (
	"encoding/base64"
	"encoding/hex"
	"errors"
	"fmt"
	"strings"

	"github.com/spf13/cobra"

	"github.com/cloister-cc/cloister/internal/leakscan"
	"github.com/cloister-cc/cloister/keys"
)

// Exit codes of leakscan.
const (
	exitLeaked = 3
	exitBlind  = 4
)

const leakscanExample = `  # did the disk key, or a canary of the container, get out?
  cloister leakscan --secret disk-key=@disk.key --secret canary=@canary.bin \
      --control disk=plain-rootfs/ --control network=plain.pcap disk=root.img network=capture/network.pcap`

// leakscanFlags are the flags of "cloister leakscan".
type leakscanFlags struct {
	secrets, controls, known []string
	asJSON                   bool
}

// newLeakscanCommand returns "cloister leakscan".
func newLeakscanCommand() *cobra.Command {
	var l leakscanFlags
	cmd := &cobra.Command{
		Use:   "leakscan [flags] ARTEFACT=PATH...",
		Short: "Search what a host held of a guest for secrets",
		Long: "leakscan searches files and folders for secrets: raw, in hexadecimal, in base64 at each alignment, inside gzip and zstd\n" +
			"streams wherever they begin, and in the TCP connections of captures. Several paths of one artefact are given one by\n" +
			"one. Each artefact needs a control: its twin without encryption, in which the same search has to find a secret. If it\n" +
			"does not, or something could not be searched, the scan proves nothing and fails as blind.\n\n" +
			"Exit codes: 0 nothing found, 3 a secret was found, 4 blind (and nothing found), 2 wrong usage, 1 any other error.",
		Example: leakscanExample,
		Args:    cobra.MinimumNArgs(1),
		RunE:    l.run,
	}
	f := cmd.Flags()
	f.StringArrayVar(&l.secrets, "secret", nil, "NAME=@FILE, NAME=hex:@FILE or NAME=base64:@FILE: a secret of 16 bytes or more (may be repeated)")
	f.StringArrayVar(&l.controls, "control", nil, "ARTEFACT=PATH: the artefact's twin without encryption (may be repeated)")
	f.StringArrayVar(&l.known, "known", nil, "ARTEFACT=NAME: a secret that is expected in the artefact (may be repeated)")
	f.BoolVar(&l.asJSON, "json", false, "print the report as JSON")
	return cmd
}

func (l *leakscanFlags) run(cmd *cobra.Command, args []string) error {
	if err := requireFlags(cmd, "secret"); err != nil {
		return err
	}
	artefacts, err := l.artefacts(args)
	if err != nil {
		return &usageError{cmd: cmd.CommandPath(), err: err}
	}
	secrets, err := readSecrets(l.secrets)
	defer func() {
		for _, s := range secrets {
			keys.Wipe(s.Value)
		}
	}()
	if err != nil {
		return err
	}
	report, err := leakscan.Scan(cmd.Context(), secrets, artefacts)
	if err != nil {
		return err
	}
	if l.asJSON {
		err = printJSON(cmd.OutOrStdout(), report)
	} else {
		err = report.Print(cmd.OutOrStdout())
	}
	switch {
	case err != nil:
		return err
	case report.Leaked:
		return exitStatus(exitLeaked)
	case report.Blind:
		return exitStatus(exitBlind)
	}
	return nil
}

// artefacts puts together what arguments and flags say of each artefact, in the order of the arguments.
func (l *leakscanFlags) artefacts(args []string) ([]leakscan.Artefact, error) {
	var out []leakscan.Artefact
	index := make(map[string]int)
	for _, arg := range args {
		name, path, ok := strings.Cut(arg, "=")
		if !ok || name == "" || path == "" {
			return nil, fmt.Errorf("%q is not ARTEFACT=PATH", arg)
		}
		if _, ok := index[name]; !ok {
			index[name] = len(out)
			out = append(out, leakscan.Artefact{Name: name})
		}
		out[index[name]].Paths = append(out[index[name]].Paths, path)
	}
	for _, flag := range []struct {
		name   string
		values []string
		to     func(*leakscan.Artefact) *[]string
	}{
		{"control", l.controls, func(a *leakscan.Artefact) *[]string { return &a.Control }},
		{"known", l.known, func(a *leakscan.Artefact) *[]string { return &a.Known }},
	} {
		for _, v := range flag.values {
			name, value, ok := strings.Cut(v, "=")
			i, there := index[name]
			if !ok || value == "" || !there {
				return nil, fmt.Errorf("--%s %q does not name one of the artefacts", flag.name, v)
			}
			to := flag.to(&out[i])
			*to = append(*to, value)
		}
	}
	return out, nil
}

// readSecrets reads the secrets. They stand in files only: arguments are seen by everybody on the machine.
func readSecrets(values []string) ([]leakscan.Secret, error) {
	var out []leakscan.Secret
	for _, v := range values {
		name, source, ok := strings.Cut(v, "=")
		encoding, file, encoded := strings.Cut(source, ":@")
		if !encoded {
			encoding = ""
			file, ok = strings.CutPrefix(source, "@")
		}
		if !ok || name == "" || file == "" {
			return out, errors.New("--secret wants NAME=@FILE, NAME=hex:@FILE or NAME=base64:@FILE: a value on the command line can be read by every program of the machine")
		}
		data, err := readLimited(file, 4*leakscan.MaxSecret)
		if err != nil {
			return out, fmt.Errorf("--secret %s: %w", name, err)
		}
		value, err := decodeSecret(encoding, data)
		if err != nil {
			return out, fmt.Errorf("--secret %s: %s: %w", name, file, err)
		}
		out = append(out, leakscan.Secret{Name: name, Value: value})
	}
	return out, nil
}

func decodeSecret(encoding string, data []byte) ([]byte, error) {
	text := strings.TrimSpace(string(data))
	var value []byte
	var err error
	switch encoding {
	case "":
		return data, nil
	case "hex":
		value, err = hex.DecodeString(text)
	case "base64":
		value, err = base64.StdEncoding.DecodeString(text)
	default:
		return nil, fmt.Errorf("unknown encoding %q", encoding)
	}
	if err != nil {
		return nil, fmt.Errorf("not %s", encoding) // the cause would quote it
	}
	return value, nil
}
