// SPDX-License-Identifier: Apache-2.0
// Copyright The Cloister Authors.

package main

import (
	"errors"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
)

// runMain makes the test binary behave as the agent.
const runMain = "CLOISTER_TEST_RUN_MAIN"

func TestMain(m *testing.M) {
	if os.Getenv(runMain) == "1" {
		os.Args = append([]string{"cloister-agent"}, strings.Fields(os.Getenv("CLOISTER_TEST_ARGS"))...)
		main()
		return
	}
	os.Exit(m.Run())
}

func TestCommandLine(t *testing.T) {
	for args, want := range map[string]struct {
		code int
		text string
	}{
		"--bogus":     {2, `"--bogus" is no option`},
		"-c":          {2, "-c needs a path"},
		"--runtime":   {2, "--runtime needs a path"},
		"init":        {2, "this is not PID 1"},
		"-c /no/such": {1, "/no/such"},
		"-v":          {0, "cloister-agent 0."},
		"--version":   {0, "cloister-agent 0."},
		"--help":      {0, "guest agent"},
	} {
		cmd := exec.CommandContext(t.Context(), os.Args[0])
		cmd.Env = append(os.Environ(), runMain+"=1", "CLOISTER_TEST_ARGS="+args)
		out, err := cmd.CombinedOutput()
		code := 0
		if exit, ok := errors.AsType[*exec.ExitError](err); ok {
			code = exit.ExitCode()
		} else if err != nil {
			t.Fatal(err)
		}
		if code != want.code || !strings.Contains(string(out), want.text) {
			t.Errorf("cloister-agent %s: exit %d, %q; want exit %d and %q", args, code, out, want.code, want.text)
		}
	}
}

// Threat: an initramfs of ours without its boot config is served as if nothing had been sealed. Seen: only a root that has
// nothing of ours at all is not sealed.
func TestSealedWithoutBootConfig(t *testing.T) {
	dir := t.TempDir()
	file := filepath.Join(dir, "file")
	if err := os.WriteFile(file, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	for path, want := range map[string]bool{
		dir: true, file: true, filepath.Join(file, "below a file"): true, filepath.Join(dir, "none"): false,
	} {
		if got := isSealed(path); got != want {
			t.Errorf("%s: sealed %t, want %t", path, got, want)
		}
	}
}

func TestImageStoreHasAShortPath(t *testing.T) {
	if len(imagesDir) > 20 {
		t.Errorf("%s has %d bytes; the mount options of an image with 127 layers would not fit in a page", imagesDir, len(imagesDir))
	}
}

func TestMemoryFigures(t *testing.T) {
	const rollup = "00400000-7fff ---p 00000000 00:00 0 [rollup]\nRss:               12345 kB\nPss:                 678 kB\nPss_Dirty: 1 kB\n"
	if rss, pss, none := kib(rollup, "Rss:"), kib(rollup, "Pss:"), kib(rollup, "Swap:"); rss != 12345 || pss != 678 || none != 0 {
		t.Errorf("got %d, %d and %d; want 12345, 678 and 0", rss, pss, none)
	}
}
