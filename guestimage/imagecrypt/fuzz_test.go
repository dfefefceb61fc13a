// SPDX-License-Identifier: Apache-2.0
// Copyright The Cloister Authors.

package imagecrypt

import (
	"archive/tar"
	"bytes"
	"encoding/base64"
	"io"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/cloister-cc/cloister/image/decrypt"
)

func encode(s string) string { return base64.StdEncoding.EncodeToString([]byte(s)) }

// tarOf makes a tar; a content that starts with "->" is a symbolic link.
func tarOf(files ...string) []byte {
	var b bytes.Buffer
	w := tar.NewWriter(&b)
	for i := 0; i < len(files); i += 2 {
		h := &tar.Header{Typeflag: tar.TypeReg, Name: files[i], Size: int64(len(files[i+1])), Mode: 0o644}
		target, link := strings.CutPrefix(files[i+1], "->")
		if link {
			h.Typeflag, h.Linkname, h.Size = tar.TypeSymlink, target, 0
		}
		_ = w.WriteHeader(h)
		if !link {
			_, _ = io.WriteString(w, files[i+1])
		}
	}
	_ = w.Close()
	return b.Bytes()
}

const zeroDiff = "sha256:5f70bf18a086007016e948b04aed3b82103a36bea41755b6cddfaf10ace3c6ef"

// What a docker-archive shows as blobs are bytes of its own files.
func FuzzDockerArchive(f *testing.F) {
	list := `[{"Config":"c.json","RepoTags":["a:1"],"Layers":["l/layer.tar"]}]`
	config := `{"rootfs":{"type":"layers","diff_ids":["` + zeroDiff + `"]}}`
	f.Add(tarOf("manifest.json", list, "c.json", config, "l/layer.tar", "x"))
	f.Add(tarOf("manifest.json", list, "c.json", config, "l/layer.tar", "->../m/layer.tar", "m/layer.tar", "\x1f\x8bxx"))
	f.Add(tarOf("manifest.json", list, "c.json", config, "l/layer.tar", "->layer.tar"))
	f.Add(tarOf("manifest.json", `[]`))
	f.Add([]byte("no tar"))
	f.Fuzz(func(t *testing.T, data []byte) {
		tree, err := indexTar(bytes.NewReader(data), int64(len(data)))
		if err != nil {
			return
		}
		a, err := parseDockerArchive(tree, "")
		if err != nil {
			return
		}
		g, err := readGraph(t.Context(), a, nil)
		if err != nil {
			return
		}
		for _, l := range g.images[0].manifest.Layers {
			r, err := a.blob(t.Context(), l)
			if err != nil {
				t.Fatalf("layer %s is in the manifest and not in the archive: %v", l.Digest, err)
			}
			got, err := io.ReadAll(r)
			if err != nil || int64(len(got)) != l.Size || !bytes.Contains(data, got) {
				t.Fatalf("layer of %d bytes, its descriptor says %d: %v", len(got), l.Size, err)
			}
		}
	})
}

func TestDockerArchiveLinks(t *testing.T) {
	list := `[{"Config":"c.json","Layers":["l/layer.tar"]}]`
	config := `{"rootfs":{"type":"layers","diff_ids":["` + zeroDiff + `"]}}`
	for target, want := range map[string]string{
		"->../m/layer.tar": "", "->layer.tar": "archive has no l/layer.tar", "->/etc/passwd": "archive has no", "->../../../etc/passwd": "archive has no",
	} {
		data := tarOf("manifest.json", list, "c.json", config, "l/layer.tar", target, "m/layer.tar", "x")
		name := filepath.Join(t.TempDir(), "a.tar")
		check(t, os.WriteFile(name, data, 0o600))
		_, err := Inspect(t.Context(), Location{Transport: DockerArchive, Path: name}, Access{})
		if (err == nil) != (want == "") || err != nil && !strings.Contains(err.Error(), want) {
			t.Errorf("%s: %v, want %q", target, err, want)
		}
	}
}

// Annotations come from whoever stores the image.
func FuzzAnnotations(f *testing.F) {
	f.Add("jwe", encode(`{"protected":"e30","recipients":[{"header":{"kid":"a"}}]}`))
	f.Add("pkcs7", encode("0\x0b\x06\x09*\x86H\x86\xf7\r\x01\x07\x03"))
	f.Add("pgp", encode("\xc1\x0c\x03aaaaaaaa\x01"))
	f.Add("provider.attestation-agent", encode(`{"kid":"kbs:///a/b/c","wrapped_data":"AAAA","iv":"AAAAAAAAAAAAAAAA","wrap_type":"A256GCM"}`))
	f.Add("other", strings.Repeat(",", 20))
	ring := new(KeyRing)
	dir := f.TempDir()
	if err := os.WriteFile(filepath.Join(dir, "k"), make([]byte, 32), 0o600); err != nil {
		f.Fatal(err)
	}
	if err := ring.AddPacketKey("kbs:///a/b/c", filepath.Join(dir, "k")); err != nil {
		f.Fatal(err)
	}
	f.Fuzz(func(t *testing.T, protocol, value string) {
		annotations := map[string]string{decrypt.KeysPrefix + protocol: value, decrypt.PublicAnnotation: encode("{}")}
		if _, err := ring.unwrap(t.Context(), annotations); err == nil {
			t.Fatal("a layer without an HMAC has a key")
		}
		if n, _ := recipientsOf(annotations); len(n) > maxRecipients*maxRecipients {
			t.Fatalf("%d recipients", len(n))
		}
	})
}

func FuzzParseLocation(f *testing.F) {
	for _, s := range []string{"docker://a.example/b:c@sha256:0", "oci:a:b", "oci-archive:a", "docker-archive:a:b:c", "oci:", "a", "dir:x", "oci:a:"} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, s string) {
		l, err := ParseLocation(s)
		if err != nil {
			return
		}
		if again, err := ParseLocation(l.String()); err != nil || again != l || l.String() != s {
			t.Fatalf("%q is read as %+v, written as %q", s, l, l.String())
		}
	})
}
