// SPDX-License-Identifier: Apache-2.0
// Copyright The Cloister Authors.

package se

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io"

	"golang.org/x/sync/errgroup"
)

// sealChunk is how much is read, encrypted, hashed and written in one go, in bytes. Four for each worker are all the
// memory that is needed.
const sealChunk = 512 << 10

// maxWorkers bounds the goroutines that encrypt: one that hashes everything cannot keep up with more.
const maxWorkers = 8

// chunk is a piece of a component on its way.
type chunk struct {
	data   []byte // whole pages
	offset uint64
	sealed chan struct{} // closed when data is encrypted
}

// component reads a component to its end, seals it at the next address, and returns where it is. One without content
// has one page.
func (c *creator) component(ctx context.Context, out io.WriterAt, kind Kind, in io.Reader) (Region, error) {
	prefix := make([]byte, 8)
	if _, err := io.ReadFull(c.o.random, prefix); err != nil {
		return Region{}, err
	}
	binary.BigEndian.PutUint16(prefix, uint16(kind.id()))
	part := Component{TweakPrefix: binary.BigEndian.Uint64(prefix), Address: c.address}
	p := &pipeline{
		creator: c, part: part, in: in, out: out,
		work: make(chan *chunk), ordered: make(chan *chunk, 2*c.o.Workers),
	}
	g, ctx := errgroup.WithContext(ctx)
	g.Go(func() error { return p.read(ctx) })
	for range c.o.Workers {
		g.Go(p.encrypt)
	}
	g.Go(func() error { return p.write(ctx) })
	if err := g.Wait(); err != nil {
		return Region{}, fmt.Errorf("%s: %w", kind, err)
	}
	part.Size = roundUp(p.size)
	if part.Size == 0 {
		part.Size = PageSize
	}
	c.address += part.Size
	c.parts = append(c.parts, part)
	return Region{Address: part.Address, Size: p.size}, nil
}

// pipeline seals one component: one goroutine reads, some encrypt, one hashes and writes in order.
type pipeline struct {
	*creator
	part    Component
	in      io.Reader
	out     io.WriterAt
	size    uint64
	work    chan *chunk // to encrypt
	ordered chan *chunk // to write
}

func (p *pipeline) read(ctx context.Context) error {
	defer close(p.work)
	defer close(p.ordered)
	for offset := uint64(0); ; offset += sealChunk {
		var buf []byte
		select {
		case buf = <-p.free:
		case <-ctx.Done():
			return ctx.Err()
		}
		if buf == nil {
			buf = make([]byte, sealChunk)
		}
		n, err := io.ReadFull(p.in, buf[:sealChunk])
		last := errors.Is(err, io.EOF) || errors.Is(err, io.ErrUnexpectedEOF)
		if err != nil && !last {
			return fmt.Errorf("read: %w", err)
		}
		if n == 0 && offset > 0 {
			return nil
		}
		p.size += uint64(n)
		pages := max(roundUp(uint64(n)), PageSize)
		clear(buf[n:pages])
		ch := &chunk{data: buf[:pages], offset: offset, sealed: make(chan struct{})}
		for _, to := range []chan *chunk{p.ordered, p.work} {
			select {
			case to <- ch:
			case <-ctx.Done():
				return ctx.Err()
			}
		}
		if last {
			return nil
		}
	}
}

// encrypt takes what there is until there is no more.
func (p *pipeline) encrypt() error {
	for ch := range p.work {
		if p.cipher != nil {
			if err := p.part.Encrypt(p.cipher, ch.data, ch.offset); err != nil {
				return err
			}
		}
		close(ch.sealed)
	}
	return nil
}

func (p *pipeline) write(ctx context.Context) error {
	for ch := range p.ordered {
		select {
		case <-ch.sealed:
		case <-ctx.Done():
			return ctx.Err()
		}
		p.digester.Add(p.part, ch.data, ch.offset)
		if _, err := p.out.WriteAt(ch.data, int64(p.part.Address+ch.offset)); err != nil {
			return fmt.Errorf("write: %w", err)
		}
		p.done += int64(len(ch.data))
		if p.o.Progress != nil {
			p.o.Progress(p.done)
		}
		p.free <- ch.data[:sealChunk]
	}
	return nil
}
