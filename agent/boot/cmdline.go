// SPDX-License-Identifier: Apache-2.0
// Copyright The Cloister Authors.

package boot

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"strings"

	"github.com/cloister-cc/cloister/initramfs/layout"
)

// maxShown bounds what an error quotes of a parameter, in bytes: the host may have written it.
const maxShown = 100

// commandLine stops a boot with other kernel parameters than those that were sealed. In a sealed image the host cannot
// change them; but a kernel may add what the machine's loader hands over, and an image that is not sealed protects nothing.
func (b *booter) commandLine(context.Context) error {
	f, err := os.Open("/proc/cmdline")
	if err != nil {
		return err
	}
	defer f.Close()
	data, err := io.ReadAll(io.LimitReader(f, 2*layout.MaxCommandLine))
	if err != nil {
		return err
	}
	return compareCommandLine(b.guest.Config.CommandLine, string(data))
}

// compareCommandLine says in what the actual command line, with the line's end that the kernel adds, differs from the
// sealed one. Without a sealed one, none is right.
func compareCommandLine(sealed, actual string) error {
	if sealed == "" {
		return errors.New("the boot config holds no command line to compare with")
	}
	actual = strings.TrimSuffix(actual, "\n")
	if actual == sealed {
		return nil
	}
	want := make(map[string]int)
	for p := range strings.FieldsSeq(sealed) {
		want[p]++
	}
	for p := range strings.FieldsSeq(actual) {
		if want[p]--; want[p] < 0 {
			return fmt.Errorf("the kernel was started with %q, which is not on the sealed command line", shorten(p))
		}
	}
	for p := range strings.FieldsSeq(sealed) {
		if want[p] > 0 {
			return fmt.Errorf("the kernel was started without %q, which is on the sealed command line", shorten(p))
		}
	}
	return errors.New("the kernel was started with the parameters of the sealed command line in another order or form")
}

func shorten(s string) string {
	if len(s) <= maxShown {
		return s
	}
	return s[:maxShown] + "…"
}
