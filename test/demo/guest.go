// SPDX-License-Identifier: Apache-2.0
// Copyright The Cloister Authors.

package main

import (
	"bufio"
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"strings"
	"syscall"
	"time"

	"github.com/cloister-cc/cloister/internal/qemu"
	"github.com/cloister-cc/cloister/test/story"
)

// guest is a running `cloister run`.
type guest struct {
	cmd     *exec.Cmd
	console string
	address string
	done    chan struct{} // closed when the process has ended, err is valid then
	err     error
	stderr  bytes.Buffer
}

// boot starts the guest and waits until the agent says that it listens.
func (d *demo) boot(ctx context.Context) (string, error) {
	d.vm = &guest{console: d.host("capture/" + qemu.CaptureConsole), done: make(chan struct{})}
	args := []string{"run", "--console", os.DevNull, "--capture", d.host("capture"), "--disk", d.host("root.img")}
	if d.sealed() {
		args = append(args, "--image", d.private("memory.img"))
	}
	cmd := exec.CommandContext(ctx, cloister, append(args, d.guestDir())...)
	cmd.Cancel = func() error { return cmd.Process.Signal(syscall.SIGTERM) }
	cmd.WaitDelay = 10 * time.Second
	cmd.Stderr = &d.vm.stderr
	stdout, err := cmd.StdoutPipe()
	if err != nil {
		return "", err
	}
	if err := cmd.Start(); err != nil {
		return "", err
	}
	d.vm.cmd = cmd
	lines := bufio.NewScanner(stdout)
	for lines.Scan() {
		if at := strings.Index(lines.Text(), "hvsock://"); at >= 0 {
			d.vm.address = strings.Fields(lines.Text()[at:])[0]
			break
		}
	}
	go func() {
		_, _ = io.Copy(io.Discard, stdout)
		d.vm.err = cmd.Wait()
		close(d.vm.done)
	}()
	if d.vm.address == "" {
		<-d.vm.done
		return "", fmt.Errorf("cloister run ended: %w\n%s", d.vm.err, d.vm.stderr.Bytes())
	}
	if _, err := d.cloister(ctx, "ctl", "--address", d.vm.address, "--wait", "2m", "check"); err != nil {
		return "", fmt.Errorf("%w\nconsole:\n%s", err, d.vm.consoleTail())
	}
	return "root disk found by its pinned header, unlocked, verified; the agent answers on vsock", nil
}

// container does what the Kata shim does for a pod with one container, an exec in it, and the end of the sandbox. The
// container shows digests of what it has: what it prints, the host reads.
func (d *demo) container(ctx context.Context) (string, error) {
	ref := d.registry.Host(story.GuestHost) + "/" + image
	out, err := d.cloister(ctx, "ctl", "--address", d.vm.address, "run", "--pause",
		"--mac", story.GuestMAC, "--ip", story.GuestIP, "--gateway", story.GuestHost,
		"--env", "PATH=/bin", "--env", "TOKEN="+d.canaries.sealedToken,
		"--exec", "/bin/sh", "--exec", "-c", "--exec", script, ref, "--", "/bin/sleep", "1000")
	if err != nil {
		return "", fmt.Errorf("%w\nconsole:\n%s", err, d.vm.consoleTail())
	}
	machine := map[bool]string{true: "s390x", false: "x86_64"}[d.sealed()]
	if want := d.canaries.wantOutput(machine); string(out) != want {
		return "", fmt.Errorf("the container printed %q, want %q", out, want)
	}
	return "pulled, verified, decrypted and run in the guest, with a sealed secret in its environment; it shows the right digests", nil
}

func (d *demo) powerOff(ctx context.Context) (string, error) {
	select {
	case <-d.vm.done:
		if d.vm.err != nil {
			return "", fmt.Errorf("cloister run: %w\n%s", d.vm.err, d.vm.stderr.Bytes())
		}
		return "sandbox destroyed, the machine is off", nil
	case <-ctx.Done():
		return "", ctx.Err()
	case <-time.After(time.Minute):
		return "", errors.New("the machine is still on a minute after DestroySandbox")
	}
}

// stop ends a guest that still runs.
func (g *guest) stop() error {
	if g.cmd == nil {
		return nil
	}
	select {
	case <-g.done:
		return nil
	default:
	}
	err := g.cmd.Process.Signal(syscall.SIGTERM)
	select {
	case <-g.done:
	case <-time.After(10 * time.Second):
		err = errors.Join(err, g.cmd.Process.Kill())
		<-g.done
	}
	return err
}

func (g *guest) consoleTail() []byte {
	data, err := os.ReadFile(g.console)
	if err != nil {
		return []byte(err.Error())
	}
	return data[max(0, len(data)-4000):]
}
