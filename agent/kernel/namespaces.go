// SPDX-License-Identifier: Apache-2.0
// Copyright The Cloister Authors.

package kernel

import (
	"errors"
	"fmt"
	"os"
	"runtime"

	"golang.org/x/sys/unix"
)

// Namespaces makes an IPC and a UTS namespace, the latter with that host name unless it is empty. They live as long as
// the files are open, or something runs in them. The agent itself stays in its own.
func (Linux) Namespaces(hostname string) (ipc, uts *os.File, err error) {
	err = onThrowawayThread(func() error {
		if err := unix.Unshare(unix.CLONE_NEWIPC | unix.CLONE_NEWUTS); err != nil {
			return fmt.Errorf("unshare: %w", err)
		}
		if hostname != "" {
			if err := unix.Sethostname([]byte(hostname)); err != nil {
				return fmt.Errorf("set host name: %w", err)
			}
		}
		var err error
		if ipc, err = os.Open("/proc/thread-self/ns/ipc"); err != nil {
			return err
		}
		if uts, err = os.Open("/proc/thread-self/ns/uts"); err != nil {
			return errors.Join(err, ipc.Close())
		}
		return nil
	})
	if err != nil {
		return nil, nil, fmt.Errorf("make namespaces: %w", err)
	}
	return ipc, uts, nil
}

// onThrowawayThread runs f on an OS thread that ends with it, so that what f does to its thread touches nothing else.
func onThrowawayThread(f func() error) error {
	result := make(chan error, 1)
	go func() {
		runtime.LockOSThread() // and never unlocked: the runtime then ends the thread
		if unix.Gettid() != unix.Getpid() {
			result <- f()
			return
		}
		// The main thread is never ended, and /proc/self shows its namespaces. As long as this goroutine holds it,
		// another one is on another thread.
		result <- onThrowawayThread(f)
		runtime.UnlockOSThread()
	}()
	return <-result
}
