// SPDX-License-Identifier: Apache-2.0
// Copyright The Cloister Authors.

package e2e

import (
	"encoding/json"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/cloister-cc/cloister/guestimage"
	"github.com/cloister-cc/cloister/internal/signtest"
	"github.com/cloister-cc/cloister/test/story"
)

// Threat: the registry offers an image that its owner has not signed, or signed as another one, or whose signature is
// somebody else's. Observable: the container is not created, and the error says why; the signed one runs. What the policy
// does not mention is refused, and a blocked registry is not asked.
func TestSignedImages(t *testing.T) {
	t.Parallel()
	w := need(t)
	owner, err := signtest.New()
	must(t, err)
	stranger, err := signtest.New()
	must(t, err)
	push := func(name string) string {
		t.Helper()
		ref, err := w.PushImage(t.Context(), w.Registry, story.Image{
			Name: name, Files: map[string]string{"etc/secret": secret + "\n"}, KeyURI: imageURI, KeyFile: w.imageKey,
		})
		must(t, err)
		return ref
	}
	signed, unsigned, foreign, swapped, other := push("signed"), push("unsigned"), push("foreign"), push("swapped"), push("out-of-scope")
	for ref, signer := range map[string]*signtest.Signer{signed: owner, other: owner, foreign: stranger} {
		must(t, w.Registry.Sign(t.Context(), signer, ref, strings.TrimSuffix(ref, ":1")))
	}
	must(t, w.Registry.Sign(t.Context(), owner, swapped, strings.TrimSuffix(signed, ":1")))
	dir, err := w.BuildGuest(t.Context(), "signed", func(o *guestimage.Options) {
		w.withImageKey(o)
		o.Image = signedOptions(t, owner, signed, unsigned, foreign, swapped)
	})
	must(t, err)
	_, s := connect(t, w.boot(t, dir, nil))
	must(t, story.SetUpNetwork(t.Context(), s))
	must(t, s.CreateSandbox(t.Context(), "pod", "story", nil))
	for ref, want := range map[string]string{
		unsigned: "no signature exists", foreign: "signature", swapped: "identity", other: "rejects every image",
		"blocked.example/story:1": "blocked",
	} {
		err := s.CreateContainer(t.Context(), container("bad", ref, "/bin/true"))
		if err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%s: error %v, want %q", ref, err, want)
		}
	}
	runs(t, s, signed)
	must(t, s.DestroySandbox(t.Context()))
}

// signedOptions make a policy that wants images signed by a key that lies beside it, and refuses all others.
func signedOptions(t *testing.T, owner *signtest.Signer, refs ...string) guestimage.ImageOptions {
	t.Helper()
	dir := t.TempDir()
	public, err := owner.PublicKey()
	must(t, err)
	must(t, os.WriteFile(filepath.Join(dir, "owner.pub"), public, 0o600))
	scopes := make(map[string]any)
	for _, ref := range refs {
		scopes[strings.TrimSuffix(ref, ":1")] = []any{map[string]any{
			"type": "sigstoreSigned", "keyPath": "owner.pub", "signedIdentity": map[string]string{"type": "matchRepository"},
		}}
	}
	scopes["blocked.example"] = []any{map[string]string{"type": "insecureAcceptAnything"}}
	policy, err := json.Marshal(map[string]any{
		"default": []any{map[string]string{"type": "reject"}}, "transports": map[string]any{"docker": scopes},
	})
	must(t, err)
	must(t, os.WriteFile(filepath.Join(dir, "policy.json"), policy, 0o600))
	must(t, os.WriteFile(filepath.Join(dir, "registries.conf"), []byte("[[registry]]\nlocation = \"blocked.example\"\nblocked = true\n"), 0o600))
	return guestimage.ImageOptions{Policy: filepath.Join(dir, "policy.json"), Registries: filepath.Join(dir, "registries.conf")}
}

// Threat: a guest whose builder named no image policy. Observable: no image of a registry runs.
func TestImagePolicyAbsent(t *testing.T) {
	t.Parallel()
	w := need(t)
	ref, err := w.PushImage(t.Context(), w.Registry, story.Image{Name: "any", KeyURI: imageURI, KeyFile: w.imageKey})
	must(t, err)
	dir, err := w.BuildGuest(t.Context(), "no-image-policy", func(o *guestimage.Options) {
		w.withImageKey(o)
		o.Image = guestimage.ImageOptions{}
	})
	must(t, err)
	_, s := connect(t, w.boot(t, dir, nil))
	must(t, story.SetUpNetwork(t.Context(), s))
	must(t, s.CreateSandbox(t.Context(), "pod", "story", nil))
	err = s.CreateContainer(t.Context(), container("c1", ref, "/bin/true"))
	if err == nil || !strings.Contains(err.Error(), "there is no policy") {
		t.Errorf("error %v, want that there is no policy", err)
	}
	must(t, s.DestroySandbox(t.Context()))
}
