// SPDX-License-Identifier: Apache-2.0
// Copyright The Cloister Authors.

package imagecrypt

import (
	"bytes"
	"context"
	"crypto/aes"
	"crypto/cipher"
	"encoding/json"
	"errors"
	"io"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/containers/ocicrypt"
	"github.com/containers/ocicrypt/config"
	"github.com/containers/ocicrypt/keywrap"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/cloister-cc/cloister/image/decrypt"
	"github.com/cloister-cc/cloister/image/unpack"
	"github.com/cloister-cc/cloister/keys"
)

const keyURI = "kbs:///default/image-key/demo"

func demoKey() *keys.Secret { return keys.NewSecret(bytes.Repeat([]byte{0x5a}, KeySize)) }

// rootfs makes a root file system with a bit of everything.
func rootfs(t *testing.T) string {
	t.Helper()
	dir := t.TempDir()
	for name, content := range map[string]string{
		"bin/busybox": strings.Repeat("#!binary\x00", 20_000), "etc/passwd": "root:x:0:0::/:/bin/sh\n", "empty": "",
	} {
		p := filepath.Join(dir, name)
		if err := os.MkdirAll(filepath.Dir(p), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(p, []byte(content), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	for _, err := range []error{
		os.Chmod(filepath.Join(dir, "bin/busybox"), 0o755|os.ModeSetuid),
		os.Symlink("busybox", filepath.Join(dir, "bin/sh")),
		os.Link(filepath.Join(dir, "bin/busybox"), filepath.Join(dir, "bin/ls")),
		os.Mkdir(filepath.Join(dir, "tmp"), 0o755),
		os.Chmod(filepath.Join(dir, "tmp"), 0o777|os.ModeSticky),
	} {
		if err != nil {
			t.Fatal(err)
		}
	}
	return dir
}

func create(t *testing.T, o Options) (string, ocispec.Descriptor) {
	t.Helper()
	o.Output = filepath.Join(t.TempDir(), "layout")
	if o.Arch == "" {
		o.Arch = "s390x"
	}
	desc, err := FromRootfs(t.Context(), o)
	if err != nil {
		t.Fatal(err)
	}
	return o.Output, desc
}

// files reads every file of a layout.
func files(t *testing.T, dir string) map[string]string {
	t.Helper()
	out := make(map[string]string)
	err := filepath.WalkDir(dir, func(path string, d os.DirEntry, err error) error {
		if err != nil || d.IsDir() {
			return err
		}
		data, err := os.ReadFile(path)
		out[strings.TrimPrefix(path, dir)] = string(data)
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	return out
}

func TestCreateIsReproducible(t *testing.T) {
	root := rootfs(t)
	for _, compression := range []string{"", Gzip, Zstd, None} {
		o := Options{Rootfs: root, Compression: compression, Config: ocispec.ImageConfig{Entrypoint: []string{"/bin/sh"}}}
		first, desc := create(t, o)
		later := time.Now().Add(time.Hour)
		if err := os.Chtimes(filepath.Join(root, "etc/passwd"), later, later); err != nil {
			t.Fatal(err)
		}
		second, again := create(t, o)
		if desc.Digest != again.Digest {
			t.Errorf("%q: two images of the same files: %s and %s", compression, desc.Digest, again.Digest)
		}
		a, b := files(t, first), files(t, second)
		if len(a) != 5 || len(b) != 5 {
			t.Errorf("%q: %d and %d files, want 5", compression, len(a), len(b))
		}
		for name := range a {
			if a[name] != b[name] {
				t.Errorf("%q: %s differs", compression, name)
			}
		}
	}
}

func TestCreateFromTar(t *testing.T) {
	root := rootfs(t)
	var buf bytes.Buffer
	if err := writeTar(t.Context(), &buf, root); err != nil {
		t.Fatal(err)
	}
	name := filepath.Join(t.TempDir(), "rootfs.tar")
	if err := os.WriteFile(name, buf.Bytes(), 0o644); err != nil {
		t.Fatal(err)
	}
	_, fromTar := create(t, Options{Rootfs: name})
	_, fromDir := create(t, Options{Rootfs: root})
	if fromTar.Digest != fromDir.Digest {
		t.Errorf("from a tar %s, from a folder %s", fromTar.Digest, fromDir.Digest)
	}
}

func TestCreateRefuses(t *testing.T) {
	root := rootfs(t)
	text := filepath.Join(root, "etc/passwd")
	for name, o := range map[string]Options{
		"no architecture": {Rootfs: root}, "compression": {Rootfs: root, Arch: "s390x", Compression: "xz"},
		"no root file system": {Rootfs: filepath.Join(root, "absent"), Arch: "s390x"}, "not a tar": {Rootfs: text, Arch: "s390x"},
	} {
		o.Output = filepath.Join(t.TempDir(), "layout")
		if desc, err := FromRootfs(t.Context(), o); err == nil {
			t.Errorf("%s: made %s", name, desc.Digest)
		}
	}
	if _, err := FromRootfs(t.Context(), Options{Rootfs: root, Arch: "s390x", Output: root}); err == nil {
		t.Error("an image was written into a folder with files")
	}
}

// readLayers opens a layout's layers.
func readLayers(t *testing.T, dir string) (testLayout, *ocispec.Manifest) {
	t.Helper()
	s := &blobTree{tree: folder(dir), location: Location{Transport: OCI, Path: dir}}
	g, err := readGraph(t.Context(), s, nil)
	if err != nil {
		t.Fatal(err)
	}
	return testLayout{layout{dir}}, g.images[0].manifest
}

type testLayout struct{ layout }

func (l testLayout) open(desc ocispec.Descriptor) (*os.File, error) {
	return os.Open(l.path(desc.Digest))
}

// between copies from one layout to another.
func between(src, dst string) CopyOptions {
	return CopyOptions{Source: Location{Transport: OCI, Path: src}, Destination: Location{Transport: OCI, Path: dst}}
}

func demoRecipient() []Recipient { return []Recipient{{KeyURI: keyURI, Key: demoKey()}} }

func TestEncryptAndDecrypt(t *testing.T) {
	root := rootfs(t)
	for _, compression := range []string{Gzip, Zstd, None} {
		t.Run(compression, func(t *testing.T) {
			plain, _ := create(t, Options{Rootfs: root, Compression: compression})
			second := keys.NewSecret(bytes.Repeat([]byte{1}, KeySize))
			dst := filepath.Join(t.TempDir(), "encrypted")
			if _, err := Encrypt(t.Context(), between(plain, dst), append(demoRecipient(), Recipient{KeyURI: "kbs:///a/b/c", Key: second})); err != nil {
				t.Fatal(err)
			}
			_, pm := readLayers(t, plain)
			l, m := readLayers(t, dst)
			desc := m.Layers[0]
			if m.Config.Digest != pm.Config.Digest {
				t.Error("the config has changed")
			}
			if desc.MediaType != pm.Layers[0].MediaType+"+encrypted" || strings.Count(desc.Annotations[decrypt.KeysAnnotation], ",") != 1 {
				t.Errorf("layer %+v", desc)
			}
			for uri, key := range map[string]*keys.Secret{keyURI: demoKey(), "kbs:///a/b/c": second} {
				k, err := decrypt.Unwrap(t.Context(), desc.Annotations, func(_ context.Context, asked string) ([]byte, error) {
					if asked != uri {
						return nil, decrypt.ErrNoKey
					}
					return bytes.Clone(key.Bytes()), nil
				})
				if err != nil {
					t.Fatal(err)
				}
				f, err := l.open(desc)
				if err != nil {
					t.Fatal(err)
				}
				r, err := k.Reader(f)
				if err != nil {
					t.Fatal(err)
				}
				got, err := io.ReadAll(r)
				if err != nil {
					t.Fatal(err)
				}
				if pm.Layers[0].Digest.Algorithm().FromBytes(got) != pm.Layers[0].Digest {
					t.Errorf("%s: the decrypted layer is not the plain one", uri)
				}
				f.Close()
				k.Wipe()
			}
			for name, content := range files(t, dst) {
				if strings.Contains(content, "#!binary") || strings.Contains(content, "root:x:0:0") {
					t.Errorf("%s holds plaintext", name)
				}
			}
		})
	}
}

func TestEncryptRefuses(t *testing.T) {
	plain, _ := create(t, Options{Rootfs: rootfs(t)})
	good := demoRecipient()
	encrypted := filepath.Join(t.TempDir(), "encrypted")
	if _, err := Encrypt(t.Context(), between(plain, encrypted), good); err != nil {
		t.Fatal(err)
	}
	for name, tt := range map[string]struct {
		src        string
		recipients []Recipient
	}{
		"nobody":            {plain, nil},
		"no key":            {plain, []Recipient{{KeyURI: keyURI}}},
		"short key":         {plain, []Recipient{{KeyURI: keyURI, Key: keys.NewSecret(make([]byte, 16))}}},
		"no URI":            {plain, []Recipient{{KeyURI: "demo", Key: demoKey()}}},
		"encrypted already": {encrypted, good},
		"no layout":         {t.TempDir(), good},
	} {
		if _, err := Encrypt(t.Context(), between(tt.src, filepath.Join(t.TempDir(), "out")), tt.recipients); err == nil {
			t.Errorf("%s: no error", name)
		}
	}
	l, m := readLayers(t, plain)
	if err := os.WriteFile(l.path(m.Layers[0].Digest), make([]byte, m.Layers[0].Size), 0o644); err != nil {
		t.Fatal(err)
	}
	if _, err := Encrypt(t.Context(), between(plain, filepath.Join(t.TempDir(), "out")), good); err == nil {
		t.Error("a layer that does not match its digest was encrypted")
	}
}

// attestationAgent is a key wrapper for ocicrypt, the library of skopeo and nerdctl: it opens our packets with what
// a guest would use.
type attestationAgent struct{ keywrap.KeyWrapper }

func (attestationAgent) GetAnnotationID() string { return decrypt.KeysAnnotation }

func (attestationAgent) GetPrivateKeys(map[string][][]byte) [][]byte { return nil }

func (attestationAgent) NoPossibleKeys(map[string][][]byte) bool { return false }

func (attestationAgent) UnwrapKey(_ *config.DecryptConfig, annotation []byte) ([]byte, error) {
	var p packet
	if err := json.Unmarshal(annotation, &p); err != nil {
		return nil, err
	}
	if p.KeyID != keyURI || p.WrapType != "A256GCM" {
		return nil, errors.New("not for us")
	}
	return openGCM(demoKey().Bytes(), p.IV, p.Wrapped)
}

// ocicrypt's own decryption takes our layers and annotations: what we write is what its users read.
func TestOcicryptDecryptsOurLayers(t *testing.T) {
	ocicrypt.RegisterKeyWrapper("provider.attestation-agent", attestationAgent{})
	plain, _ := create(t, Options{Rootfs: rootfs(t)})
	dst := filepath.Join(t.TempDir(), "encrypted")
	if _, err := Encrypt(t.Context(), between(plain, dst), demoRecipient()); err != nil {
		t.Fatal(err)
	}
	_, pm := readLayers(t, plain)
	l, m := readLayers(t, dst)
	f, err := l.open(m.Layers[0])
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	r, _, err := ocicrypt.DecryptLayer(&config.DecryptConfig{Parameters: map[string][][]byte{"attestation-agent": {[]byte("x")}}}, f, m.Layers[0], false)
	if err != nil {
		t.Fatal(err)
	}
	got, err := io.ReadAll(r)
	if want := pm.Layers[0].Digest; err != nil || want.Algorithm().FromBytes(got) != want {
		t.Errorf("ocicrypt decrypts to something else: %v", err)
	}
}

func TestEncryptedMediaTypes(t *testing.T) {
	for in, want := range map[string]string{
		"application/vnd.oci.image.layer.v1.tar":                       "application/vnd.oci.image.layer.v1.tar+encrypted",
		"application/vnd.oci.image.layer.nondistributable.v1.tar+gzip": "application/vnd.oci.image.layer.nondistributable.v1.tar+gzip+encrypted",
		"application/vnd.docker.image.rootfs.diff.tar.gzip":            "application/vnd.oci.image.layer.v1.tar+gzip+encrypted",
		"application/vnd.docker.image.rootfs.diff.tar":                 "application/vnd.oci.image.layer.v1.tar+encrypted",
	} {
		got, err := encryptedType(in)
		if err != nil || got != want {
			t.Errorf("encryptedType(%q) = %q, %v; want %q", in, got, err, want)
			continue
		}
		plain, ok := decrypt.PlainMediaType(got)
		if _, err := unpack.FromMediaType(plain); !ok || err != nil {
			t.Errorf("a guest does not take %q: %v", got, err)
		}
	}
}

func TestReadRecipients(t *testing.T) {
	dir := t.TempDir()
	for name, size := range map[string]int{"good": 32, "short": 31, "long": 33, "empty": 0} {
		if err := os.WriteFile(filepath.Join(dir, name), bytes.Repeat([]byte{9}, size), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	rs, err := ReadRecipients(map[string]string{keyURI: filepath.Join(dir, "good")})
	if err != nil || len(rs) != 1 || rs[0].KeyURI != keyURI || !bytes.Equal(rs[0].Key.Bytes(), bytes.Repeat([]byte{9}, 32)) {
		t.Errorf("%v, %v", rs, err)
	}
	for _, key := range [][2]string{{"", "good"}, {"demo", "good"}, {keyURI, "short"}, {keyURI, "long"}, {keyURI, "empty"}, {keyURI, "absent"}} {
		if rs, err := ReadRecipients(map[string]string{key[0]: filepath.Join(dir, key[1])}); err == nil {
			t.Errorf("%q: %v", key, rs)
		}
	}
}

func openGCM(key, iv, data []byte) ([]byte, error) {
	block, err := aes.NewCipher(key)
	if err != nil {
		return nil, err
	}
	aead, err := cipher.NewGCM(block)
	if err != nil {
		return nil, err
	}
	return aead.Open(nil, iv, data, nil)
}
