// SPDX-License-Identifier: Apache-2.0
// Copyright The Cloister Authors.

package agent

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"path"
	"strings"

	specs "github.com/opencontainers/runtime-spec/specs-go"
)

// CopyFile writes a piece of a file that the host gives to containers.
func (s *Sandbox) CopyFile(_ context.Context, f File) error {
	if err := s.working(); err != nil {
		return fmt.Errorf("copy file: %w", err)
	}
	if s.cfg.Share == nil {
		return fmt.Errorf("copy file: %w", ErrUnsupported)
	}
	return s.cfg.Share.Copy(f)
}

// DropStaleMounts unmounts what is mounted among the files from the host and answers no more. What cannot be done is
// logged and no error, for the shim could not stop a container then.
func (s *Sandbox) DropStaleMounts(ctx context.Context) {
	if s.cfg.Share == nil {
		return
	}
	if err := s.cfg.Share.DropStale(ctx); err != nil {
		s.cfg.Log.Warn("stale mounts are left", "error", err)
	}
}

const (
	// terminationPath is the annotation by which the kubelet names the file in a container that says why it ends.
	terminationPath = "io.kubernetes.container.terminationMessagePath"
	// maxTermination is what the kubelet reads of that file, in bytes.
	maxTermination = 4096
)

// terminationLog returns which file from the host is a container's termination log.
func terminationLog(spec *specs.Spec) string {
	name := spec.Annotations[terminationPath]
	if name == "" {
		return ""
	}
	for _, m := range spec.Mounts {
		if path.Clean(m.Destination) == path.Clean(name) {
			return m.Source
		}
	}
	return ""
}

// TerminationLog returns the start of what a container has written to its termination log. One that has none, or has
// written nothing, is no error.
func (s *Sandbox) TerminationLog(_ context.Context, containerID string) (string, error) {
	c, err := s.container(containerID)
	if err != nil {
		return "", fmt.Errorf("read termination log: %w", err)
	}
	if c.terminationLog == "" || s.cfg.Share == nil {
		return "", nil
	}
	data, err := s.cfg.Share.ReadHead(c.terminationLog, maxTermination)
	if errors.Is(err, fs.ErrNotExist) {
		return "", nil
	}
	if err != nil {
		return "", fmt.Errorf("read termination log of container %s: %w", c.id, err)
	}
	return strings.ToValidUTF8(string(data), "\uFFFD"), nil
}
