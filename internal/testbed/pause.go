// SPDX-License-Identifier: Apache-2.0
// Copyright The Cloister Authors.

package testbed

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"time"

	"github.com/cloister-cc/cloister/initramfs"
)

// pauseFlags make the smallest static binary without a C library, the same one on every run.
func pauseFlags() []string {
	return []string{
		"-Os", "-g0", "-std=gnu11", "-Wall", "-Wextra", "-Werror", "-ffreestanding", "-nostdlib", "-static", "-fno-pie", "-no-pie",
		"-fno-stack-protector", "-fno-asynchronous-unwind-tables", "-fcf-protection=none",
		"-Wl,--build-id=none", "-Wl,-z,noseparate-code", "-Wl,-z,norelro", "-s",
	}
}

// compiler returns the C compiler's name for the guest's architecture and its version.
func (s *setup) compiler(ctx context.Context) (name, version string, err error) {
	name = gnuNames[s.arch] + "-gcc"
	out, err := command(ctx, time.Minute, "", nil, name, "--version")
	if err != nil {
		return "", "", err
	}
	version, _, _ = strings.Cut(out, "\n")
	return name, version, nil
}

// pause compiles the pause process.
func (s *setup) pause(ctx context.Context) error {
	cc, version, err := s.compiler(ctx)
	if err != nil {
		return err
	}
	source := initramfs.PauseSource()
	key := newCacheKey("pause 1")
	key.add(version)
	key.add(source)
	for _, f := range pauseFlags() {
		key.add(f)
	}
	dir, err := s.build("pause", "1", key, func(dir string) error {
		c := filepath.Join(dir, "pause.c")
		if err := os.WriteFile(c, []byte(source), 0o600); err != nil {
			return fmt.Errorf("write source: %w", err)
		}
		_, err := command(ctx, time.Minute, dir, nil, cc, append(pauseFlags(), "-o", "pause", "pause.c")...)
		return err
	})
	if err != nil {
		return err
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	s.bed.Pause = filepath.Join(dir, "pause")
	return nil
}
