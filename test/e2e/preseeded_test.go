// SPDX-License-Identifier: Apache-2.0
// Copyright The Cloister Authors.

package e2e

import (
	"bytes"
	"strings"
	"testing"

	"github.com/cloister-cc/cloister/ctl"
	"github.com/cloister-cc/cloister/guestimage"
	"github.com/cloister-cc/cloister/guestimage/imagecrypt"
	"github.com/cloister-cc/cloister/internal/qemu"
	"github.com/cloister-cc/cloister/test/story"
)

// A guest without a network device, a registry's certificate or an image policy starts containers of the image in its root
// disk, by tag and by digest, each with what it writes to itself. Another tag of the same repository is not that image.
func TestPreseeded(t *testing.T) {
	t.Parallel()
	w := need(t)
	ref, err := w.PushImage(t.Context(), w.Registry, story.Image{
		Name: "preseeded", Files: map[string]string{"etc/secret": secret + "\n"}, KeyURI: imageURI, KeyFile: w.imageKey,
	})
	must(t, err)
	access, err := imagecrypt.ReadAccess(w.Registry.PKI.CA, w.Registry.Auth)
	must(t, err)
	here := strings.Replace(ref, w.Registry.Host(story.GuestHost), w.Registry.Host(story.LoopbackHost), 1)
	baked, err := guestimage.ParseImage(ref + "=docker://" + here)
	must(t, err)
	dir, err := w.BuildGuest(t.Context(), "preseeded", func(o *guestimage.Options) {
		w.withImageKey(o)
		o.Images, o.ImageAccess = []guestimage.Image{baked}, access
		o.RegistryCA, o.RegistryAuth = "", ""
	})
	must(t, err)
	g, err := guestimage.Load(dir)
	must(t, err)
	if len(g.Images) != 1 || g.Images[0].Reference != ref {
		t.Fatalf("guest.json lists the images %+v", g.Images)
	}
	vm := w.boot(t, dir, func(c *qemu.Config) { c.Network = false })
	_, s := connect(t, vm)
	must(t, s.CreateSandbox(t.Context(), "pod", "preseeded", nil))
	must(t, s.CreateContainer(t.Context(), ctl.Container{ID: "pod", Pause: true}))
	must(t, s.StartContainer(t.Context(), "pod"))
	name := strings.TrimSuffix(ref, ":1")
	for id, ref := range map[string]string{"tag": ref, "digest": name + "@" + g.Images[0].Digest} {
		must(t, s.CreateContainer(t.Context(), container(id, ref, "/bin/sh", "-c", "cat /etc/secret; ls /root; touch /root/mine && busybox echo done")))
		must(t, s.StartContainer(t.Context(), id))
		var stdout, stderr bytes.Buffer
		must(t, s.Attach(t.Context(), id, "", &stdout, &stderr))
		code, err := s.Wait(t.Context(), id, "")
		if err != nil || code != 0 || stdout.String() != secret+"\ndone\n" {
			t.Errorf("%s: status %d, %v, stdout %q, stderr %q", ref, code, err, stdout.String(), stderr.String())
		}
		must(t, s.RemoveContainer(t.Context(), id))
	}
	if err := s.CreateContainer(t.Context(), container("other", name+":2", "/bin/true")); err == nil || !strings.Contains(err.Error(), name+":2") {
		t.Errorf("another tag: %v", err)
	}
	if n := strings.Count(vm.Console(), "image of the root disk is used"); n != 2 {
		t.Errorf("the console says %d times that the image of the root disk is used, want 2", n)
	}
}
