// SPDX-License-Identifier: Apache-2.0
// Copyright The Cloister Authors.

package agent

import (
	"context"
	"fmt"
	"math"
)

// ReadStdout reads up to max bytes of the process's standard output, waiting for the first. No bytes and no error
// mean its end, which comes at the latest half a second after the exit of the process and once what it left in the
// pipe has been read. With a terminal, this is all that the process writes.
func (s *Sandbox) ReadStdout(ctx context.Context, containerID, execID string, max int) ([]byte, error) {
	return s.readStream(ctx, containerID, execID, max, func(p *process) *stream { return p.stdout })
}

// ReadStderr is ReadStdout for standard error, which with a terminal is at its end from the start.
func (s *Sandbox) ReadStderr(ctx context.Context, containerID, execID string, max int) ([]byte, error) {
	return s.readStream(ctx, containerID, execID, max, func(p *process) *stream { return p.stderr })
}

func (s *Sandbox) readStream(ctx context.Context, containerID, execID string, limit int, which func(*process) *stream) ([]byte, error) {
	if limit <= 0 {
		return nil, fmt.Errorf("read stream: %w: a length of %d", ErrInvalidArgument, limit)
	}
	c, p, err := s.process(containerID, execID)
	if err != nil {
		return nil, fmt.Errorf("read stream: %w", err)
	}
	data, err := which(p).read(ctx, limit)
	if err != nil {
		return nil, fmt.Errorf("read stream of container %s: %w", c.id, err)
	}
	return data, nil
}

// WriteStdin writes data to the process's standard input and returns when the process, or its pipe, has taken all of
// them. No data end the input, as CloseStdin does. After that it is ErrNoWriter.
func (s *Sandbox) WriteStdin(ctx context.Context, containerID, execID string, data []byte) error {
	c, p, err := s.process(containerID, execID)
	if err != nil {
		return fmt.Errorf("write standard input: %w", err)
	}
	if err := p.stdin.write(ctx, data); err != nil {
		return fmt.Errorf("container %s: %w", c.id, err)
	}
	return nil
}

// CloseStdin ends the process's standard input; a second time is no error. A terminal stays open for what the process
// still writes, and gets its end-of-file character.
func (s *Sandbox) CloseStdin(ctx context.Context, containerID, execID string) error {
	c, p, err := s.process(containerID, execID)
	if err != nil {
		return fmt.Errorf("close standard input: %w", err)
	}
	if err := p.stdin.end(ctx); err != nil {
		return fmt.Errorf("container %s: %w", c.id, err)
	}
	return nil
}

// ResizeTerminal sets the size of the process's terminal, in characters. A process without one is ErrNoTerminal.
func (s *Sandbox) ResizeTerminal(containerID, execID string, rows, columns int) error {
	if rows < 0 || columns < 0 || rows > math.MaxUint16 || columns > math.MaxUint16 {
		return fmt.Errorf("resize terminal: %w: %d rows, %d columns", ErrInvalidArgument, rows, columns)
	}
	_, p, err := s.process(containerID, execID)
	if err != nil {
		return fmt.Errorf("resize terminal: %w", err)
	}
	if err := p.resize(uint16(rows), uint16(columns)); err != nil {
		return fmt.Errorf("resize terminal: %w", err)
	}
	return nil
}
