// SPDX-License-Identifier: Apache-2.0
// Copyright The Cloister Authors.

package main

import (
	"bytes"
	"debug/elf"
	"encoding/binary"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/rogpeppe/go-internal/testscript"

	"github.com/cloister-cc/cloister/initramfs"
	"github.com/cloister-cc/cloister/internal/elftest"
	"github.com/cloister-cc/cloister/se/hostkey/hostkeytest"
)

// TestMain lets scripts run this test binary as "cloister".
func TestMain(m *testing.M) {
	testscript.Main(m, map[string]func(){"cloister": main})
}

func TestScripts(t *testing.T) {
	t.Parallel()
	testscript.Run(t, testscript.Params{
		Dir:                 "testdata",
		RequireUniqueNames:  true,
		RequireExplicitExec: true,
		Setup: func(e *testscript.Env) error {
			tb, ok := e.T().(testing.TB)
			if !ok {
				return errors.New("scripts run without a testing.TB")
			}
			return errors.Join(writeInputs(tb, filepath.Join(e.WorkDir, "in")), writeSealInputs(filepath.Join(e.WorkDir, "in")))
		},
	})
}

// writeInputs makes what "cloister build" needs for an s390x guest; none of it could boot.
func writeInputs(tb testing.TB, dir string) error {
	tb.Helper()
	wants, err := initramfs.GuestModules(initramfs.ArchS390x)
	if err != nil {
		return err
	}
	kernel := make([]byte, 0x11000)
	copy(kernel[0x10008:], "S390EP")
	binary.BigEndian.PutUint64(kernel[0x10428:], 0x10800)
	copy(kernel[0x10800:], "6.12-test (builder)")
	static := elftest.Executable(tb, elf.EM_S390)
	files := map[string][]byte{
		"vmlinuz": kernel, "agent": static, "crun": static, "pause": static, "rootfs/etc/motd": []byte("hello\n"),
		"modules/modules.builtin": nil, "image.key": bytes.Repeat([]byte{1}, 32),
	}
	var order strings.Builder
	for _, w := range wants {
		files["modules/kernel/"+w.Name+".ko"] = elftest.Module(tb, w.Name)
		fmt.Fprintf(&order, "kernel/%s.ko\n", w.Name)
	}
	files["modules/modules.order"] = []byte(order.String())
	for name, data := range files {
		path := filepath.Join(dir, name)
		if err := os.MkdirAll(filepath.Dir(path), 0o700); err != nil {
			return err
		}
		if err := os.WriteFile(path, data, 0o600); err != nil {
			return err
		}
	}
	return nil
}

// writeSealInputs makes what "cloister se" needs: boot code that would not boot, a host key with its document and chain
// in hkd, and those of somebody else in other.
func writeSealInputs(dir string) error {
	boot := filepath.Join(dir, "boot")
	if err := os.MkdirAll(boot, 0o700); err != nil {
		return err
	}
	for name, size := range map[string]int{"stage3a.bin": 0x2000, "stage3b_reloc.bin": 0x1800} {
		if err := os.WriteFile(filepath.Join(boot, name), make([]byte, size), 0o600); err != nil {
			return err
		}
	}
	for _, name := range []string{"hkd", "other"} {
		a, err := authorities[name]()
		if err != nil {
			return err
		}
		sub := filepath.Join(dir, name)
		if err := os.MkdirAll(sub, 0o700); err != nil {
			return err
		}
		files, err := a.WriteFiles(sub)
		if err != nil {
			return err
		}
		revoked, err := a.Revoke(files.Document)
		if err != nil {
			return err
		}
		if err := os.WriteFile(filepath.Join(sub, "revoked.crl"), revoked, 0o600); err != nil {
			return err
		}
	}
	return nil
}

// authorities are made once: their keys take long.
var authorities = map[string]func() (*hostkeytest.Authority, error){"hkd": newAuthority(), "other": newAuthority()}

func newAuthority() func() (*hostkeytest.Authority, error) {
	return sync.OnceValues(func() (*hostkeytest.Authority, error) { return hostkeytest.New(time.Now(), nil) })
}

type exitError struct{ code int }

func (e exitError) Error() string { return "" }
func (e exitError) ExitCode() int { return e.code }

func TestExitCode(t *testing.T) {
	t.Parallel()
	for name, tc := range map[string]struct {
		err    error
		code   int
		output string
	}{
		"none":         {nil, 0, ""},
		"failure":      {errors.New("broken"), 1, "cloister: broken\n"},
		"usage":        {&usageError{cmd: "cloister x", err: errors.New("bad")}, 2, "cloister: bad\ncloister: hint: cloister x --help shows how it is used\n"},
		"of a process": {fmt.Errorf("%w", exitError{137}), 137, ""},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			if got := exitCode(tc.err); got != tc.code {
				t.Errorf("exit code %d, want %d", got, tc.code)
			}
			var b bytes.Buffer
			if tc.err != nil {
				report(&b, tc.err)
			}
			if b.String() != tc.output {
				t.Errorf("printed %q, want %q", b.String(), tc.output)
			}
		})
	}
}

func TestByteSize(t *testing.T) {
	t.Parallel()
	for n, want := range map[int64]string{0: "0 B", 1023: "1023 B", 1024: "1.0 KiB", 1536 << 10: "1.5 MiB", 5 << 40: "5.0 TiB", 5 << 50: "5120.0 TiB"} {
		if got := byteSize(n); got != want {
			t.Errorf("%d bytes print as %q, want %q", n, got, want)
		}
	}
}
