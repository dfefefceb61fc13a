// SPDX-License-Identifier: Apache-2.0
// Copyright The Cloister Authors.

package cgroup

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"os"
	"time"

	"golang.org/x/sys/unix"
)

// eventsFile says whether a group has processes ("populated") and whether all of them are stopped ("frozen").
const eventsFile = "cgroup.events"

// recheck is how long to trust that the kernel reports a change of cgroup.events. It does at once, but nothing wakes
// those who wait for a group that is removed.
const recheck = time.Second

// await waits until a key of cgroup.events has a value, or for the end of ctx. It occupies a thread while it waits.
func await(ctx context.Context, group *os.Root, key string, want uint64) error {
	f, err := group.Open(eventsFile)
	if err != nil {
		return gone(err)
	}
	defer f.Close()
	if reached, err := hasValue(f, key, want); reached || err != nil {
		return err
	}
	wake, stop, err := wakeAtEnd(ctx)
	if err != nil {
		return err
	}
	defer stop()
	// Reading and then polling the same open file loses no change: poll(2) compares with the last read of this file.
	fds := []unix.PollFd{{Fd: int32(f.Fd()), Events: unix.POLLPRI}, {Fd: int32(wake), Events: unix.POLLIN}}
	for {
		if err := context.Cause(ctx); err != nil {
			return fmt.Errorf("wait for %s %d: %w", key, want, err)
		}
		if _, err := unix.Poll(fds, int(recheck.Milliseconds())); err != nil && !errors.Is(err, unix.EINTR) {
			return fmt.Errorf("wait for %s: %w", eventsFile, err)
		}
		if reached, err := hasValue(f, key, want); reached || err != nil {
			return err
		}
	}
}

// hasValue reads the file from its start.
func hasValue(f *os.File, key string, want uint64) (bool, error) {
	if _, err := f.Seek(0, 0); err != nil {
		return false, gone(err)
	}
	data, err := readAll(f, maxFile)
	if err != nil {
		return false, err
	}
	got, err := eventValue(data, key)
	return got == want, err
}

// eventValue returns the value of a key of cgroup.events.
func eventValue(data []byte, key string) (uint64, error) {
	values, err := parseFlat(data)
	if err != nil {
		return 0, fmt.Errorf("parse %s: %w", eventsFile, err)
	}
	v, ok := values[key]
	if !ok {
		return 0, fmt.Errorf("%s has no %s: %w", eventsFile, key, errors.ErrUnsupported)
	}
	return v, nil
}

// wakeAtEnd returns an eventfd(2) that becomes readable when ctx ends, and a function that frees it.
func wakeAtEnd(ctx context.Context) (fd int, stop func(), err error) {
	fd, err = unix.Eventfd(0, unix.EFD_CLOEXEC|unix.EFD_NONBLOCK)
	if err != nil {
		return -1, nil, fmt.Errorf("make event: %w", err)
	}
	written := make(chan struct{})
	cancel := context.AfterFunc(ctx, func() {
		defer close(written)
		// Adding 1 to a new counter cannot fail; if it did, the waiter would find the end of ctx at its next recheck.
		_, _ = unix.Write(fd, binary.NativeEndian.AppendUint64(nil, 1))
	})
	return fd, func() {
		if !cancel() {
			<-written
		}
		_ = unix.Close(fd)
	}, nil
}
