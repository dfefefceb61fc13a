// SPDX-License-Identifier: Apache-2.0
// Copyright The Cloister Authors.

package e2e

import (
	"bytes"
	"context"
	"math/rand/v2"
	"strings"
	"testing"
	"time"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/cloister-cc/cloister/client"
	"github.com/cloister-cc/cloister/ctl"
	"github.com/cloister-cc/cloister/internal/qemu"
	"github.com/cloister-cc/cloister/test/story"
)

// filler returns text of that size that gzip makes much smaller, but not as small as a decompression bomb.
func filler(size int) string {
	block := make([]byte, 8<<10)
	_, _ = rand.NewChaCha8([32]byte{1}).Read(block)
	return strings.Repeat(string(block), size/len(block))
}

// A guest whose scratch space is too small for an image: the error says so, nothing of the image stays, and the sandbox
// goes on with another one.
func TestScratchFull(t *testing.T) {
	t.Parallel()
	w := need(t)
	large, err := w.PushImage(t.Context(), w.Registry, story.Image{
		Name: "large", Files: map[string]string{"large": filler(160 << 20)}, KeyURI: imageURI, KeyFile: w.imageKey,
	})
	must(t, err)
	good, err := w.PushImage(t.Context(), w.Registry, story.Image{
		Name: "small", Files: map[string]string{"etc/secret": secret + "\n"}, KeyURI: imageURI, KeyFile: w.imageKey,
	})
	must(t, err)
	dir, err := w.BuildGuest(t.Context(), "scratch", w.withImageKey) // one guest for each disk
	must(t, err)
	vm := w.boot(t, dir, func(c *qemu.Config) { c.MemoryMiB = 256 }) // scratch is half of the memory
	_, s := connect(t, vm)
	must(t, story.SetUpNetwork(t.Context(), s))
	must(t, s.CreateSandbox(t.Context(), "pod", "story", nil))
	for range 2 { // the second time shows that nothing of the first stayed
		if err := s.CreateContainer(t.Context(), container("c1", large, "/bin/true")); status.Code(err) != codes.ResourceExhausted || !strings.Contains(err.Error(), "the image store is full") {
			t.Errorf("error %v, want RESOURCE_EXHAUSTED, and that the image store is full", err)
		}
	}
	runs(t, s, good)
	must(t, s.DestroySandbox(t.Context()))
}

// runs creates a container of the image, and sees that it has what the image holds.
func runs(t *testing.T, s *ctl.Session, image string) {
	t.Helper()
	must(t, s.CreateContainer(t.Context(), container("c1", image, "/bin/cat", "/etc/secret")))
	must(t, s.StartContainer(t.Context(), "c1"))
	var stdout bytes.Buffer
	must(t, s.Attach(t.Context(), "c1", "", &stdout, &bytes.Buffer{}))
	if code, err := s.Wait(t.Context(), "c1", ""); err != nil || code != 0 || stdout.String() != secret+"\n" {
		t.Errorf("status %d, %v, output %q", code, err, stdout.String())
	}
	must(t, s.RemoveContainer(t.Context(), "c1"))
}

// The client vanishes in the middle of a pull. Its container does not come to be, and the next client can have one of the
// same id.
func TestClientGoneDuringPull(t *testing.T) {
	t.Parallel()
	w := need(t)
	ref, err := w.PushImage(t.Context(), w.Registry, story.Image{
		Name: "slow", Files: map[string]string{"large": filler(64 << 20), "etc/secret": secret + "\n"}, KeyURI: imageURI, KeyFile: w.imageKey,
	})
	must(t, err)
	dir, err := w.BuildGuest(t.Context(), "client-gone", w.withImageKey)
	must(t, err)
	vm := w.boot(t, dir, nil)
	first, s := connect(t, vm)
	must(t, story.SetUpNetwork(t.Context(), s))
	must(t, s.CreateSandbox(t.Context(), "pod", "story", nil))
	failed := make(chan error, 1)
	go func() { failed <- s.CreateContainer(t.Context(), container("c1", ref, "/bin/true")) }()
	waitForConsole(t, vm, "pulling image")
	must(t, first.Close())
	if err := <-failed; err == nil {
		t.Fatal("the request ended well although its client was gone")
	}
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	second, err := client.DialReady(ctx, vm.AgentAddress())
	must(t, err)
	t.Cleanup(func() { _ = second.Close() })
	s = ctl.NewSession(second)
	for { // until the agent has seen that the first is gone and taken everything back
		err := s.CreateContainer(t.Context(), container("c2", ref, "/bin/cat", "/etc/secret"))
		if err == nil {
			break
		}
		if ctx.Err() != nil {
			t.Fatal(err)
		}
		time.Sleep(100 * time.Millisecond)
	}
	must(t, s.RemoveContainer(t.Context(), "c2"))
	if err := s.StartContainer(t.Context(), "c1"); err == nil {
		t.Error("the container of the client that is gone exists")
	}
	runs(t, s, ref)
	must(t, s.DestroySandbox(t.Context()))
}

// waitForConsole waits until the guest has said something.
func waitForConsole(t *testing.T, vm *qemu.VM, text string) {
	t.Helper()
	for deadline := time.Now().Add(time.Minute); time.Now().Before(deadline); time.Sleep(10 * time.Millisecond) {
		if strings.Contains(vm.Console(), text) {
			return
		}
	}
	t.Fatalf("the console does not say %q", text)
}
