// SPDX-License-Identifier: Apache-2.0
// Copyright The Cloister Authors.

package e2e

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/cloister-cc/cloister/guestimage"
	"github.com/cloister-cc/cloister/internal/qemu"
	"github.com/cloister-cc/cloister/test/story"
)

// archVariable names the guest architecture that the tests run on.
const archVariable = "CLOISTER_E2E_ARCH"

// bootTimeout bounds the life of one guest under emulation on a busy machine.
const bootTimeout = 4 * time.Minute

// world is what all tests share; it is made once, by the first that needs it.
type world struct {
	*story.Lab
	imageKey string
	guest    string // built with everything: registry, image key, allow-all
}

const (
	imageURI   = "kbs:///default/image-key/e2e"
	unknownURI = "kbs:///default/image-key/not-in-the-guest"
)

var (
	makeWorld = sync.OnceValues(newWorld)
	worldDir  string
)

func TestMain(m *testing.M) {
	dir, err := os.MkdirTemp("", "cloister-e2e-")
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
	worldDir = dir
	code := m.Run()
	if os.Getenv(archVariable) != "" {
		if w, err := makeWorld(); err == nil {
			err = errors.Join(w.Close(), os.RemoveAll(dir))
			if err != nil {
				fmt.Fprintln(os.Stderr, err)
				code = 1
			}
		}
	}
	_ = os.RemoveAll(dir)
	os.Exit(code)
}

func newWorld() (*world, error) {
	ctx, cancel := context.WithTimeout(context.Background(), 10*time.Minute)
	defer cancel()
	lab, err := story.NewLab(ctx, os.Getenv(archVariable), worldDir)
	if err != nil {
		return nil, err
	}
	w := &world{Lab: lab}
	if w.imageKey, err = story.NewImageKey(filepath.Join(worldDir, "image.key")); err != nil {
		return nil, errors.Join(err, lab.Close())
	}
	if w.guest, err = lab.BuildGuest(ctx, "guest", w.withImageKey); err != nil {
		return nil, errors.Join(err, lab.Close())
	}
	return w, nil
}

func (w *world) withImageKey(o *guestimage.Options) {
	o.ImageKeys = map[string]string{imageURI: w.imageKey}
}

// need returns the shared world. Without an architecture to run on, the test is skipped, unless REQUIRE_QEMU says that
// a skip is a failure.
func need(t *testing.T) *world {
	t.Helper()
	if os.Getenv(archVariable) == "" {
		if os.Getenv("REQUIRE_QEMU") == "1" {
			t.Fatalf("REQUIRE_QEMU=1, but %s does not name an architecture", archVariable)
		}
		t.Skipf("needs a guest: run `make test-e2e ARCH=s390x` (or amd64)")
	}
	w, err := makeWorld()
	if err != nil {
		t.Fatal(err)
	}
	return w
}

// boot starts a guest that ends with the test. A failed test shows the guest's console.
func (w *world) boot(t *testing.T, dir string, change func(*qemu.Config)) *qemu.VM {
	t.Helper()
	ctx, cancel := context.WithTimeout(context.WithoutCancel(t.Context()), bootTimeout)
	vm, err := w.Boot(ctx, dir, change)
	if err != nil {
		cancel()
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := vm.Stop(); err != nil {
			t.Errorf("stop the guest: %v", err)
		}
		cancel()
		if t.Failed() {
			t.Logf("console:\n%s", vm.Console())
		}
	})
	return vm
}

// wantPowerOff waits until the guest has switched itself off after saying all of texts, and never served.
func wantPowerOff(t *testing.T, vm *qemu.VM, texts ...string) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), bootTimeout)
	defer cancel()
	if err := vm.Wait(ctx); err != nil {
		t.Fatalf("the guest did not switch itself off: %v", err)
	}
	for _, text := range texts {
		if !strings.Contains(vm.Console(), text) {
			t.Errorf("the console does not say %q", text)
		}
	}
	if strings.Contains(vm.Console(), servingMessage) {
		t.Error("the agent served after all")
	}
}

// servingMessage is what the agent logs once its API can be reached.
const servingMessage = "agent API is served"
