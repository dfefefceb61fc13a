// SPDX-License-Identifier: Apache-2.0
// Copyright The Cloister Authors.

package e2e

import (
	"bytes"
	"context"
	"strings"
	"testing"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/cloister-cc/cloister/client"
	"github.com/cloister-cc/cloister/ctl"
	"github.com/cloister-cc/cloister/guestimage"
	"github.com/cloister-cc/cloister/internal/qemu"
	"github.com/cloister-cc/cloister/rpc/pb"
	"github.com/cloister-cc/cloister/test/story"
)

// secret lies in the encrypted layer of the good image.
const secret = "only the guest and the owner of the image have seen this line"

// connect waits for the guest's agent.
func connect(t *testing.T, vm *qemu.VM) (*client.Client, *ctl.Session) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), bootTimeout)
	defer cancel()
	go func() { // a guest that has ended will never be ready
		select {
		case <-vm.Done():
			cancel()
		case <-ctx.Done():
		}
	}()
	c, err := client.DialReady(ctx, vm.AgentAddress())
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = c.Close() })
	return c, ctl.NewSession(c)
}

// The whole story, in one guest: decoy disks beside the right one, images that must be refused, then the image that
// must run, with output, exit codes, exec and signals; then everything is removed and the machine is off.
func TestStory(t *testing.T) {
	t.Parallel()
	w := need(t)
	images := w.pushImages(t)
	vm := w.boot(t, w.guest, func(c *qemu.Config) {
		c.Disks = append([]string{decoy(t, 1<<20), decoy(t, 8<<20)}, c.Disks...)
	})
	c, s := connect(t, vm)
	diskKeyIsGone(t, w, vm)
	wantClosedPorts(t, vm)
	must(t, story.SetUpNetwork(t.Context(), s))
	must(t, s.CreateSandbox(t.Context(), "pod", "story", []string{"nameserver 10.0.2.3"}))
	for _, bad := range images.bad {
		t.Run("refused "+bad.name, func(t *testing.T) {
			err := s.CreateContainer(t.Context(), container("bad", bad.ref, "/bin/true"))
			if err == nil || !strings.Contains(err.Error(), bad.want) {
				t.Errorf("error %v, want %q", err, bad.want)
			}
		})
	}
	must(t, s.CreateContainer(t.Context(), ctl.Container{ID: "pod", Pause: true}))
	must(t, s.StartContainer(t.Context(), "pod"))
	t.Run("output and exit code", func(t *testing.T) { outputAndExit(t, s, images.good) })
	t.Run("exec and signals", func(t *testing.T) { execAndSignals(t, s, images.good) })
	t.Run("other requests", func(t *testing.T) { otherRequests(t, c) })
	must(t, s.Signal(t.Context(), "pod", "", 9))
	if code, err := s.Wait(t.Context(), "pod", ""); err != nil || code != 137 {
		t.Errorf("the killed pause container: status %d, %v; want 137", code, err)
	}
	must(t, s.RemoveContainer(t.Context(), "pod"))
	must(t, s.DestroySandbox(t.Context()))
	ctx, cancel := context.WithTimeout(t.Context(), bootTimeout)
	defer cancel()
	must(t, vm.Wait(ctx))
	if !strings.Contains(vm.Console(), "sandbox is destroyed, powering off") {
		t.Error("the console does not say that the sandbox is destroyed")
	}
	for _, text := range []string{"image is mounted", "image is measured", `PullImage {\"image\":\"` + images.good + `\",\"digest\":\"sha256:`, "log=sha384:"} {
		if !strings.Contains(vm.Console(), text) {
			t.Errorf("the console does not have %q", text)
		}
	}
	if strings.Contains(vm.Console(), secret) {
		t.Error("the secret of the image is on the console")
	}
}

func outputAndExit(t *testing.T, s *ctl.Session, ref string) {
	t.Helper()
	must(t, s.CreateContainer(t.Context(), container("c1", ref, "/bin/sh", "-c", "cat /etc/secret; hostname; echo oops >&2; exit 7")))
	must(t, s.StartContainer(t.Context(), "c1"))
	var stdout, stderr bytes.Buffer
	must(t, s.Attach(t.Context(), "c1", "", &stdout, &stderr))
	if code, err := s.Wait(t.Context(), "c1", ""); err != nil || code != 7 {
		t.Errorf("status %d, %v; want 7", code, err)
	}
	if want := secret + "\nstory\n"; stdout.String() != want || stderr.String() != "oops\n" {
		t.Errorf("stdout %q, stderr %q; want %q and \"oops\\n\"", stdout.String(), stderr.String(), want)
	}
	must(t, s.RemoveContainer(t.Context(), "c1"))
	if err := s.StartContainer(t.Context(), "c1"); err == nil {
		t.Error("a removed container was started")
	}
}

func execAndSignals(t *testing.T, s *ctl.Session, ref string) {
	t.Helper()
	must(t, s.CreateContainer(t.Context(), container("c2", ref, "/bin/sh", "-c", "trap 'exit 5' TERM; while :; do sleep 0.1; done")))
	must(t, s.StartContainer(t.Context(), "c2"))
	must(t, s.Exec(t.Context(), "c2", "x1", ctl.Process{Args: []string{"/bin/sh", "-c", "head -c 200000 /dev/zero; exit 3"}}))
	var stdout, stderr bytes.Buffer
	must(t, s.Attach(t.Context(), "c2", "x1", &stdout, &stderr))
	if code, err := s.Wait(t.Context(), "c2", "x1"); err != nil || code != 3 || stdout.Len() != 200000 {
		t.Errorf("exec: status %d, %v, %d bytes of output; want 3 and 200000 bytes", code, err, stdout.Len())
	}
	if err := s.Exec(t.Context(), "c2", "x2", ctl.Process{Args: []string{"/no/such/program"}}); err == nil {
		t.Error("a program that does not exist was started")
	}
	must(t, s.Signal(t.Context(), "c2", "", 15))
	if code, err := s.Wait(t.Context(), "c2", ""); err != nil || code != 5 {
		t.Errorf("container that handles SIGTERM: status %d, %v; want 5", code, err)
	}
	must(t, s.Signal(t.Context(), "c2", "", 9)) // the shim always does so after the exit
	must(t, s.RemoveContainer(t.Context(), "c2"))
}

// otherRequests: what is not offered yet says so by name, and unknown ids are told apart.
func otherRequests(t *testing.T, c *client.Client) {
	t.Helper()
	_, err := c.Agent().AddSwap(t.Context(), &pb.AddSwapRequest{})
	if status.Code(err) != codes.Unimplemented || !strings.Contains(err.Error(), "AddSwap") {
		t.Errorf("AddSwap: %v, want UNIMPLEMENTED with the name", err)
	}
	_, err = c.Agent().WaitProcess(t.Context(), &pb.WaitProcessRequest{ContainerId: "nobody"})
	if status.Code(err) != codes.InvalidArgument {
		t.Errorf("WaitProcess of an unknown container: %v, want INVALID_ARGUMENT", err)
	}
}

// Threat: a guest whose builder named no policy is asked to run something. Observable: PERMISSION_DENIED, for every
// request but those of Health.
func TestPolicyAbsent(t *testing.T) {
	t.Parallel()
	w := need(t)
	dir, err := w.BuildGuest(t.Context(), "denying", func(o *guestimage.Options) { o.Policy = "" })
	must(t, err)
	vm := w.boot(t, dir, nil)
	c, s := connect(t, vm)
	if _, err := s.Check(t.Context()); err != nil {
		t.Errorf("Check: %v", err)
	}
	for name, call := range map[string]func() error{
		"CreateSandbox":   func() error { return s.CreateSandbox(t.Context(), "pod", "", nil) },
		"UpdateInterface": func() error { return story.SetUpNetwork(t.Context(), s) },
		"CreateContainer": func() error { return s.CreateContainer(t.Context(), ctl.Container{ID: "pod", Pause: true}) },
		"ExecProcess":     func() error { return s.Exec(t.Context(), "pod", "x", ctl.Process{Args: []string{"/bin/sh"}}) },
		"DestroySandbox":  func() error { return s.DestroySandbox(t.Context()) },
		"SetPolicy": func() error {
			_, err := c.Agent().SetPolicy(t.Context(), &pb.SetPolicyRequest{Policy: "package agent_policy\ndefault AllowRequests := true"})
			return err
		},
	} {
		if err := call(); status.Code(err) != codes.PermissionDenied {
			t.Errorf("%s: %v, want PERMISSION_DENIED", name, err)
		}
	}
}

func container(id, ref string, args ...string) ctl.Container {
	return ctl.Container{ID: id, SandboxID: "pod", Image: ref, Process: ctl.Process{Args: args}}
}

func must(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}
