// SPDX-License-Identifier: Apache-2.0
// Copyright The Cloister Authors.

package guestimage

import (
	"bytes"
	"context"
	"errors"
	"net"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/cloister-cc/cloister/guestimage/imagecrypt"
	"github.com/cloister-cc/cloister/guestimage/rootdisk"
	"github.com/cloister-cc/cloister/image/registry"
	"github.com/cloister-cc/cloister/image/unpack"
	"github.com/cloister-cc/cloister/initramfs"
	"github.com/cloister-cc/cloister/initramfs/layout"
	"github.com/cloister-cc/cloister/keys"
)

// imageLayout makes an image with one file of that content; uri encrypts it with the image key of inputs.
func imageLayout(tb testing.TB, arch, content, uri string) string {
	tb.Helper()
	dir := tb.TempDir()
	put(tb, filepath.Join(dir, "rootfs/etc/canary"), []byte(content))
	plain := filepath.Join(dir, "plain")
	_, err := imagecrypt.FromRootfs(context.Background(), imagecrypt.Options{Rootfs: filepath.Join(dir, "rootfs"), Arch: arch, Output: plain})
	must(tb, err)
	if uri == "" {
		return plain
	}
	out := filepath.Join(dir, "encrypted")
	key := keys.NewSecret(bytes.Repeat([]byte{0xa5}, imageKeySize))
	_, err = imagecrypt.Encrypt(context.Background(), imagecrypt.CopyOptions{
		Source:      imagecrypt.Location{Transport: imagecrypt.OCI, Path: plain},
		Destination: imagecrypt.Location{Transport: imagecrypt.OCI, Path: out},
	}, []imagecrypt.Recipient{{KeyURI: uri, Key: key}})
	must(tb, err)
	return out
}

func parseImages(tb testing.TB, args ...string) []Image {
	tb.Helper()
	var images []Image
	for _, a := range args {
		i, err := ParseImage(a)
		must(tb, err)
		images = append(images, i)
	}
	return images
}

func TestParseImage(t *testing.T) {
	t.Parallel()
	for s, want := range map[string]string{
		"docker.io/library/busybox":        "docker.io/library/busybox:latest docker://docker.io/library/busybox:latest",
		"r.test:5000/a/b:1":                "r.test:5000/a/b:1 docker://r.test:5000/a/b:1",
		"r.test/a:1=oci:some/dir:tag":      "r.test/a:1 oci:some/dir:tag",
		"r.test/a:1=oci-archive:a=b.tar":   "r.test/a:1 oci-archive:a=b.tar",
		"r.test/a:1=docker://other/x:2":    "r.test/a:1 docker://other/x:2",
		"busybox":                          "",
		"":                                 "",
		"r.test/a:1=":                      "",
		"r.test/a:1=/some/dir":             "",
		"oci:dir":                          "",
		"r.test/a@sha256:12":               "",
		"docker://docker.io/library/x:1":   "",
		strings.Repeat("r.test/a", 1000):   "",
		"r.test/UPPER:1":                   "",
		"r.test/a:1=docker-archive:x.tar:": "",
	} {
		i, err := ParseImage(s)
		if got := i.Reference.String() + " " + i.location().String(); (err != nil) != (want == "") || err == nil && got != want {
			t.Errorf("%.60q: %q, %v; want %q", s, got, err, want)
		}
	}
}

// Images are in the boot config, in guest.json and on the disk; two names of one image are one root file system.
func TestBuildWithImages(t *testing.T) {
	t.Parallel()
	o := inputs(t)
	uri := "kbs:///default/image-key/demo"
	a, b := imageLayout(t, o.Arch, "content of a", ""), imageLayout(t, o.Arch, "content of b", uri)
	o.Images = parseImages(t, "r.test/z:1=oci:"+a, "r.test/b:1=oci:"+b, "r.test/a:1=oci:"+a)
	var asked, steps []string
	o.Progress = func(s Step) { steps = append(steps, s.Name) }
	var trees []string
	builder := testBuilder(o)
	builder.verify = func(_ context.Context, ref registry.Reference, img *imagecrypt.Image) error {
		asked = append(asked, ref.String()+" "+img.Digest.String())
		return nil
	}
	builder.writeDisk = func(ctx context.Context, o rootdisk.Options) (*rootdisk.Result, error) {
		for path, tree := range o.Images {
			trees = append(trees, path)
			if tree.Size() != int64(len("content of a")) {
				t.Errorf("%s has %d bytes", path, tree.Size())
			}
		}
		return rootdisk.Write(ctx, o)
	}
	res := builder.mustBuild(t)
	checkFolder(t, o.Output, res.Guest)
	cfg, err := layout.ParseBootConfig(bytes.NewReader(filesOf(t, res.Initramfs)[layout.BootConfigPath]))
	must(t, err)
	if diff := cmp.Diff(cfg.Images, res.Guest.Images); diff != "" {
		t.Error(diff)
	}
	var names []string
	for _, i := range cfg.Images {
		names = append(names, i.Reference)
		if !slices.Contains(trees, i.Rootfs()) {
			t.Errorf("%s is to lie in %s, the disk has %v", i.Reference, i.Rootfs(), trees)
		}
		if !slices.Contains(asked, i.Reference+" "+i.Digest) {
			t.Errorf("nobody was asked about %s and %s but about %q", i.Reference, i.Digest, asked)
		}
		if !slices.Contains(steps, "image "+i.Reference) {
			t.Errorf("no step for %s in %q", i.Reference, steps)
		}
	}
	if want := []string{"r.test/a:1", "r.test/b:1", "r.test/z:1"}; !slices.Equal(names, want) || len(trees) != 2 || len(asked) != 3 {
		t.Errorf("images %q in %d folders, asked %d times", names, len(trees), len(asked))
	}
	slices.Reverse(o.Images)
	o.Progress, o.Output = nil, filepath.Join(t.TempDir(), "again")
	if diff := cmp.Diff(res.Guest, testBuilder(o).mustBuild(t).Guest); diff != "" {
		t.Errorf("the same images in another order made another guest: %s", diff)
	}
}

// TestImagesStayInside: what an encrypted image holds must not show outside the encrypted disk.
func TestImagesStayInside(t *testing.T) {
	t.Parallel()
	o := inputs(t)
	const canary = "the canary of an encrypted image"
	o.Images = parseImages(t, "r.test/a:1=oci:"+imageLayout(t, o.Arch, canary, "kbs:///default/image-key/demo"))
	res := testBuilder(o).mustBuild(t)
	for _, file := range []string{res.Disk, res.Manifest, res.Initramfs} {
		data, err := os.ReadFile(file)
		must(t, err)
		if bytes.Contains(data, []byte(canary)) {
			t.Errorf("%s holds the image's content in the clear", file)
		}
	}
}

func TestBadImages(t *testing.T) {
	t.Parallel()
	o := inputs(t)
	good := imageLayout(t, o.Arch, strings.Repeat("x", 10_000), "")
	changed := imageLayout(t, o.Arch, strings.Repeat("x", 10_000), "")
	blobs, err := filepath.Glob(filepath.Join(changed, "blobs/sha256/*"))
	must(t, err)
	for _, blob := range blobs { // the layer is the one that is no JSON
		data, err := os.ReadFile(blob)
		must(t, err)
		if data[0] != '{' {
			data[len(data)/2] ^= 1
			must(t, os.WriteFile(blob, data, 0o600))
		}
	}
	l, err := net.Listen("tcp", "127.0.0.1:0")
	must(t, err)
	nobody := l.Addr().String()
	must(t, l.Close())
	for name, tt := range map[string]struct {
		images []string
		change func(*builder)
		want   string
		hint   bool
	}{
		"changed":      {images: []string{"r.test/a:1=oci:" + changed}, want: "does not match its digest"},
		"architecture": {images: []string{"r.test/a:1=oci:" + imageLayout(t, "amd64", "x", "")}, want: "not for linux/s390x"},
		"no key": {
			images: []string{"r.test/a:1=oci:" + imageLayout(t, o.Arch, "x", "kbs:///default/image-key/other")},
			want:   "needs the key kbs:///default/image-key/other", hint: true,
		},
		"too large": {images: []string{"r.test/a:1=oci:" + good}, change: func(b *builder) { b.layerLimits = unpack.Limits{Size: 5000} }, want: "exceeds a limit"},
		"refused": {
			images: []string{"r.test/a:1=oci:" + good},
			change: func(b *builder) {
				b.verify = func(context.Context, registry.Reference, *imagecrypt.Image) error { return errors.New("not signed") }
			},
			want: "is refused: not signed",
		},
		"another digest": {images: []string{"r.test/a@sha256:" + strings.Repeat("0", 64) + "=oci:" + good}, want: "which is another image"},
		"twice":          {images: []string{"r.test/a:1=oci:" + good, "r.test/a:1"}, want: "given twice"},
		"no layout":      {images: []string{"r.test/a:1=oci:" + t.TempDir()}, want: "no such file"},
		"no registry":    {images: []string{nobody + "/a:1"}, want: "no registry listens"},
		"no image":       {change: func(b *builder) { b.o.Images = make([]Image, 1) }, want: "names no image"},
		"many":           {change: func(b *builder) { b.o.Images = make([]Image, layout.MaxImages+1) }, want: "at most 64"},
		"in the way": {
			images: []string{"r.test/a:1=oci:" + good},
			change: func(b *builder) {
				b.o.Rootfs = t.TempDir()
				must(t, os.Symlink("etc", filepath.Join(b.o.Rootfs, "cloister")))
			},
			want: "cloister is not a directory",
		},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			b := testBuilder(o)
			b.o.Output = filepath.Join(t.TempDir(), "guest")
			b.o.Images = parseImages(t, tt.images...)
			if tt.change != nil {
				tt.change(b)
			}
			_, err := b.build(t.Context())
			if err == nil || !strings.Contains(err.Error(), tt.want) {
				t.Fatalf("error %v, want %q", err, tt.want)
			}
			var input *InputError
			if ok := errors.As(err, &input); name != "in the way" && (!ok || input.Input != "image") || tt.hint && input.Hint() == "" {
				t.Errorf("error %v is not about the image, or has no hint", err)
			}
			if left, err := os.ReadDir(filepath.Dir(b.o.Output)); err != nil || len(left) != 0 {
				t.Errorf("left behind: %v, error %v", left, err)
			}
		})
	}
}

// Whoever built a guest without a registry is told so in other words when it has images.
func TestImageWarnings(t *testing.T) {
	t.Parallel()
	got := warnings(&Options{Arch: initramfs.ArchS390x, Images: make([]Image, 1)}, &imageSettings{})
	if len(got) != 3 || !strings.Contains(got[1], "those of its root disk") {
		t.Errorf("warnings %q", got)
	}
}
