// SPDX-License-Identifier: Apache-2.0
// Copyright The Cloister Authors.

package proc

import (
	"bytes"
	"context"
	"fmt"
	"os/exec"
	"strings"
)

// LookPath finds a program in the folders of the environment variable PATH.
func LookPath(program string) (string, error) { return exec.LookPath(program) }

// Run runs a short command of ours to its end and returns what it writes to standard output. If it fails, the error is
// what it writes to standard error. The end of ctx kills it.
func (r *Reaper) Run(ctx context.Context, path string, args ...string) (string, error) {
	var stdout, stderr bytes.Buffer
	cmd := exec.CommandContext(ctx, path, args...)
	cmd.Stdout, cmd.Stderr = &stdout, &stderr
	c, err := r.Start(cmd)
	if err != nil {
		return "", err
	}
	status, err := c.Wait()
	if err != nil {
		return "", err
	}
	if status != 0 {
		message := strings.TrimSpace(stderr.String())
		if message == "" {
			message = "no message"
		}
		return "", fmt.Errorf("%s (exit status %d)", message, status)
	}
	return strings.TrimSpace(stdout.String()), nil
}
