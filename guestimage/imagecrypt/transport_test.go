// SPDX-License-Identifier: Apache-2.0
// Copyright The Cloister Authors.

package imagecrypt

import (
	"bytes"
	"context"
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

// manyLayers makes an image with n different layers.
func manyLayers(t *testing.T, n int) string {
	t.Helper()
	out, err := stageLayout(t.TempDir())
	check(t, err)
	m := ocispec.Manifest{Versioned: specs.Versioned{SchemaVersion: 2}, MediaType: ocispec.MediaTypeImageManifest}
	config := ocispec.Image{Platform: ocispec.Platform{OS: "linux", Architecture: "s390x"}, RootFS: ocispec.RootFS{Type: "layers"}}
	for i := range n {
		desc, err := out.write(ocispec.MediaTypeImageLayer, bytes.NewReader(tarOf("file", strings.Repeat("PLAINTEXT", 10_000+i))))
		check(t, err)
		desc.Annotations = map[string]string{"number": strings.Repeat("i", i)}
		m.Layers = append(m.Layers, desc)
		config.RootFS.DiffIDs = append(config.RootFS.DiffIDs, desc.Digest)
	}
	m.Config, err = out.writeJSON(ocispec.MediaTypeImageConfig, config)
	check(t, err)
	desc, err := out.writeJSON(ocispec.MediaTypeImageManifest, m)
	check(t, err)
	check(t, out.finish(desc, ""))
	return out.dir
}

// Many layers at a time come out in their order, with their own annotations; those not chosen stay plain, and a second
// run leaves the encrypted ones alone.
func TestManyLayers(t *testing.T) {
	all := parties(t)
	src := manyLayers(t, 24)
	some, rest, back := filepath.Join(t.TempDir(), "1"), filepath.Join(t.TempDir(), "2"), filepath.Join(t.TempDir(), "3")
	o := between(src, some)
	o.Layers, o.Workers = []int{0, 5, -1}, 8
	r, err := Encrypt(t.Context(), o, []Recipient{all["packet"].recipient, all["pkcs7"].recipient})
	check(t, err)
	if r.Changed != 3 || r.Unchanged != 21 {
		t.Errorf("chosen layers: %+v", r)
	}
	_, m := readLayers(t, some)
	for i, l := range m.Layers {
		if want := i == 0 || i == 5 || i == 23; encrypted(l) != want || len(l.Annotations["number"]) != i {
			t.Errorf("layer %d: %+v", i, l)
		}
	}
	r, err = Encrypt(t.Context(), between(some, rest), []Recipient{all["packet"].recipient})
	check(t, err)
	if r.Changed != 21 || r.Unchanged != 3 {
		t.Errorf("the others: %+v", r)
	}
	_, again := readLayers(t, rest)
	if again.Layers[5].Digest != m.Layers[5].Digest || again.Layers[5].Annotations[decrypt.KeysPrefix+PKCS7] == "" {
		t.Error("a layer that was encrypted already has changed")
	}
	for name, content := range files(t, rest) {
		if strings.Contains(content, "PLAINTEXT") {
			t.Errorf("%s holds plaintext", name)
		}
	}
	_, err = Decrypt(t.Context(), between(rest, back), all["packet"].ring(t))
	check(t, err)
	at := func(dir string) Location { return Location{Transport: OCI, Path: dir} }
	if got, want := plainOf(t, at(back)), plainOf(t, at(src)); got != want {
		t.Errorf("came back as\n%s\nwas\n%s", got, want)
	}
}

// What a context ends leaves nothing behind.
func TestCancelled(t *testing.T) {
	src, dst := manyLayers(t, 3), filepath.Join(t.TempDir(), "out", "x")
	ctx, cancel := context.WithCancel(t.Context())
	o := between(src, dst)
	o.Progress = func(_, _ int64) { cancel() }
	if _, err := Encrypt(ctx, o, demoRecipient()); !errors.Is(err, context.Canceled) {
		t.Errorf("cancelled: %v", err)
	}
	if left, err := os.ReadDir(filepath.Dir(dst)); len(left) > 0 {
		t.Errorf("left %v, %v", left, err)
	}
}
