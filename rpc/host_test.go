// SPDX-License-Identifier: Apache-2.0
// Copyright The Cloister Authors.

package rpc

import (
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"syscall"
	"testing"
)

// connectVariable names the socket to which the test binary connects when it runs as somebody else.
const connectVariable = "CLOISTER_TEST_CONNECT"

// TestOnlyRootConnects: threat: another user of the machine connects to the agent's abstract socket, on which no file mode
// stands watch. Seen: he is turned away, the agent's own user is not.
func TestOnlyRootConnects(t *testing.T) {
	if path := os.Getenv(connectVariable); path != "" {
		conn, err := net.Dial("unix", path)
		if err != nil {
			t.Fatal(err)
		}
		_, _ = conn.Read(make([]byte, 1)) // until it is closed
		return
	}
	if os.Geteuid() != 0 {
		t.Skip("needs root, to become another user")
	}
	name := "@cloister-" + filepath.Base(t.TempDir()) + t.Name()
	inner, err := net.Listen("unix", name)
	if err != nil {
		t.Fatal(err)
	}
	defer inner.Close()
	accepted := make(chan net.Conn, 1)
	go func() {
		conn, err := hostListener{inner, orDiscard(nil)}.Accept()
		if err == nil {
			accepted <- conn
		}
	}()
	// A copy, since the other user may not get at the original.
	data, err := os.ReadFile("/proc/self/exe")
	if err != nil {
		t.Fatal(err)
	}
	dir, err := os.MkdirTemp("", "cloister-") //nolint:usetesting // the folder above t.TempDir is closed to others
	if err != nil {
		t.Fatal(err)
	}
	defer os.RemoveAll(dir)
	program := filepath.Join(dir, "rpc.test")
	if err := os.Chmod(dir, 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(program, data, 0o755); err != nil {
		t.Fatal(err)
	}
	cmd := exec.CommandContext(t.Context(), program, "-test.run", "^TestOnlyRootConnects$")
	cmd.Env = append(os.Environ(), connectVariable+"="+name)
	cmd.Dir = "/"
	cmd.SysProcAttr = &syscall.SysProcAttr{Credential: &syscall.Credential{Uid: 65534, Gid: 65534}}
	if out, err := cmd.CombinedOutput(); err != nil { // it ends because its connection was closed
		t.Fatalf("%v\n%s", err, out)
	}
	own, err := net.Dial("unix", name)
	if err != nil {
		t.Fatal(err)
	}
	defer own.Close()
	conn := <-accepted
	defer conn.Close()
	if conn.RemoteAddr() == nil {
		t.Error("the connection has no peer")
	}
}
