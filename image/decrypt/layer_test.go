// SPDX-License-Identifier: Apache-2.0
// Copyright The Cloister Authors.

package decrypt

import (
	"bytes"
	"errors"
	"io"
	"math/rand/v2"
	"testing"
	"testing/iotest"

	"github.com/containers/ocicrypt/blockcipher"
)

// sealedLayer is a layer as ocicrypt encrypts it.
func sealedLayer(t *testing.T, plain []byte) ([]byte, *LayerKey) {
	t.Helper()
	handler, err := blockcipher.NewLayerBlockCipherHandler()
	if err != nil {
		t.Fatal(err)
	}
	r, finish, err := handler.Encrypt(bytes.NewReader(plain), blockcipher.AES256CTR)
	if err != nil {
		t.Fatal(err)
	}
	sealed, err := io.ReadAll(r)
	if err != nil {
		t.Fatal(err)
	}
	o, err := finish()
	if err != nil {
		t.Fatal(err)
	}
	return sealed, newLayerKey(&o.Public, &o.Private)
}

// What ocicrypt encrypts is decrypted, in any pieces. What was cut, prolonged or changed ends with an error, and before
// that the last bytes are not seen; a failure of the source is that failure.
func TestLayerReader(t *testing.T) {
	failed := errors.New("connection dropped")
	for _, size := range []int{0, 1, 15, 16, heldBack - 1, heldBack, heldBack + 1, 2 * heldBack, 3*heldBack + 7} {
		plain := make([]byte, size)
		_, _ = rand.NewChaCha8([32]byte{6}).Read(plain) // never fails
		sealed, key := sealedLayer(t, plain)
		changed := append(bytes.Clone(sealed), 0)[:size]
		if size > 0 {
			changed[size/2] ^= 1
		}
		for name, tt := range map[string]struct {
			r    io.Reader
			want error // nil: all of it
		}{
			"whole":             {bytes.NewReader(sealed), nil},
			"halves":            {iotest.HalfReader(bytes.NewReader(sealed)), nil},
			"one byte each":     {iotest.OneByteReader(bytes.NewReader(sealed)), nil},
			"end with the data": {iotest.DataErrReader(bytes.NewReader(sealed)), nil},
			"cut":               {bytes.NewReader(sealed[:max(0, size-1)]), ErrUnauthentic},
			"prolonged":         {io.MultiReader(bytes.NewReader(sealed), bytes.NewReader([]byte{0})), ErrUnauthentic},
			"changed":           {bytes.NewReader(changed), ErrUnauthentic},
			"dropped":           {io.MultiReader(bytes.NewReader(sealed), iotest.ErrReader(failed)), failed},
		} {
			if size == 0 && (name == "cut" || name == "changed") {
				continue // nothing to cut or change
			}
			r, err := key.Reader(tt.r)
			if err != nil {
				t.Fatal(err)
			}
			got, err := io.ReadAll(r)
			if !errors.Is(err, tt.want) || tt.want == nil && !bytes.Equal(got, plain) {
				t.Errorf("%s, %d bytes: got %d, %v", name, size, len(got), err)
			}
			if tt.want != nil && len(got) > max(0, size-1)/heldBack*heldBack {
				t.Errorf("%s, %d bytes: %d of them were seen before %v", name, size, len(got), err)
			}
			if _, again := r.Read(make([]byte, 1)); tt.want != nil && !errors.Is(again, tt.want) || tt.want == nil && !errors.Is(again, io.EOF) {
				t.Errorf("%s, %d bytes: then %v", name, size, again)
			}
		}
	}
}
