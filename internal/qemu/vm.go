// SPDX-License-Identifier: Apache-2.0
// Copyright The Cloister Authors.

package qemu

import (
	"context"
	"crypto/rand"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"sync"
	"time"
)

const (
	// backendTimeout is how long the vsock backend may take until it listens.
	backendTimeout = 10 * time.Second
	// consoleKept is how much of the console VM.Console keeps, in bytes.
	consoleKept = 4 << 20
	// backendCID is the guest's context id with a backend of its own, which serves one guest only.
	backendCID = 4
	// txBufferSize is the backend's buffer for what the guest sends, in bytes. With its default of 64 KiB a Linux 6.12
	// guest stalls on the first large write to the host.
	txBufferSize = "32768"
)

// VM is a running guest.
type VM struct {
	qemu    *process
	backend *process // nil without one
	tee     *tee     // nil without a capture
	address string
	console *tail
	dead    chan struct{} // closed when both processes have ended
	capture error         // what made the capture incomplete; read it after dead
	stop    sync.Once
}

// Start starts a guest. It runs until it powers off, Stop is called, or ctx ends; the caller waits for its end by Wait
// or Stop. Start returns as soon as QEMU runs, long before the guest does.
func Start(ctx context.Context, c Config) (*VM, error) {
	c, err := c.withDefaults()
	if err != nil {
		return nil, fmt.Errorf("start guest: %w", err)
	}
	if err := ctx.Err(); err != nil {
		return nil, fmt.Errorf("start guest: %w", err)
	}
	vm := &VM{console: &tail{limit: consoleKept}, dead: make(chan struct{})}
	cid, err := vm.startVsock(ctx, c)
	if err != nil {
		return nil, fmt.Errorf("start guest: %w", err)
	}
	closeConsole, err := vm.startQEMU(ctx, c, cid)
	if err != nil {
		if vm.backend != nil {
			vm.backend.stop()
		}
		if vm.tee != nil {
			err = errors.Join(err, vm.tee.close())
		}
		return nil, fmt.Errorf("start guest: %w", err)
	}
	go vm.supervise(ctx, closeConsole)
	return vm, nil
}

// startVsock starts the backend of the vsock device, which has to listen before QEMU starts.
func (vm *VM) startVsock(ctx context.Context, c Config) (cid uint32, err error) {
	if !c.Vsock {
		return 0, nil
	}
	if c.VsockBackend == "" {
		f, err := os.OpenFile("/dev/vhost-vsock", os.O_RDWR, 0)
		if err != nil {
			return 0, fmt.Errorf("no vsock backend given and the host kernel offers none: %w", err)
		}
		if err := f.Close(); err != nil {
			return 0, fmt.Errorf("probe vhost-vsock: %w", err)
		}
		var b [4]byte
		_, _ = rand.Read(b[:])                                 // never fails
		cid = binary.LittleEndian.Uint32(b[:])&0x3fffffff + 16 // context ids up to 2 are reserved, vsock(7)
		vm.address = fmt.Sprintf("vsock://%d:%d", cid, agentPort)
		return cid, nil
	}
	vm.address = fmt.Sprintf("hvsock://%s:%d", c.agentSocket(), agentPort)
	for _, s := range []string{c.deviceSocket(), c.agentSocket()} {
		if err := os.Remove(s); err != nil && !errors.Is(err, os.ErrNotExist) {
			return 0, fmt.Errorf("remove stale socket: %w", err)
		}
	}
	vm.backend, err = startProcess(ctx, io.Discard, c.VsockBackend, "--guest-cid", fmt.Sprint(backendCID),
		"--socket", c.deviceSocket(), "--uds-path", c.agentSocket(), "--tx-buffer-size", txBufferSize)
	if err != nil {
		return 0, fmt.Errorf("start vsock backend: %w", err)
	}
	if err := waitForSocket(ctx, c.deviceSocket(), vm.backend); err != nil {
		vm.backend.stop()
		return 0, err
	}
	if c.Capture == "" {
		return backendCID, nil
	}
	if vm.tee, err = startTee(c.teeSocket(), c.agentSocket(), filepath.Join(c.Capture, CaptureVsock)); err != nil {
		vm.backend.stop()
		return 0, err
	}
	vm.address = fmt.Sprintf("hvsock://%s:%d", c.teeSocket(), agentPort)
	return backendCID, nil
}

func waitForSocket(ctx context.Context, path string, p *process) error {
	ctx, cancel := context.WithTimeout(ctx, backendTimeout)
	defer cancel()
	for {
		if _, err := os.Stat(path); err == nil {
			return nil
		}
		select {
		case <-p.done:
			return fmt.Errorf("vsock backend ended: %w%s", orEnded(p.err), p.stderr.quote())
		case <-ctx.Done():
			return fmt.Errorf("wait for vsock backend: %w%s", ctx.Err(), p.stderr.quote())
		case <-time.After(5 * time.Millisecond):
		}
	}
}

func (vm *VM) startQEMU(ctx context.Context, c Config, cid uint32) (closeConsole func() error, err error) {
	m, err := machineOf(c.Arch)
	if err != nil {
		return nil, err
	}
	args, err := c.args(cid)
	if err != nil {
		return nil, err
	}
	binary := m.binary
	if c.Dir != "" {
		binary = filepath.Join(c.Dir, "usr/bin", m.binary)
	}
	if err := c.writeArgs(binary, args); err != nil {
		return nil, fmt.Errorf("capture QEMU's arguments: %w", err)
	}
	captured, closeConsole, err := c.captureConsole()
	if err != nil {
		return nil, err
	}
	vm.qemu, err = startProcess(ctx, io.MultiWriter(vm.console, captured, c.Console), binary, args...)
	if err != nil {
		return nil, errors.Join(fmt.Errorf("start QEMU: %w", err), closeConsole())
	}
	return closeConsole, nil
}

// supervise ends what is left once QEMU has ended or ctx says so.
func (vm *VM) supervise(ctx context.Context, closeConsole func() error) {
	select {
	case <-ctx.Done():
		vm.qemu.stop()
	case <-vm.qemu.done:
	}
	if vm.backend != nil {
		vm.backend.stop()
	}
	if vm.tee != nil {
		vm.capture = vm.tee.close()
	}
	vm.capture = errors.Join(vm.capture, closeConsole())
	close(vm.dead)
}

// AgentAddress returns where the guest's agent can be dialled: hvsock://SOCKET:1024 or vsock://CID:1024; "" without a
// vsock device.
func (vm *VM) AgentAddress() string { return vm.address }

// Pid returns QEMU's process id. The guest's memory is the memfd that this process maps.
func (vm *VM) Pid() int { return vm.qemu.cmd.Process.Pid }

// Console returns what the guest has written to its console, the last few MiB of it.
func (vm *VM) Console() string { return vm.console.String() }

// Done returns a channel that is closed when the guest has ended.
func (vm *VM) Done() <-chan struct{} { return vm.dead }

// Wait waits until the guest has powered off or was stopped. It fails when ctx ends first (the guest runs on then,
// unless ctx is also Start's) and when QEMU failed by itself; the error quotes QEMU's messages.
func (vm *VM) Wait(ctx context.Context) error {
	select {
	case <-vm.dead:
	case <-ctx.Done():
		return fmt.Errorf("wait for guest: %w", ctx.Err())
	}
	if err := vm.qemu.err; err != nil {
		return fmt.Errorf("QEMU ended: %w%s", err, vm.qemu.stderr.quote())
	}
	return vm.capture
}

// Stop ends the guest at once, like pulling its plug, and waits until its processes have ended. It may be called
// again, and after the guest has ended by itself.
func (vm *VM) Stop() error {
	vm.stop.Do(func() { vm.qemu.stop() })
	<-vm.dead
	return nil
}

func orEnded(err error) error {
	if err != nil {
		return err
	}
	return errors.New("without an error")
}
