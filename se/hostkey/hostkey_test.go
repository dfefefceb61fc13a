// SPDX-License-Identifier: Apache-2.0
// Copyright The Cloister Authors.

package hostkey_test

import (
	"bytes"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/rsa"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/asn1"
	"encoding/pem"
	"errors"
	"math/big"
	"os"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/cloister-cc/cloister/se"
	"github.com/cloister-cc/cloister/se/hostkey"
	"github.com/cloister-cc/cloister/se/hostkey/hostkeytest"
)

var now = time.Date(2026, 11, 1, 12, 0, 0, 0, time.UTC)

func must[T any](t testing.TB) func(T, error) T {
	t.Helper()
	return func(v T, err error) T {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
		return v
	}
}

// shared makes authorities once: RSA keys take long.
var (
	good    = sync.OnceValues(func() (*hostkeytest.Authority, error) { return hostkeytest.New(now, nil) })
	fake    = sync.OnceValues(func() (*hostkeytest.Authority, error) { return hostkeytest.New(now, nil) })
	hostKey = sync.OnceValues(hostkeytest.NewHostKey)
)

// world is what one verification is about.
type world struct {
	authority *hostkeytest.Authority
	document  []byte
	options   hostkey.VerifierOptions
}

// newWorld returns one in which everything is right.
func newWorld(t testing.TB, a *hostkeytest.Authority) *world {
	t.Helper()
	w := &world{authority: a}
	w.document = must[[]byte](t)(a.Document(must[*ecdsa.PrivateKey](t)(hostKey()).Public(), nil))
	w.options = hostkey.VerifierOptions{
		Certificates: [][]byte{a.Signing.PEM(), a.Intermediate.PEM()}, Roots: [][]byte{a.Root.PEM()}, Now: now,
		CRLs: [][]byte{w.crl(t, a.Root, nil), w.crl(t, a.Intermediate, nil), w.crl(t, a.Signing, nil)},
	}
	return w
}

func (w *world) crl(t testing.TB, issuer *hostkeytest.Issuer, change func(*x509.RevocationList), revoked ...*big.Int) []byte {
	t.Helper()
	return must[[]byte](t)(w.authority.CRL(issuer, change, revoked...))
}

func (w *world) redo(t testing.TB, change func(*x509.Certificate)) {
	t.Helper()
	w.document = must[[]byte](t)(w.authority.Document(must[*ecdsa.PrivateKey](t)(hostKey()).Public(), change))
}

func (w *world) serial(t testing.TB) *big.Int {
	t.Helper()
	return must[*hostkey.Document](t)(hostkey.Parse(w.document)).Certificate.SerialNumber
}

func (w *world) verify() error {
	d, err := hostkey.Parse(w.document)
	if err != nil {
		return err
	}
	v, err := hostkey.NewVerifier(w.options)
	if err != nil {
		return err
	}
	return v.Verify(d)
}

func TestVerify(t *testing.T) {
	t.Parallel()
	a := must[*hostkeytest.Authority](t)(good())
	w := newWorld(t, a)
	if err := w.verify(); err != nil {
		t.Fatal(err)
	}
	v := must[*hostkey.Verifier](t)(hostkey.NewVerifier(w.options))
	if !strings.Contains(v.SigningKey(), "Key Signing Service") {
		t.Errorf("signing key %q", v.SigningKey())
	}
	d := must[*hostkey.Document](t)(hostkey.Parse(w.document))
	if hash := must[[32]byte](t)(d.Hash()); hash != must[[32]byte](t)(se.HostKeyHash(d.PublicKey)) {
		t.Errorf("hash %x", hash)
	}
	for name, change := range map[string]func(){
		"lists with the certificates": func() {
			w.options.Certificates, w.options.CRLs = append(w.options.Certificates, w.options.CRLs...), nil
		},
		"all in one file": func() {
			w.options.Certificates = [][]byte{slices.Concat(w.options.Certificates...)}
		},
		"DER": func() {
			block, _ := pem.Decode(w.document)
			w.document = block.Bytes
			w.options.Roots = [][]byte{a.Root.Certificate.Raw}
		},
		"list of the old locality, in another order": func() {
			signing := *a.Signing
			cert := *signing.Certificate
			cert.RawSubject = must[[]byte](t)(asn1.Marshal(reordered()))
			signing.Certificate = &cert
			w.options.CRLs[2] = w.crl(t, &signing, nil)
		},
		"an old list beside a current one": func() {
			w.options.CRLs = append(w.options.CRLs, w.crl(t, a.Signing, func(l *x509.RevocationList) { l.NextUpdate = now.Add(-time.Hour) }))
		},
		"list of the right distribution point": func() {
			w.redo(t, func(c *x509.Certificate) { c.CRLDistributionPoints = []string{"http://crl.example/a.crl"} })
			w.options.CRLs[2] = w.crl(t, a.Signing, distributionPoint("http://crl.example/a.crl"))
		},
	} {
		w = newWorld(t, a)
		change()
		if err := w.verify(); err != nil {
			t.Errorf("%s: %v", name, err)
		}
	}
}

// reordered is the issuer of IBM's revocation lists: the signing key's subject of former days, in another order.
func reordered() pkix.RDNSequence {
	var out pkix.RDNSequence
	for _, id := range []int{6, 10, 11, 7, 8, 3} {
		for _, a := range hostkeytest.SigningSubject().ExtraNames {
			if a.Type[3] == id {
				if id == 7 {
					a.Value = "Poughkeepsie"
				}
				out = append(out, pkix.RelativeDistinguishedNameSET{a})
			}
		}
	}
	return out
}

func distributionPoint(uri string) func(*x509.RevocationList) {
	return func(l *x509.RevocationList) {
		general := asn1.RawValue{Class: 2, Tag: 6, Bytes: []byte(uri)}
		full, _ := asn1.Marshal(general)
		full, _ = asn1.Marshal(asn1.RawValue{Class: 2, Tag: 0, IsCompound: true, Bytes: full})
		full, _ = asn1.Marshal(asn1.RawValue{Class: 2, Tag: 0, IsCompound: true, Bytes: full})
		value, _ := asn1.Marshal(asn1.RawValue{Tag: 16, IsCompound: true, Bytes: full})
		l.ExtraExtensions = append(l.ExtraExtensions, pkix.Extension{Id: asn1.ObjectIdentifier{2, 5, 29, 28}, Critical: true, Value: value})
	}
}

func TestVerifyRefuses(t *testing.T) {
	t.Parallel()
	a, f := must[*hostkeytest.Authority](t)(good()), must[*hostkeytest.Authority](t)(fake())
	critical := pkix.Extension{Id: asn1.ObjectIdentifier{1, 2, 3}, Critical: true, Value: []byte{5, 0}}
	for name, tc := range map[string]struct {
		change func(*world)
		want   error
	}{
		"document expired": {func(w *world) {
			w.redo(t, func(c *x509.Certificate) { c.NotBefore, c.NotAfter = now.Add(-2*time.Hour), now.Add(-time.Hour) })
		}, hostkey.ErrExpired},
		"document too new": {func(w *world) {
			w.redo(t, func(c *x509.Certificate) { c.NotBefore, c.NotAfter = now.Add(time.Hour), now.Add(2*time.Hour) })
		}, hostkey.ErrNotYetValid},
		"document critical": {func(w *world) {
			w.redo(t, func(c *x509.Certificate) { c.ExtraExtensions = []pkix.Extension{critical} })
		}, hostkey.ErrUsage},
		"document usage":            {func(w *world) { w.redo(t, func(c *x509.Certificate) { c.KeyUsage = x509.KeyUsageDigitalSignature }) }, hostkey.ErrUsage},
		"document is a CA":          {func(w *world) { w.redo(t, func(c *x509.Certificate) { c.IsCA, c.BasicConstraintsValid = true, true }) }, hostkey.ErrUsage},
		"document of another chain": {func(w *world) { w.document = newWorld(t, f).document }, hostkey.ErrAuthority},
		"document signed by another key": {func(w *world) {
			other := *f
			cert := *f.Signing.Certificate
			cert.SubjectKeyId = a.Signing.Certificate.SubjectKeyId
			other.Signing = &hostkeytest.Issuer{Certificate: &cert, Key: f.Signing.Key}
			w.document = must[[]byte](t)(other.Document(must[*ecdsa.PrivateKey](t)(hostKey()).Public(), nil))
		}, hostkey.ErrSignature},
		"document revoked": {func(w *world) { w.options.CRLs[2] = w.crl(t, a.Signing, nil, w.serial(t)) }, hostkey.ErrRevoked},
		"document revoked by one of two lists": {func(w *world) {
			w.options.CRLs = append(w.options.CRLs, w.crl(t, a.Signing, nil, w.serial(t)))
		}, hostkey.ErrRevoked},
		"signing key revoked":         {func(w *world) { w.options.CRLs[1] = w.crl(t, a.Intermediate, nil, a.Signing.Certificate.SerialNumber) }, hostkey.ErrRevoked},
		"intermediate revoked":        {func(w *world) { w.options.CRLs[0] = w.crl(t, a.Root, nil, a.Intermediate.Certificate.SerialNumber) }, hostkey.ErrRevoked},
		"no lists":                    {func(w *world) { w.options.CRLs = nil }, hostkey.ErrNoCRL},
		"no list of the root":         {func(w *world) { w.options.CRLs = w.options.CRLs[1:] }, hostkey.ErrNoCRL},
		"no list of the intermediate": {func(w *world) { w.options.CRLs = append(w.options.CRLs[:1:1], w.options.CRLs[2]) }, hostkey.ErrNoCRL},
		"no list of the signing key":  {func(w *world) { w.options.CRLs = w.options.CRLs[:2] }, hostkey.ErrNoCRL},
		"list too old": {func(w *world) {
			w.options.CRLs[2] = w.crl(t, a.Signing, func(l *x509.RevocationList) { l.ThisUpdate, l.NextUpdate = now.Add(-2*time.Hour), now.Add(-time.Hour) })
		}, hostkey.ErrNoCRL},
		"list too new": {func(w *world) {
			w.options.CRLs[2] = w.crl(t, a.Signing, func(l *x509.RevocationList) { l.ThisUpdate = now.Add(time.Hour) })
		}, hostkey.ErrNoCRL},
		"list by another key": {func(w *world) { w.options.CRLs[2] = newWorld(t, f).options.CRLs[2] }, hostkey.ErrNoCRL},
		"list of another issuer": {func(w *world) {
			cert := *a.Signing.Certificate
			cert.RawSubject = a.Root.Certificate.RawSubject
			w.options.CRLs[2] = w.crl(t, &hostkeytest.Issuer{Certificate: &cert, Key: a.Signing.Key}, nil)
		}, hostkey.ErrNoCRL},
		"list changed": {func(w *world) {
			block, _ := pem.Decode(w.options.CRLs[2])
			block.Bytes[len(block.Bytes)-1] ^= 1
			w.options.CRLs[2] = pem.EncodeToMemory(block)
		}, hostkey.ErrNoCRL},
		"delta list": {func(w *world) {
			w.options.CRLs[2] = w.crl(t, a.Signing, func(l *x509.RevocationList) {
				l.ExtraExtensions = []pkix.Extension{{Id: asn1.ObjectIdentifier{2, 5, 29, 27}, Critical: true, Value: []byte{2, 1, 1}}}
			})
		}, hostkey.ErrNoCRL},
		"list of another distribution point": {func(w *world) { w.options.CRLs[2] = w.crl(t, a.Signing, distributionPoint("http://other")) }, hostkey.ErrNoCRL},
		"no signing key":                     {func(w *world) { w.options.Certificates = w.options.Certificates[1:] }, hostkey.ErrNoSigningKey},
		"two signing keys":                   {func(w *world) { w.options.Certificates = append(w.options.Certificates, f.Signing.PEM()) }, hostkey.ErrManySigningKeys},
		"no intermediate":                    {func(w *world) { w.options.Certificates = w.options.Certificates[:1] }, hostkey.ErrChain},
		"another root":                       {func(w *world) { w.options.Roots = [][]byte{f.Root.PEM()} }, hostkey.ErrChain},
		"the system's roots":                 {func(w *world) { w.options.Roots = nil }, hostkey.ErrChain},
		"signing key is its own root":        {func(w *world) { w.options.Roots = [][]byte{a.Signing.PEM()} }, hostkey.ErrChain},
		"much later":                         {func(w *world) { w.options.Now = now.Add(365 * 24 * time.Hour) }, hostkey.ErrChain},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			w := newWorld(t, a)
			tc.change(w)
			err := w.verify()
			if !errors.Is(err, tc.want) {
				t.Fatalf("error %v, want %v", err, tc.want)
			}
			hint := ""
			if v, ok := errors.AsType[*hostkey.VerifyError](err); ok {
				hint = v.Hint()
			}
			if hint == "" && !errors.Is(err, hostkey.ErrUsage) {
				t.Errorf("error %q has no hint", err)
			}
		})
	}
}

// What is wrong with the signing key's certificate itself.
func TestSigningKeyRefused(t *testing.T) {
	t.Parallel()
	for name, tc := range map[string]struct {
		change func(name string, c *x509.Certificate)
		want   error
	}{
		"expired": {func(name string, c *x509.Certificate) {
			if name == "signing" {
				c.NotBefore, c.NotAfter = now.Add(-2*time.Hour), now.Add(-time.Hour)
			}
		}, hostkey.ErrChain},
		"other unit": {func(name string, c *x509.Certificate) {
			if name == "signing" {
				c.Subject.ExtraNames[4].Value = "Key Signing Service of somebody"
			}
		}, hostkey.ErrNoSigningKey},
		"other locality": {func(name string, c *x509.Certificate) {
			if name == "signing" {
				c.Subject.ExtraNames[2].Value = "New York"
			}
		}, hostkey.ErrNoSigningKey},
		"one attribute more": {func(name string, c *x509.Certificate) {
			if name == "signing" {
				c.Subject.ExtraNames = append(c.Subject.ExtraNames, c.Subject.ExtraNames[4])
			}
		}, hostkey.ErrNoSigningKey},
		"intermediate is no CA": {func(name string, c *x509.Certificate) {
			if name == "intermediate" {
				c.IsCA = false
			}
		}, hostkey.ErrChain},
		"intermediate may sign no lists": {func(name string, c *x509.Certificate) {
			if name == "intermediate" {
				c.KeyUsage = x509.KeyUsageCertSign
			}
		}, hostkey.ErrNoCRL},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			a := must[*hostkeytest.Authority](t)(hostkeytest.New(now, tc.change))
			if err := newWorld(t, a).verify(); !errors.Is(err, tc.want) {
				t.Errorf("error %v, want %v", err, tc.want)
			}
		})
	}
}

func TestWeakRefused(t *testing.T) {
	t.Parallel()
	w := newWorld(t, must[*hostkeytest.Authority](t)(good()))
	v := must[*hostkey.Verifier](t)(hostkey.NewVerifier(w.options))
	for name, change := range map[string]func(*x509.Certificate){
		"SHA-1": func(c *x509.Certificate) { c.SignatureAlgorithm = x509.SHA1WithRSA },
		"RSA 1024": func(c *x509.Certificate) {
			c.PublicKey = &rsa.PublicKey{N: new(big.Int).Lsh(big.NewInt(1), 1023), E: 65537}
		},
		"unknown": func(c *x509.Certificate) { c.PublicKey = "key" },
	} {
		d := must[*hostkey.Document](t)(hostkey.Parse(w.document))
		change(d.Certificate)
		if err := v.Verify(d); !errors.Is(err, hostkey.ErrWeak) {
			t.Errorf("%s: error %v", name, err)
		}
	}
}

func TestZeroVerifierDenies(t *testing.T) {
	t.Parallel()
	w := newWorld(t, must[*hostkeytest.Authority](t)(good()))
	d := must[*hostkey.Document](t)(hostkey.Parse(w.document))
	if err := new(hostkey.Verifier).Verify(d); !errors.Is(err, hostkey.ErrNoSigningKey) {
		t.Errorf("error %v", err)
	}
}

func TestParse(t *testing.T) {
	t.Parallel()
	a := must[*hostkeytest.Authority](t)(good())
	w := newWorld(t, a)
	if d := must[*hostkey.Document](t)(hostkey.Parse(append(slices.Clone(w.document), a.Root.PEM()...))); d.Ignored != 1 {
		t.Errorf("%d certificates ignored", d.Ignored)
	}
	p384 := must[*ecdsa.PrivateKey](t)(ecdsa.GenerateKey(elliptic.P384(), rand.Reader))
	for name, data := range map[string][]byte{
		"nothing": nil, "text": []byte("no certificate"), "RSA key": a.Root.PEM(), "revocation list": w.options.CRLs[0],
		"other curve": must[[]byte](t)(a.Document(p384.Public(), nil)), "cut": w.document[:len(w.document)/2],
		"too long": bytes.Repeat([]byte{' '}, hostkey.MaxFileSize+1), "many": bytes.Repeat(w.document, 65),
		"private key": []byte("-----BEGIN PRIVATE KEY-----\nAAAA\n-----END PRIVATE KEY-----\n"),
	} {
		if _, err := hostkey.Parse(data); !errors.Is(err, hostkey.ErrNotDocument) {
			t.Errorf("%s: error %v", name, err)
		}
	}
}

func TestFilesVerify(t *testing.T) {
	t.Parallel()
	a := must[*hostkeytest.Authority](t)(good())
	dir := t.TempDir()
	files := must[*hostkeytest.Files](t)(a.WriteFiles(dir))
	read := func(paths ...string) (out [][]byte) {
		for _, p := range paths {
			out = append(out, must[[]byte](t)(os.ReadFile(p)))
		}
		return out
	}
	w := &world{document: read(files.Document)[0], options: hostkey.VerifierOptions{
		Certificates: read(files.Certificates...), CRLs: read(files.CRLs...), Roots: read(files.Root), Now: now,
	}}
	if err := w.verify(); err != nil {
		t.Error(err)
	}
}
