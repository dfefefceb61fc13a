// SPDX-License-Identifier: Apache-2.0
// Copyright The Cloister Authors.

package initramfs

import (
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/cloister-cc/cloister/internal/elftest"
)

func must(tb testing.TB, err error) {
	tb.Helper()
	if err != nil {
		tb.Fatal(err)
	}
}

// modulesDir makes a lib/modules/VERSION folder of files (name in the folder -> bytes) and built-in modules.
func modulesDir(tb testing.TB, files map[string][]byte, builtin ...string) string {
	tb.Helper()
	dir := filepath.Join(tb.TempDir(), "6.12-test")
	must(tb, os.MkdirAll(filepath.Join(dir, "kernel"), 0o700))
	var order, built strings.Builder
	for name, data := range files {
		must(tb, os.WriteFile(filepath.Join(dir, "kernel", name), data, 0o600))
		base, _, _ := strings.Cut(name, ".ko")
		order.WriteString("kernel/" + base + ".ko\n")
	}
	for _, name := range builtin {
		built.WriteString("kernel/" + name + ".ko\n")
	}
	must(tb, os.WriteFile(filepath.Join(dir, "modules.order"), []byte(order.String()), 0o600))
	must(tb, os.WriteFile(filepath.Join(dir, "modules.builtin"), []byte(built.String()), 0o600))
	return dir
}

// mod returns a synthetic module of the default machine with the usual fields and others.
func mod(tb testing.TB, name string, fields ...string) []byte {
	tb.Helper()
	return elftest.Module(tb, name, fields...)
}
