// SPDX-License-Identifier: Apache-2.0
// Copyright The Cloister Authors.

package decrypt

import (
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/base64"
	"encoding/hex"
	"encoding/json"
	"errors"
	"io"
	"os"
	"strings"
	"testing"
	"testing/iotest"
)

// vector is a layer that another implementation has encrypted, see its comment.
type vector struct {
	KeyURI      string `json:"key_uri"`
	KeyHex      string `json:"key_hex"`
	PlainSHA256 string `json:"plain_sha256"`
	PlainSize   int    `json:"plain_size"`
	Layer       []byte `json:"layer"`
	PubOpts     string `json:"pubopts"`
	PacketV1    string `json:"packet_v1"`
	PacketV2    string `json:"packet_v2"`
	PacketCTR   string `json:"packet_ctr"`
}

func readVector(t testing.TB) vector {
	t.Helper()
	data, err := os.ReadFile("testdata/vector.json")
	if err != nil {
		t.Fatal(err)
	}
	var v vector
	if err := json.Unmarshal(data, &v); err != nil {
		t.Fatal(err)
	}
	return v
}

func (v vector) key(t testing.TB) []byte {
	t.Helper()
	key, err := hex.DecodeString(v.KeyHex)
	if err != nil {
		t.Fatal(err)
	}
	return key
}

// only has one key.
func only(uri string, key []byte) KeyFunc {
	return func(_ context.Context, asked string) ([]byte, error) {
		if asked != uri {
			return nil, ErrNoKey
		}
		return bytes.Clone(key), nil
	}
}

func (v vector) annotations(packets ...string) map[string]string {
	return map[string]string{KeysAnnotation: strings.Join(packets, ","), PublicAnnotation: v.PubOpts}
}

func b64(s string) string { return base64.StdEncoding.EncodeToString([]byte(s)) }

// change replaces text inside a base64 value.
func change(t testing.TB, value, from, to string) string {
	t.Helper()
	data, err := base64.StdEncoding.DecodeString(value)
	if err != nil {
		t.Fatal(err)
	}
	if !bytes.Contains(data, []byte(from)) {
		t.Fatalf("%s is not in %s", from, data)
	}
	return base64.StdEncoding.EncodeToString(bytes.Replace(data, []byte(from), []byte(to), 1))
}

func TestKnownAnswers(t *testing.T) {
	v := readVector(t)
	foreign := change(t, v.PacketV1, v.KeyURI, "kbs:///default/other/1")
	for name, annotation := range map[string]string{
		"version 1": v.PacketV1, "version 2": v.PacketV2, "A256CTR": v.PacketCTR, "second recipient": foreign + "," + v.PacketV2,
	} {
		t.Run(name, func(t *testing.T) {
			key, err := Unwrap(t.Context(), v.annotations(annotation), only(v.KeyURI, v.key(t)))
			if err != nil {
				t.Fatal(err)
			}
			r, err := key.Reader(iotest.HalfReader(bytes.NewReader(v.Layer)))
			if err != nil {
				t.Fatal(err)
			}
			key.Wipe()
			plain, err := io.ReadAll(r)
			if err != nil {
				t.Fatal(err)
			}
			if sum := sha256.Sum256(plain); len(plain) != v.PlainSize || hex.EncodeToString(sum[:]) != v.PlainSHA256 {
				t.Errorf("%d bytes with digest %x, want %d with %s", len(plain), sum, v.PlainSize, v.PlainSHA256)
			}
		})
	}
}

// readmePacket is the one packet that Confidential Containers' documentation prints in full (coco_keyprovider's README).
const readmePacket = "eyJraWQiOiJrYnM6Ly8vZGVmYXVsdC9rZXkva2V5X2lkMSIsIndyYXBwZWRfZGF0YSI6IjNFZ1FidzZDUlY0YmlrMnNLM3RrTUpweWNWV0RVZXVIY1luZ1drZFd1K0swQXpDUGY3dFlCQ1oxSGxXaWFsZmdFdEQxdDBuc3N2YS81aElFbUxPbXZjYXJ2SGlNdERyRElhY1JIdElOTHFyUUpCZUY1M2Q4MTN1L0dDK3prL3RHeEF3ZVd6ZTR1S0VROG1qc2hyMytiYll3RUhKdVFyM3VncWlXRTlnNUhndU1HVmVFZ2ZReWR2dS9TZmVYMmZSeTRQWmtGcjhWbkQ3WjRrNUhXVkhaTWY0U21oSUhhUnlVa1NoT3B4dVdQcG54OW9IaGJSMEdKd2Zwb3l4TzRydEpYaTI4ODVxZ1Uya0dVaFo2RTJTbmgrQT0iLCJpdiI6IjRlekxiZU1RZEVrWS9pdUYiLCJ3cmFwX3R5cGUiOiJBMjU2R0NNIn0="

// readmePubOpts are the options beside it.
const readmePubOpts = "eyJjaXBoZXIiOiJBRVNfMjU2X0NUUl9ITUFDX1NIQTI1NiIsImhtYWMiOiJQM08rQ1lhRGNSNkJteEpvdWlFV0lYM05XN1l2Nk5UcEp5dmhlNlBmbFA4PSIsImNpcGhlcm9wdGlvbnMiOnt9fQ=="

func TestPublishedPacketParses(t *testing.T) {
	packets, err := parsePackets(KeysAnnotation, readmePacket)
	if err != nil || len(packets) != 1 || packets[0].KeyURI != "kbs:///default/key/key_id1" || packets[0].WrapType != WrapGCM {
		t.Errorf("%+v, %v", packets, err)
	}
	if _, err := parsePublic(readmePubOpts); err != nil {
		t.Error(err)
	}
}

func TestUnwrapErrors(t *testing.T) {
	v := readVector(t)
	wrong := make([]byte, 32)
	for _, tt := range []struct {
		name        string
		annotations map[string]string
		keys        KeyFunc
		is          error
		want        string
	}{
		{"key missing", v.annotations(v.PacketV1), only("kbs:///other/key/1", wrong), ErrNoKey, "no key kbs:///default/test-key/1 in this guest"},
		{"key empty", v.annotations(v.PacketV1), only(v.KeyURI, nil), ErrNoKey, "no key kbs:///default/test-key/1 in this guest"},
		{"key wrong", v.annotations(v.PacketV1), only(v.KeyURI, wrong), ErrWrongKey, "is not the one that the layer was encrypted with"},
		{"key short", v.annotations(v.PacketV1), only(v.KeyURI, wrong[:16]), ErrWrongKey, "has 16 bytes"},
		{"provider fails", v.annotations(v.PacketV1), func(context.Context, string) ([]byte, error) { return nil, io.ErrNoProgress }, io.ErrNoProgress, "get key kbs:///default/test-key/1"},
		{"tag changed", v.annotations(change(t, v.PacketV1, `"iv":"AAAA`, `"iv":"AAAB`)), only(v.KeyURI, v.key(t)), ErrWrongKey, ""},
		{"missing and wrong", v.annotations(change(t, v.PacketV1, v.KeyURI, "kbs:///a/b/c"), v.PacketV2), only(v.KeyURI, wrong), ErrWrongKey, "no key kbs:///a/b/c in this guest\nkey kbs:///default/test-key/1"},
		{"no key function", v.annotations(v.PacketV1), nil, ErrNoKey, "no key kbs:///default/test-key/1 in this guest"},
		{"pkcs11", map[string]string{KeysPrefix + "pkcs11": "x", PublicAnnotation: v.PubOpts}, only("", nil), nil, "pkcs11 token, which is not supported in this build"},
		{"other protocol", map[string]string{KeysPrefix + "rot13": "x", PublicAnnotation: v.PubOpts}, only("", nil), nil, `encrypted for "rot13", which is not supported`},
		{"other provider", map[string]string{KeysPrefix + "provider.x": "x"}, only("", nil), nil, `"provider.x"`},
		{"key of a KMS", v.annotations(change(t, v.PacketV2, `"provider":"kbs"`, `"provider":"aliyun"`)), only("", nil), nil, `"aliyun", which is not supported`},
		{"no keys", map[string]string{PublicAnnotation: v.PubOpts}, only("", nil), nil, "no annotation"},
		{"no options", map[string]string{KeysAnnotation: v.PacketV1}, only("", nil), nil, "no annotation"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			key, err := Unwrap(t.Context(), tt.annotations, tt.keys)
			if err == nil || key != nil || !strings.Contains(err.Error(), tt.want) || tt.is != nil && !errors.Is(err, tt.is) {
				t.Fatalf("Unwrap: %v, want %q (%v)", err, tt.want, tt.is)
			}
			if errors.Is(err, ErrNoKey) && errors.Is(err, ErrWrongKey) {
				t.Error("a key is both missing and wrong")
			}
		})
	}
}

func TestKeyURIs(t *testing.T) {
	v := readVector(t)
	foreign := change(t, v.PacketV2, `"provider":"kbs"`, `"provider":"aliyun"`)
	for _, tt := range []struct {
		packets []string
		want    int
		fails   bool
	}{
		{nil, 0, true},
		{[]string{v.PacketV1, v.PacketV2}, 2, false},
		{[]string{foreign, v.PacketCTR}, 1, false},
		{[]string{foreign}, 0, true},
		{[]string{v.PacketV1, "x"}, 0, true},
	} {
		uris, err := KeyURIs(v.annotations(tt.packets...))
		if len(uris) != tt.want || (err != nil) != tt.fails || tt.want > 0 && uris[0] != v.KeyURI {
			t.Errorf("%d packets: %v, %v", len(tt.packets), uris, err)
		}
	}
	if uris, err := KeyURIs(nil); uris != nil || err != nil {
		t.Errorf("no annotation: %v, %v", uris, err)
	}
}

func TestKeysAreWiped(t *testing.T) {
	v := readVector(t)
	given := v.key(t)
	key, err := Unwrap(t.Context(), v.annotations(v.PacketV1), func(context.Context, string) ([]byte, error) { return given, nil })
	if err != nil {
		t.Fatal(err)
	}
	symkey := key.options.Private.SymmetricKey
	key.Wipe()
	for name, b := range map[string][]byte{"wrapping": given, "layer": symkey} {
		if len(b) != 32 || !bytes.Equal(b, make([]byte, 32)) {
			t.Errorf("the %s key is %x after use", name, b)
		}
	}
}

func TestMalformedAnnotations(t *testing.T) {
	v := readVector(t)
	keys := only(v.KeyURI, v.key(t))
	packet := func(from, to string) map[string]string { return v.annotations(change(t, v.PacketV1, from, to)) }
	options := func(from, to string) map[string]string {
		return map[string]string{KeysAnnotation: v.PacketV1, PublicAnnotation: change(t, v.PubOpts, from, to)}
	}
	for name, annotations := range map[string]map[string]string{
		"empty":                    v.annotations(""),
		"empty second packet":      v.annotations(v.PacketV1, ""),
		"no base64":                v.annotations("{}"),
		"line end in base64":       v.annotations(v.PacketV1[:8] + "\n" + v.PacketV1[8:]),
		"URL base64":               v.annotations(strings.ReplaceAll(v.PacketV1, "e", "_")),
		"no JSON":                  v.annotations(b64("x")),
		"data after JSON":          packet("}", "}{}"),
		"unknown field":            packet(`"kid"`, `"x":1,"kid"`),
		"version":                  packet(`"kid"`, `"version":"0.2.0","kid"`),
		"provider":                 packet(`"kid"`, `"provider":"aliyun","kid"`),
		"wrap type":                packet("A256GCM", "A128GCM"),
		"no wrap type":             packet("A256GCM", ""),
		"short iv":                 packet(`"iv":"AAAA`, `"iv":"`),
		"long iv":                  packet(`"iv":"`, `"iv":"AAAA`),
		"kid of another scheme":    packet("kbs:///", "file:///"),
		"kid with host":            packet("kbs:///", "kbs://h/"),
		"kid with a line":          packet("test-key", `test\n`),
		"kid too long":             packet("test-key", strings.Repeat("x", maxKeyURI)),
		"wrapped too short":        v.annotations(b64(`{"kid":"kbs:///a/b/c","wrapped_data":"AAAA","iv":"AAAAAAAAAAAAAAAA","wrap_type":"A256GCM"}`)),
		"too many packets":         v.annotations(strings.TrimSuffix(strings.Repeat(v.PacketV1+",", maxPackets+1), ",")),
		"too large":                v.annotations(strings.Repeat("A", maxAnnotation+4)),
		"options: cipher":          options("AES_256_CTR_HMAC_SHA256", "NONE"),
		"options: no cipher":       options("AES_256_CTR_HMAC_SHA256", ""),
		"options: public nonce":    options(`"cipheroptions":{}`, `"cipheroptions":{"nonce":"EBESExQVFhcYGRobHB0eHw=="}`),
		"options: short nonce":     options(`"cipheroptions":{}`, `"cipheroptions":{"nonce":"AA=="}`),
		"options: no HMAC":         options(`"hmac":"`, `"x":"`),
		"options: unknown field":   options(`"hmac"`, `"x":1,"hmac"`),
		"options: data after JSON": options("}}", "}}1"),
	} {
		t.Run(name, func(t *testing.T) {
			if _, err := Unwrap(t.Context(), annotations, keys); err == nil {
				t.Error("Unwrap succeeded")
			}
		})
	}
}

func TestChangedLayers(t *testing.T) {
	v := readVector(t)
	broken := errors.New("broken network")
	flip := func(i int) []byte {
		b := bytes.Clone(v.Layer)
		b[i] ^= 0x40
		return b
	}
	for _, tt := range []struct {
		name  string
		layer io.Reader
		want  error
	}{
		{"first bit", bytes.NewReader(flip(0)), ErrUnauthentic},
		{"last bit", bytes.NewReader(flip(len(v.Layer) - 1)), ErrUnauthentic},
		{"middle", iotest.OneByteReader(bytes.NewReader(flip(len(v.Layer) / 2))), ErrUnauthentic},
		{"truncated", bytes.NewReader(v.Layer[:len(v.Layer)-1]), ErrUnauthentic},
		{"longer", io.MultiReader(bytes.NewReader(v.Layer), strings.NewReader("x")), ErrUnauthentic},
		{"empty", strings.NewReader(""), ErrUnauthentic},
		{"source fails", io.MultiReader(bytes.NewReader(v.Layer[:5000]), iotest.ErrReader(broken)), broken},
		{"source fails at the end", io.MultiReader(bytes.NewReader(v.Layer), iotest.ErrReader(broken)), broken},
	} {
		t.Run(tt.name, func(t *testing.T) {
			key, err := Unwrap(t.Context(), v.annotations(v.PacketV1), only(v.KeyURI, v.key(t)))
			if err != nil {
				t.Fatal(err)
			}
			r, err := key.Reader(tt.layer)
			if err != nil {
				t.Fatal(err)
			}
			if _, err := io.Copy(io.Discard, r); !errors.Is(err, tt.want) {
				t.Errorf("reading: %v, want %v", err, tt.want)
			}
			if _, err := r.Read(make([]byte, 16)); err == nil || errors.Is(err, io.EOF) {
				t.Errorf("reading on: %v", err)
			}
		})
	}
}

func TestPlainMediaType(t *testing.T) {
	for in, want := range map[string]string{
		"application/vnd.oci.image.layer.v1.tar+gzip+encrypted": "application/vnd.oci.image.layer.v1.tar+gzip",
		"application/vnd.oci.image.layer.v1.tar+zstd":           "",
		"+encrypted": "",
	} {
		plain, encrypted := PlainMediaType(in)
		if encrypted != (in != "application/vnd.oci.image.layer.v1.tar+zstd") || encrypted && plain != want {
			t.Errorf("PlainMediaType(%q) = %q, %v", in, plain, encrypted)
		}
	}
}

func FuzzUnwrap(f *testing.F) {
	v := readVector(f)
	f.Add(v.PacketV1, v.PubOpts)
	f.Add(v.PacketV2, v.PubOpts)
	f.Add(v.PacketCTR+","+readmePacket, readmePubOpts)
	key := v.key(f)
	f.Fuzz(func(t *testing.T, packets, public string) {
		k, err := Unwrap(t.Context(), map[string]string{KeysAnnotation: packets, PublicAnnotation: public},
			func(_ context.Context, uri string) ([]byte, error) {
				if checkKeyURI(uri) != nil {
					t.Fatalf("asked for key %q", uri)
				}
				return bytes.Clone(key), nil
			})
		if err != nil {
			return
		}
		r, err := k.Reader(strings.NewReader("not what was encrypted"))
		if err != nil {
			t.Fatal(err)
		}
		if _, err := io.Copy(io.Discard, r); err == nil {
			t.Fatal("a forged layer was accepted")
		}
	})
}
