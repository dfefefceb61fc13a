// SPDX-License-Identifier: Apache-2.0
// Copyright The Cloister Authors.

package uvsim

import (
	"context"
	"errors"
	"fmt"
	"io"

	"github.com/cloister-cc/cloister/se"
	"github.com/cloister-cc/cloister/se/xts"
)

// Guest is an opened image. On a real machine, its plaintext exists in memory that the host cannot read.
type Guest struct {
	Image *se.Image
	// Confidential is the decrypted part of the header; Close wipes it.
	Confidential *se.Confidential
	// Args are the arguments of stage3b, by which it finds the parts.
	Args se.BootArgs

	r      io.ReaderAt
	cipher *xts.Cipher // nil if the components are in the clear
}

// batch is how much is read at once, in bytes.
const batch = 1 << 20

// maxStage3b bounds the component of stage3b, in bytes: it is searched in memory.
const maxStage3b = 1 << 20

// Close wipes the keys.
func (g *Guest) Close() { g.Confidential.Wipe() }

// pages calls f for the pages of a component as they are in the file, some at once.
func (g *Guest) pages(ctx context.Context, c se.Component, f func(pages []byte, offset uint64) error) error {
	buf := make([]byte, min(batch, c.Size))
	for offset := uint64(0); offset < c.Size; offset += batch {
		if err := ctx.Err(); err != nil {
			return err
		}
		pages := buf[:min(batch, c.Size-offset)]
		if _, err := g.r.ReadAt(pages, int64(c.Address+offset)); err != nil && !errors.Is(err, io.EOF) {
			return fmt.Errorf("read image: %w", err)
		}
		if err := f(pages, offset); err != nil {
			return err
		}
	}
	return nil
}

// plain is pages with the pages decrypted.
func (g *Guest) plain(ctx context.Context, c se.Component, f func(pages []byte, offset uint64) error) error {
	return g.pages(ctx, c, func(pages []byte, offset uint64) error {
		if g.cipher != nil {
			if err := c.Decrypt(g.cipher, pages, offset); err != nil {
				return err
			}
		}
		return f(pages, offset)
	})
}

// findParts reads the arguments of stage3b.
func (g *Guest) findParts(ctx context.Context) error {
	c, ok := g.Image.Component(g.Confidential.PSWAddress)
	if !ok || c.Size > maxStage3b {
		return fmt.Errorf("the guest starts at 0x%x, where no component of at most %d bytes begins", g.Confidential.PSWAddress, maxStage3b)
	}
	var stage3b []byte
	err := g.plain(ctx, c, func(pages []byte, _ uint64) error {
		stage3b = append(stage3b, pages...)
		return nil
	})
	if err != nil {
		return err
	}
	if g.Args, ok = se.FindBootArgs(stage3b, g.Image.IPIB.Components); !ok {
		return errors.New("the first program of the guest has no arguments that name a kernel: it is no stage3b")
	}
	return nil
}

// WriteKernel writes the kernel as it was before it was padded and sealed.
func (g *Guest) WriteKernel(ctx context.Context, w io.Writer) error {
	return g.write(ctx, w, g.Args.Kernel)
}

// WriteRamdisk writes the initramfs likewise; nothing if there is none.
func (g *Guest) WriteRamdisk(ctx context.Context, w io.Writer) error {
	return g.write(ctx, w, g.Args.Ramdisk)
}

// WriteCommandLine writes the kernel command line likewise, with the zero byte that ends it.
func (g *Guest) WriteCommandLine(ctx context.Context, w io.Writer) error {
	return g.write(ctx, w, g.Args.CommandLine)
}

func (g *Guest) write(ctx context.Context, w io.Writer, part se.Region) error {
	if part.Size == 0 {
		return nil
	}
	c, ok := g.Image.Component(part.Address)
	if !ok {
		return fmt.Errorf("no component at 0x%x", part.Address)
	}
	left := part.Size
	return g.plain(ctx, c, func(pages []byte, _ uint64) error {
		n := min(left, uint64(len(pages)))
		left -= n
		_, err := w.Write(pages[:n])
		return err
	})
}

// Unseal writes the components in the clear over those in out, which is the image itself or a copy of it, and makes it
// start in stage3b: such an image runs on a machine without ultravisor. After an error, out is of no use.
func (g *Guest) Unseal(ctx context.Context, out io.WriterAt) error {
	for _, c := range g.Image.IPIB.Components {
		err := g.plain(ctx, c, func(pages []byte, offset uint64) error {
			_, err := out.WriteAt(pages, int64(c.Address+offset))
			return err
		})
		if err != nil {
			return fmt.Errorf("unseal: %w", err)
		}
	}
	if _, err := out.WriteAt(se.ShortPSWForTCG(g.Confidential.PSWAddress), 0); err != nil {
		return fmt.Errorf("unseal: %w", err)
	}
	return nil
}
