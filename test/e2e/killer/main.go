// SPDX-License-Identifier: Apache-2.0
// Copyright The Cloister Authors.

// Command killer is the PID 1 of a guest whose agent gets killed. The kernel delivers no SIGKILL to a PID 1, but from the
// PID namespace above: killer starts the agent as PID 1 of a namespace of its own, kills it as soon as somebody connects to
// a vsock port, and ends in the same way, by which the kernel panics as if the agent had been PID 1 of all.
//
// The agent's executable stands behind killer's own, followed by its size.
package main

import (
	"encoding/binary"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

// proc is where /proc is for as long as the agent is started by its descriptor.
const proc = "/killer"

// port is the vsock port where killer waits.
const port = 1999

func main() {
	if err := run(); err != nil {
		fmt.Fprintln(os.Stderr, "killer:", err)
	}
	os.Exit(128 + int(unix.SIGKILL))
}

func run() error {
	agent, err := readAgent("/init")
	if err != nil {
		return err
	}
	if err := errors.Join(os.Mkdir(proc, 0o700), unix.Mount("proc", proc, "proc", 0, "")); err != nil {
		return err
	}
	cmd := exec.Command("/init") //nolint:noctx // nothing ends before it does
	cmd.Path = fmt.Sprintf("%s/self/fd/%d", proc, agent)
	cmd.Stdin, cmd.Stdout, cmd.Stderr = os.Stdin, os.Stdout, os.Stderr
	cmd.SysProcAttr = &syscall.SysProcAttr{Cloneflags: unix.CLONE_NEWPID}
	if err := cmd.Start(); err != nil {
		return err
	}
	// The agent empties the initramfs and would find what is left here.
	if err := errors.Join(unix.Unmount(proc, unix.MNT_DETACH), os.Remove(proc)); err != nil {
		return err
	}
	if err := waitForConnection(); err != nil {
		return err
	}
	return errors.Join(cmd.Process.Kill(), cmd.Wait())
}

// readAgent returns a descriptor of the agent's executable, which stays open over exec.
func readAgent(self string) (int, error) {
	data, err := os.ReadFile(self)
	if err != nil {
		return 0, err
	}
	size := int(binary.BigEndian.Uint64(data[len(data)-8:]))
	data = data[len(data)-8-size : len(data)-8]
	fd, err := unix.MemfdCreate("agent", 0)
	if err != nil {
		return 0, err
	}
	for len(data) > 0 {
		n, err := unix.Write(fd, data)
		if err != nil {
			return 0, err
		}
		data = data[n:]
	}
	return fd, nil
}

// waitForConnection waits for the agent to load the vsock module, and then for a connection.
func waitForConnection() error {
	for {
		fd, err := unix.Socket(unix.AF_VSOCK, unix.SOCK_STREAM, 0)
		if err != nil {
			time.Sleep(50 * time.Millisecond)
			continue
		}
		if err := unix.Bind(fd, &unix.SockaddrVM{CID: unix.VMADDR_CID_ANY, Port: port}); err != nil {
			return err
		}
		if err := unix.Listen(fd, 1); err != nil {
			return err
		}
		_, _, err = unix.Accept(fd)
		return err
	}
}
