// SPDX-License-Identifier: Apache-2.0
// Copyright The Cloister Authors.

package uvsim

import (
	"context"
	"crypto/ecdh"
	"crypto/subtle"
	"errors"
	"fmt"
	"io"

	"github.com/cloister-cc/cloister/keys"
	"github.com/cloister-cc/cloister/se"
	"github.com/cloister-cc/cloister/se/xts"
)

// Machine has host keys. Its zero value has none and opens nothing.
type Machine struct {
	// HostKeys are the private host keys.
	HostKeys []*ecdh.PrivateKey
	// BackupKeys are the private backup host keys, for images that allow them.
	BackupKeys []*ecdh.PrivateKey
}

// Open checks an image as the machine does, whole, and opens it; the caller closes the guest. What the machine would
// answer is an *Error; an error of another kind means that the file is no image at all. The file must not change before
// the guest is closed.
func (m *Machine) Open(ctx context.Context, r io.ReaderAt, size int64) (*Guest, error) {
	img, err := se.OpenImage(r, size)
	if err != nil {
		return nil, translate(err)
	}
	if img.IPIB == nil {
		return nil, fmt.Errorf("%w: a header alone", se.ErrNotImage)
	}
	if err := checkIPIB(img.IPIB); err != nil {
		return nil, err
	}
	c, err := m.setParms(img.Header)
	if err != nil {
		return nil, err
	}
	g := &Guest{Image: img, Confidential: c, r: r}
	if err := g.start(ctx); err != nil {
		g.Close()
		return nil, err
	}
	return g, nil
}

// checkIPIB makes the hypervisor's checks that opening an image does not make.
func checkIPIB(p *se.IPIB) error {
	for n, c := range p.Components[1:] {
		if c.TweakPrefix <= p.Components[n].TweakPrefix {
			return &Error{
				Command: CommandSetIPIB, RC: rcInvalidIPIB, Text: "the IPIB is not valid",
				Cause: fmt.Errorf("tweak prefix of component %d is not above that of the one before", n+1),
			}
		}
	}
	return nil
}

// setParms makes the ultravisor's checks of the header.
func (m *Machine) setParms(h *se.Header) (*se.Confidential, error) {
	if f := se.UnknownPCF(h.PCF); f != 0 {
		return nil, setParms(rcPCF, rrcPCF, "unsupported plaintext control flag", fmt.Errorf("flags %v", se.PCFNames(f)))
	}
	key, err := m.headerKey(h)
	if err != nil {
		return nil, err
	}
	defer key.Wipe()
	c, err := h.Open(key)
	if err != nil {
		return nil, setParms(rcHeader, rrcNotPublic, "header corrupt", err)
	}
	if f := se.UnknownSCF(c.SCF); f != 0 {
		err = setParms(rcSCF, 0, "unsupported secret control flag", fmt.Errorf("flags %v", se.SCFNames(f)))
	} else if c.OptionalItems != 0 {
		err = setParms(rcHeader, rrcNotPublic, "header corrupt", fmt.Errorf("%d optional items", c.OptionalItems))
	}
	if err != nil {
		c.Wipe()
		return nil, err
	}
	return c, nil
}

// headerKey opens the first key slot of one of the machine's keys.
func (m *Machine) headerKey(h *se.Header) (*keys.Secret, error) {
	usable := m.HostKeys
	backup := h.PCF.Has(se.PCFBackupTarget)
	if backup {
		usable = append(append([]*ecdh.PrivateKey(nil), usable...), m.BackupKeys...)
	}
	for _, private := range usable {
		hash, err := se.HostKeyHash(private.PublicKey())
		if err != nil {
			return nil, fmt.Errorf("host key of the machine: %w", err)
		}
		for _, slot := range h.Slots {
			if slot.HostKeyHash != hash {
				continue
			}
			key, err := slot.Unwrap(private, h.CustomerKey)
			switch {
			case errors.Is(err, se.ErrCustomerKey):
				return nil, setParms(rcHostKey, rrcCustomerKey, "customer ECDH key is not valid", err)
			case err != nil:
				return nil, setParms(rcHostKey, rrcNotPublic, "header key cannot be unwrapped", err)
			}
			return key, nil
		}
	}
	if backup && len(m.BackupKeys) > 0 {
		return nil, setParms(rcHostKey, rrcBackupKey, "backup host key hash not found", nil)
	}
	return nil, setParms(rcHostKey, rrcNoHostKey, "host key hash not found", nil)
}

// start unpacks and verifies the pages, and finds the parts of the guest.
func (g *Guest) start(ctx context.Context) error {
	if !g.Image.Header.PCF.Has(se.PCFNoComponentEncryption) {
		cipher, err := xts.New(g.Confidential.ImageKey.Bytes())
		if err != nil {
			return &Error{Command: CommandUnpack, RC: rcHeader, Text: "image key is not valid", Cause: err}
		}
		g.cipher = cipher
	}
	if err := g.verify(ctx); err != nil {
		return err
	}
	return g.findParts(ctx)
}

// verify compares the digests of the pages with those of the header.
func (g *Guest) verify(ctx context.Context) error {
	d := se.NewDigester()
	for _, c := range g.Image.IPIB.Components {
		err := g.pages(ctx, c, func(pages []byte, offset uint64) error {
			d.Add(c, pages, offset)
			return nil
		})
		if err != nil {
			return err
		}
	}
	got, want := d.Sum(), g.Image.Header.Digests
	switch {
	case got.Pages != want.Pages:
		return verify(rrcPages, "number of pages mismatch")
	case !equal(got.ALD, want.ALD):
		return verify(rrcALD, "address list digest (ALD) mismatch")
	case !equal(got.PLD, want.PLD):
		return verify(rrcPLD, "page list digest (PLD) mismatch")
	case !equal(got.TLD, want.TLD):
		return verify(rrcTLD, "tweak list digest (TLD) mismatch")
	}
	return nil
}

func equal(a, b se.Digest) bool { return subtle.ConstantTimeCompare(a[:], b[:]) == 1 }
