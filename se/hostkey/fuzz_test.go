// SPDX-License-Identifier: Apache-2.0
// Copyright The Cloister Authors.

package hostkey_test

import (
	"bytes"
	"encoding/pem"
	"testing"

	"github.com/cloister-cc/cloister/se/hostkey"
	"github.com/cloister-cc/cloister/se/hostkey/hostkeytest"
)

func FuzzVerify(f *testing.F) {
	w := newWorld(f, must[*hostkeytest.Authority](f)(good()))
	block, _ := pem.Decode(w.document)
	f.Add(w.document)
	f.Add(block.Bytes)
	v := must[*hostkey.Verifier](f)(hostkey.NewVerifier(w.options))
	f.Fuzz(func(t *testing.T, data []byte) {
		d, err := hostkey.Parse(data)
		if err != nil {
			return
		}
		if err := v.Verify(d); err == nil && !bytes.Equal(d.Certificate.Raw, block.Bytes) {
			t.Errorf("%x verifies", data)
		}
	})
}

func FuzzCRL(f *testing.F) {
	w := newWorld(f, must[*hostkeytest.Authority](f)(good()))
	f.Add(w.options.CRLs[2])
	f.Add(w.crl(f, w.authority.Signing, distributionPoint("http://crl.example")))
	options := w.options
	f.Fuzz(func(t *testing.T, data []byte) {
		o := options
		o.CRLs = [][]byte{options.CRLs[0], options.CRLs[1], data}
		v, err := hostkey.NewVerifier(o)
		if err != nil {
			return
		}
		d, err := hostkey.Parse(w.document)
		if err != nil {
			t.Fatal(err)
		}
		_ = v.Verify(d) // whatever it says: it must not panic
	})
}
