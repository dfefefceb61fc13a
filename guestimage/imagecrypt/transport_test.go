// SPDX-License-Identifier: Apache-2.0
// Copyright The Cloister Authors.

package imagecrypt

import (
	"bytes"
	"crypto"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/rsa"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/json"
	"encoding/pem"
	"errors"
	"math/big"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/ProtonMail/go-crypto/openpgp"
	"github.com/opencontainers/image-spec/specs-go"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/cloister-cc/cloister/image/decrypt"
	"github.com/cloister-cc/cloister/keys"
)

// party is a recipient with the arguments that decrypt for it.
type party struct {
	recipient Recipient
	ring      func(t *testing.T) *KeyRing
}

// parties makes one recipient of each protocol, and a second one of JWE with an elliptic curve.
func parties(t *testing.T) map[string]party {
	t.Helper()
	dir := t.TempDir()
	out := map[string]party{"packet": {demoRecipient()[0], ringOf(t, dir, nil, "packet")}}
	rsaKey, err := rsa.GenerateKey(rand.Reader, 2048)
	check(t, err)
	ecKey, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	check(t, err)
	for name, key := range map[string]any{"jwe": rsaKey, "jwe-ec": ecKey} {
		public, err := x509.MarshalPKIXPublicKey(publicOf(key))
		check(t, err)
		private, err := x509.MarshalPKCS8PrivateKey(key)
		check(t, err)
		if name == "jwe-ec" {
			private, err = x509.MarshalECPrivateKey(ecKey)
			check(t, err)
			private = pem.EncodeToMemory(&pem.Block{Type: "EC PRIVATE KEY", Bytes: private})
		} else {
			private = pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: private})
		}
		public = pem.EncodeToMemory(&pem.Block{Type: "PUBLIC KEY", Bytes: public})
		writeFile(t, dir, name+".pub", public)
		r, err := ReadRecipient("jwe:"+filepath.Join(dir, name+".pub"), "")
		check(t, err)
		out[name] = party{r, ringOf(t, dir, map[string][]byte{name: private}, "")}
	}
	template := &x509.Certificate{SerialNumber: big.NewInt(4711), Subject: pkix.Name{CommonName: "bob"}, NotAfter: time.Now().Add(time.Hour)}
	der, err := x509.CreateCertificate(rand.Reader, template, template, rsaKey.Public(), rsaKey)
	check(t, err)
	writeFile(t, dir, "bob.crt", pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der}))
	r, err := ReadRecipient("pkcs7:"+filepath.Join(dir, "bob.crt"), "")
	check(t, err)
	out["pkcs7"] = party{r, ringOf(t, dir, map[string][]byte{
		"bob.key": x509.MarshalPKCS1PrivateKey(rsaKey), "bob.der": der,
	}, "")}
	entity, err := openpgp.NewEntity("carol", "", "carol@example.com", nil)
	check(t, err)
	var public, private bytes.Buffer
	check(t, entity.SerializePrivate(&private, nil))
	check(t, entity.Serialize(&public))
	writeFile(t, dir, "ring", public.Bytes())
	r, err = ReadRecipient("pgp:carol@example.com", filepath.Join(dir, "ring"))
	check(t, err)
	out["pgp"] = party{r, ringOf(t, dir, map[string][]byte{"carol": private.Bytes()}, "")}
	return out
}

func publicOf(key any) any {
	return key.(interface{ Public() crypto.PublicKey }).Public()
}

func check(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

// ringOf makes a key ring of files, or of the demo key.
func ringOf(t *testing.T, dir string, files map[string][]byte, packet string) func(*testing.T) *KeyRing {
	t.Helper()
	for name, data := range files {
		writeFile(t, dir, name, data)
	}
	return func(t *testing.T) *KeyRing {
		t.Helper()
		ring := new(KeyRing)
		if packet != "" {
			writeFile(t, dir, packet, demoKey().Bytes())
			check(t, ring.AddPacketKey(keyURI, filepath.Join(dir, packet)))
		}
		for name := range files {
			check(t, ring.AddFile(filepath.Join(dir, name), nil))
		}
		return ring
	}
}

// makeIndex makes a layout with an index of two platforms and a statement of origin.
func makeIndex(t *testing.T, compression string) string {
	t.Helper()
	out, err := stageLayout(t.TempDir())
	check(t, err)
	index := ocispec.Index{Versioned: specs.Versioned{SchemaVersion: 2}, MediaType: ocispec.MediaTypeImageIndex}
	for _, arch := range []string{"s390x", "amd64"} {
		dir, desc := create(t, Options{Rootfs: rootfs(t), Arch: arch, Compression: compression})
		check(t, os.CopyFS(filepath.Join(out.dir, "blobs/sha256", "x"+arch), os.DirFS(filepath.Join(dir, "blobs/sha256"))))
		names, err := filepath.Glob(filepath.Join(out.dir, "blobs/sha256", "x"+arch, "*"))
		check(t, err)
		for _, name := range names {
			check(t, os.Rename(name, filepath.Join(out.dir, "blobs/sha256", filepath.Base(name))))
		}
		desc.Platform = &ocispec.Platform{OS: "linux", Architecture: arch}
		index.Manifests = append(index.Manifests, desc)
	}
	origin, err := out.writeJSON(ocispec.MediaTypeImageManifest, map[string]any{"schemaVersion": 2})
	check(t, err)
	origin.Platform = &ocispec.Platform{OS: "unknown", Architecture: "unknown"}
	index.Manifests = append(index.Manifests, origin)
	root, err := out.writeJSON(ocispec.MediaTypeImageIndex, index)
	check(t, err)
	check(t, out.finish(root, "1"))
	return out.dir
}

// plainOf lists what makes an image: platform, config, media types and digests of the layers.
func plainOf(t *testing.T, l Location) string {
	t.Helper()
	r, err := Inspect(t.Context(), l, Access{})
	check(t, err)
	r.Source, r.Digest, r.Skipped = "", "", nil
	for i := range r.Images {
		r.Images[i].Digest = ""
	}
	data, err := json.Marshal(r)
	check(t, err)
	return string(data)
}

func TestRoundTrips(t *testing.T) {
	all := parties(t)
	reg := startRegistry(t)
	access := Access{CA: reg.ca, Auth: reg.auth}
	for name, p := range all {
		for _, compression := range []string{Gzip, Zstd, None} {
			for _, kind := range []string{"image", "index"} {
				src := Location{Transport: OCI, Path: makeIndex(t, compression), Name: "1"}
				if kind == "image" {
					dir, _ := create(t, Options{Rootfs: rootfs(t), Compression: compression})
					src = Location{Transport: OCI, Path: dir}
				}
				for _, middle := range []Location{
					{Transport: OCI, Path: filepath.Join(t.TempDir(), "x"), Name: "tag"},
					{Transport: OCIArchive, Path: filepath.Join(t.TempDir(), "x.tar")},
					{Transport: Docker, Path: reg.host + "/" + name + "/" + compression + ":" + kind},
				} {
					t.Run(name+" "+compression+" "+kind+" "+middle.Transport, func(t *testing.T) {
						roundTrip(t, src, middle, access, p, all)
					})
				}
			}
		}
	}
}

func roundTrip(t *testing.T, src, middle Location, access Access, p party, all map[string]party) {
	t.Helper()
	other := all["jwe-ec"].recipient
	o := CopyOptions{Source: src, Destination: middle, DestinationAccess: access}
	result, err := Encrypt(t.Context(), o, []Recipient{p.recipient, other})
	check(t, err)
	report, err := Inspect(t.Context(), middle, access)
	check(t, err)
	if report.Digest != result.Digest || len(report.Images) != result.Images || result.Changed != result.Images {
		t.Errorf("report %+v, result %+v", report, result)
	}
	for _, img := range report.Images {
		if l := img.Layers[0]; !l.Encrypted || len(l.Recipients) != 2 || l.Problem != "" {
			t.Errorf("layer %+v", l)
		}
	}
	for _, ring := range []*KeyRing{p.ring(t), all["jwe-ec"].ring(t)} {
		dst := Location{Transport: OCI, Path: filepath.Join(t.TempDir(), "plain")}
		var last, total int64
		back := CopyOptions{Source: middle, SourceAccess: access, Destination: dst, Workers: 1, Progress: func(d, n int64) { last, total = d, n }}
		if _, err := Decrypt(t.Context(), back, ring); err != nil {
			t.Fatal(err)
		}
		if got, want := plainOf(t, dst), plainOf(t, src); got != want {
			t.Errorf("came back as\n%s\nwas\n%s", got, want)
		}
		if last != total || total == 0 {
			t.Errorf("progress ends at %d of %d bytes", last, total)
		}
	}
}

func TestDockerArchiveRoundTrip(t *testing.T) {
	for _, compression := range []string{Gzip, Zstd, None} {
		dir, _ := create(t, Options{Rootfs: rootfs(t), Compression: compression})
		tmp := t.TempDir()
		at := func(transport, name, tag string) Location {
			return Location{Transport: transport, Path: filepath.Join(tmp, name), Name: tag}
		}
		ring := new(KeyRing)
		writeFile(t, tmp, "key", demoKey().Bytes())
		check(t, ring.AddPacketKey(keyURI, filepath.Join(tmp, "key")))
		_, err := Encrypt(t.Context(), between(dir, filepath.Join(tmp, "1")), demoRecipient())
		check(t, err)
		archive := at(DockerArchive, "2.tar", "demo/app:1")
		_, err = Decrypt(t.Context(), CopyOptions{Source: at(OCI, "1", ""), Destination: archive}, ring)
		check(t, err)
		_, err = Encrypt(t.Context(), CopyOptions{Source: archive, Destination: at(OCIArchive, "3.tar", "")}, demoRecipient())
		check(t, err)
		_, err = Decrypt(t.Context(), CopyOptions{Source: at(OCIArchive, "3.tar", ""), Destination: at(OCI, "4", "")}, ring)
		check(t, err)
		none, _ := create(t, Options{Rootfs: rootfs(t), Compression: None})
		if got, want := plainOf(t, at(OCI, "4", "")), plainOf(t, Location{Transport: OCI, Path: none}); got != want {
			t.Errorf("%s: came back as\n%s\nwant\n%s", compression, got, want)
		}
		o := CopyOptions{Source: archive, Destination: at(DockerArchive, "5.tar", "")}
		if _, err := Encrypt(t.Context(), o, demoRecipient()); !errors.Is(err, errNoPlaceForKeys) {
			t.Errorf("encrypted into a docker-archive: %v", err)
		}
		if _, err := Inspect(t.Context(), at(DockerArchive, "2.tar", "other"), Access{}); err == nil || !strings.Contains(err.Error(), "holds no image of the name other") {
			t.Errorf("an image of another name: %v", err)
		}
	}
}

func TestPlatforms(t *testing.T) {
	src := Location{Transport: OCI, Path: makeIndex(t, Gzip)}
	for name, tt := range map[string]struct {
		platforms []string
		images    int
		index     bool
		skipped   int
		err       string
	}{
		"all": {nil, 2, true, 1, ""}, "one": {[]string{"linux/s390x"}, 1, false, 0, ""},
		"both":   {[]string{"linux/s390x", "linux/amd64"}, 2, true, 0, ""},
		"absent": {[]string{"linux/arm64"}, 0, false, 0, `no image for linux/arm64 (it has: "linux/s390x"`},
	} {
		dst := Location{Transport: OCI, Path: filepath.Join(t.TempDir(), "x")}
		r, err := Encrypt(t.Context(), CopyOptions{Source: src, Destination: dst, Platforms: tt.platforms}, demoRecipient())
		if tt.err != "" {
			if err == nil || !strings.Contains(err.Error(), tt.err) {
				t.Errorf("%s: %v, want %q", name, err, tt.err)
			}
			continue
		}
		check(t, err)
		report, err := Inspect(t.Context(), dst, Access{})
		check(t, err)
		if r.Images != tt.images || report.Index != tt.index || r.Skipped != tt.skipped || len(report.Images) != tt.images {
			t.Errorf("%s: result %+v, report %+v", name, r, report)
		}
	}
}

func TestChosenLayer(t *testing.T) {
	for _, tt := range []struct{ numbers, want []int }{
		{nil, []int{0, 1, 2}}, {[]int{-1}, []int{2}}, {[]int{0, -2}, []int{0, 1}}, {[]int{7}, nil},
	} {
		var got []int
		for i := range 3 {
			if chosenLayer(tt.numbers, i, 3) {
				got = append(got, i)
			}
		}
		if !slices.Equal(got, tt.want) {
			t.Errorf("%v chooses %v, want %v", tt.numbers, got, tt.want)
		}
	}
}

// Every failure has its own words, leaves nothing behind, and shows no key.
func TestDecryptRefuses(t *testing.T) {
	all := parties(t)
	plain, _ := create(t, Options{Rootfs: rootfs(t)})
	tmp := t.TempDir()
	enc := filepath.Join(tmp, "enc")
	_, err := Encrypt(t.Context(), between(plain, enc), []Recipient{all["packet"].recipient, all["jwe"].recipient})
	check(t, err)
	wrong := new(KeyRing)
	writeFile(t, tmp, "wrong", bytes.Repeat([]byte{7}, 32))
	check(t, wrong.AddPacketKey(keyURI, filepath.Join(tmp, "wrong")))
	missing := new(KeyRing)
	check(t, missing.AddPacketKey("kbs:///a/b/c", filepath.Join(tmp, "wrong")))
	for name, tt := range map[string]struct {
		ring *KeyRing
		src  string
		kind error
		want string
	}{
		"wrong packet key":  {wrong, enc, ErrWrongKey, keyURI + " does not open"},
		"missing key":       {missing, enc, ErrNoKey, "it needs a private key of jwe or the key " + keyURI},
		"no key":            {new(KeyRing), enc, ErrNoKey, keyURI},
		"wrong private key": {all["jwe-ec"].ring(t), enc, ErrWrongKey, "jwe-ec does not open"},
		"pgp only":          {all["pgp"].ring(t), enc, ErrNoKey, keyURI},
		"not encrypted":     {all["packet"].ring(t), plain, nil, "no layer of the image is encrypted"},
		"HMAC":              {all["packet"].ring(t), forged(t, enc, "hmac"), decrypt.ErrUnauthentic, "HMAC"},
		"ciphertext":        {all["packet"].ring(t), forged(t, enc, "blob"), nil, "does not match its digest"},
		"diff_id":           {all["packet"].ring(t), forged(t, enc, "diffid"), nil, "does not have the diff_id"},
	} {
		dst := filepath.Join(tmp, "out", "plain")
		_, err := Decrypt(t.Context(), between(tt.src, dst), tt.ring)
		if err == nil || !strings.Contains(err.Error(), tt.want) || tt.kind != nil && !errors.Is(err, tt.kind) {
			t.Errorf("%s: %v, want %q", name, err, tt.want)
		}
		if left, err := os.ReadDir(filepath.Dir(dst)); len(left) > 0 {
			t.Errorf("%s: left %v, %v", name, left, err)
		}
	}
}

// forged copies an encrypted layout with something changed that its digests do not show, but for "blob".
func forged(t *testing.T, src, what string) string {
	t.Helper()
	l, m := readLayers(t, src)
	dst := filepath.Join(t.TempDir(), "forged")
	check(t, os.CopyFS(dst, os.DirFS(src)))
	out := &layout{dir: dst}
	switch what {
	case "hmac":
		annotation := `{"cipher":"AES_256_CTR_HMAC_SHA256","hmac":"` + strings.Repeat("A", 43) + `=","cipheroptions":{}}`
		m.Layers[0].Annotations[decrypt.PublicAnnotation] = encode(annotation)
	case "blob":
		data, err := os.ReadFile(l.path(m.Layers[0].Digest))
		check(t, err)
		data[len(data)/2] ^= 1
		check(t, os.WriteFile(out.path(m.Layers[0].Digest), data, 0o600))
	case "diffid":
		data, err := os.ReadFile(l.path(m.Config.Digest))
		check(t, err)
		var c ocispec.Image
		check(t, json.Unmarshal(data, &c))
		c.RootFS.DiffIDs[0] = "sha256:" + "0000000000000000000000000000000000000000000000000000000000000000"
		m.Config, err = out.writeJSON(ocispec.MediaTypeImageConfig, c)
		check(t, err)
	}
	desc, err := out.writeJSON(ocispec.MediaTypeImageManifest, m)
	check(t, err)
	check(t, out.finish(desc, ""))
	return dst
}

// A password opens a protected key, and a wrong one is said to be wrong.
func TestKeyFiles(t *testing.T) {
	dir := t.TempDir()
	key, err := rsa.GenerateKey(rand.Reader, 2048)
	check(t, err)
	block, err := x509.EncryptPEMBlock(rand.Reader, "RSA PRIVATE KEY", x509.MarshalPKCS1PrivateKey(key), []byte("sesame"), x509.PEMCipherAES256) //nolint:staticcheck // what openssl's -traditional writes
	check(t, err)
	writeFile(t, dir, "key", pem.EncodeToMemory(block))
	writeFile(t, dir, "pkcs8", pem.EncodeToMemory(&pem.Block{Type: "ENCRYPTED PRIVATE KEY", Bytes: []byte{1}}))
	writeFile(t, dir, "text", []byte("SECRETTEXT"))
	for name, tt := range map[string]struct {
		file, password, want string
	}{
		"right": {"key", "sesame", ""}, "wrong": {"key", "open", "is wrong"}, "none": {"key", "", "wants a password"},
		"PKCS #8": {"pkcs8", "", "cannot be read"}, "text": {"text", "", "neither a private key"}, "absent": {"absent", "", "no such file"},
	} {
		var password *keys.Secret
		if tt.password != "" {
			password = keys.NewSecret([]byte(tt.password))
		}
		err := new(KeyRing).AddFile(filepath.Join(dir, tt.file), password)
		if (err == nil) != (tt.want == "") || err != nil && (!strings.Contains(err.Error(), tt.want) || strings.Contains(err.Error(), "SECRETTEXT")) {
			t.Errorf("%s: %v, want %q", name, err, tt.want)
		}
	}
}
