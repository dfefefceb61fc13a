// SPDX-License-Identifier: Apache-2.0
// Copyright The Cloister Authors.

package layout

import (
	"fmt"
	"strings"
	"testing"
)

func validImage(reference string) Image {
	return Image{Reference: reference, Digest: "sha256:" + strings.Repeat("0a", 32), Manifest: "sha512:" + strings.Repeat("1b", 64)}
}

func TestImages(t *testing.T) {
	t.Parallel()
	c := validConfig()
	for i := range MaxImages {
		c.Images = append(c.Images, validImage(fmt.Sprintf("registry.test/a/b:%d", i)))
	}
	c.Images[0].Reference = "registry.test/a@" + c.Images[0].Manifest
	if _, err := c.Encode(); err != nil {
		t.Error(err)
	}
	if got, want := c.Images[0].Rootfs(), "/cloister/images/"+strings.Repeat("1b", 64)+"/rootfs"; got != want {
		t.Errorf("root file system at %s, want %s", got, want)
	}
}

func TestImagesRefused(t *testing.T) {
	t.Parallel()
	for name, tt := range map[string]struct {
		change func(*Image)
		want   string
	}{
		"no reference":      {func(i *Image) { i.Reference = "" }, "reference of 0 bytes"},
		"long reference":    {func(i *Image) { i.Reference = strings.Repeat("a", 1025) }, "reference of 1025 bytes"},
		"line in reference": {func(i *Image) { i.Reference = "a\nb" }, "reference"},
		"NUL in reference":  {func(i *Image) { i.Reference = "a\x00b" }, "reference"},
		"letter":            {func(i *Image) { i.Reference = "r.test/é:1" }, "reference"},
		"no digest":         {func(i *Image) { i.Digest = "" }, "digest"},
		"short digest":      {func(i *Image) { i.Digest = "sha256:00" }, "digest"},
		"algorithm":         {func(i *Image) { i.Digest = "md5:" + strings.Repeat("0", 32) }, "digest"},
		"path in digest":    {func(i *Image) { i.Manifest = "sha256:../../../../run" }, "digest"},
		"capitals":          {func(i *Image) { i.Manifest = "sha256:" + strings.Repeat("0A", 32) }, "digest"},
		"another digest":    {func(i *Image) { i.Reference = "r.test/a@sha256:" + strings.Repeat("11", 32) }, "another digest"},
	} {
		c := validConfig()
		c.Images = []Image{validImage("registry.test/a:1")}
		tt.change(&c.Images[0])
		if err := c.Validate(); err == nil || !strings.Contains(err.Error(), tt.want) {
			t.Errorf("%s: %v, want %q", name, err, tt.want)
		}
	}
	c := validConfig()
	c.Images = []Image{validImage("r.test/a:1"), validImage("r.test/a:1")}
	if err := c.Validate(); err == nil || !strings.Contains(err.Error(), "twice") {
		t.Errorf("twice: %v", err)
	}
	for i := range MaxImages + 1 {
		c.Images = append(c.Images, validImage(fmt.Sprintf("r.test/x:%d", i)))
	}
	if err := c.Validate(); err == nil || !strings.Contains(err.Error(), "at most 64") {
		t.Errorf("many: %v", err)
	}
}
