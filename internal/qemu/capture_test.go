// SPDX-License-Identifier: Apache-2.0
// Copyright The Cloister Authors.

package qemu

import (
	"io"
	"net"
	"os"
	"path/filepath"
	"testing"
	"time"
)

// What passes the tee is the same on both sides, and in the files of its two directions.
func TestTee(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	guest, err := net.ListenUnix("unix", &net.UnixAddr{Name: filepath.Join(dir, "guest"), Net: "unix"})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = guest.Close() })
	go func() {
		for {
			conn, err := guest.Accept()
			if err != nil {
				return
			}
			request, _ := io.ReadAll(conn)
			_, _ = conn.Write(append([]byte("answer to "), request...))
			_ = conn.Close()
		}
	}()
	captured := filepath.Join(dir, "captured")
	tap, err := startTee(filepath.Join(dir, "tap"), filepath.Join(dir, "guest"), captured)
	if err != nil {
		t.Fatal(err)
	}
	for _, request := range []string{"one", "two"} {
		conn, err := net.DialUnix("unix", nil, &net.UnixAddr{Name: filepath.Join(dir, "tap"), Net: "unix"})
		if err != nil {
			t.Fatal(err)
		}
		if _, err := conn.Write([]byte(request)); err != nil {
			t.Fatal(err)
		}
		if err := conn.CloseWrite(); err != nil {
			t.Fatal(err)
		}
		answer, err := io.ReadAll(conn)
		if err != nil || string(answer) != "answer to "+request {
			t.Errorf("answer %q, %v", answer, err)
		}
		_ = conn.Close()
	}
	idle, err := net.DialUnix("unix", nil, &net.UnixAddr{Name: filepath.Join(dir, "tap"), Net: "unix"})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = idle.Close() })
	for deadline := time.Now().Add(10 * time.Second); time.Now().Before(deadline); time.Sleep(time.Millisecond) {
		if _, err := os.Stat(filepath.Join(captured, "003-to-guest")); err == nil {
			break
		}
	}
	if err := tap.close(); err != nil { // although a connection is open
		t.Error(err)
	}
	for name, want := range map[string]string{
		"001-to-guest": "one", "001-from-guest": "answer to one", "002-to-guest": "two", "002-from-guest": "answer to two", "003-to-guest": "",
	} {
		got, err := os.ReadFile(filepath.Join(captured, name))
		if err != nil || string(got) != want {
			t.Errorf("%s: %q, %v; want %q", name, got, err, want)
		}
	}
}

// A connection that the capture cannot hold is an error of the capture.
func TestTeeIncomplete(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	guest, err := net.ListenUnix("unix", &net.UnixAddr{Name: filepath.Join(dir, "guest"), Net: "unix"})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = guest.Close() })
	captured := filepath.Join(dir, "captured")
	tap, err := startTee(filepath.Join(dir, "tap"), filepath.Join(dir, "guest"), captured)
	if err != nil {
		t.Fatal(err)
	}
	if err := os.RemoveAll(captured); err != nil {
		t.Fatal(err)
	}
	conn, err := net.Dial("unix", filepath.Join(dir, "tap"))
	if err != nil {
		t.Fatal(err)
	}
	if _, err := io.ReadAll(conn); err != nil {
		t.Error(err)
	}
	_ = conn.Close()
	if err := tap.close(); err == nil {
		t.Error("nothing says that the capture is incomplete")
	}
}
