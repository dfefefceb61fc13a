// SPDX-License-Identifier: Apache-2.0
// Copyright The Cloister Authors.

package debian

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"strings"
	"time"
)

// run starts a program in dir, bounded by limit, and returns its standard output. An error quotes the last lines that
// the program wrote to its standard error.
func run(ctx context.Context, limit time.Duration, dir, name string, args ...string) (string, error) {
	ctx, cancel := context.WithTimeout(ctx, limit)
	defer cancel()
	cmd := exec.CommandContext(ctx, name, args...)
	cmd.Dir = dir
	cmd.Env = append(os.Environ(), "LC_ALL=C", "DEBIAN_FRONTEND=noninteractive")
	cmd.Cancel = func() error { return cmd.Process.Signal(os.Interrupt) }
	cmd.WaitDelay = 10 * time.Second
	var stdout, stderr bytes.Buffer
	cmd.Stdout, cmd.Stderr = &stdout, &stderr
	if err := cmd.Run(); err != nil {
		if ctxErr := ctx.Err(); errors.Is(ctxErr, context.DeadlineExceeded) {
			err = fmt.Errorf("no end after %v", limit)
		}
		return "", fmt.Errorf("%s: %w%s", name, err, quoteTail(stderr.String()))
	}
	return stdout.String(), nil
}

// quoteTail returns the last lines of a program's messages, ready to follow an error.
func quoteTail(text string) string {
	lines := strings.Split(strings.TrimSpace(text), "\n")
	lines = lines[max(0, len(lines)-8):]
	if len(lines) == 1 && lines[0] == "" {
		return ""
	}
	return ": " + strings.Join(lines, "; ")
}
