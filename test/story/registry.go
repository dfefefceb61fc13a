// SPDX-License-Identifier: Apache-2.0
// Copyright The Cloister Authors.

package story

import (
	"bytes"
	"context"
	"crypto/rand"
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"syscall"
	"time"

	"golang.org/x/crypto/bcrypt"
)

// The two names of the machine that runs the registry.
const (
	// LoopbackHost is how programs of this machine reach the registry.
	LoopbackHost = "127.0.0.1"
	// GuestHost is how QEMU's user network shows this machine's loopback to the guest.
	GuestHost = "10.0.2.2"
)

const registryUser = "cloister"

// Registry is a running Docker registry on loopback, with TLS and a password unless it is a plain one.
type Registry struct {
	PKI PKI
	// Auth is an auth.json that holds the password for both names of the registry.
	Auth string
	// Root is where the registry keeps its blobs.
	Root string
	Port int

	cmd    *exec.Cmd
	done   chan struct{} // closed when the process has ended
	stderr bytes.Buffer
}

// StartRegistry starts the registry binary with its files in dir. Stop ends it.
func StartRegistry(ctx context.Context, binary, dir string, pki PKI) (*Registry, error) {
	r := &Registry{PKI: pki, Auth: filepath.Join(dir, "auth.json"), Root: filepath.Join(dir, "blobs"), done: make(chan struct{})}
	port, err := freePort(ctx)
	if err != nil {
		return nil, err
	}
	r.Port = port
	password := rand.Text()
	if err := r.writeAuth(dir, password); err != nil {
		return nil, err
	}
	config := filepath.Join(dir, "registry.yml")
	text := fmt.Sprintf(`version: 0.1
log: {level: error, accesslog: {disabled: true}}
storage: {filesystem: {rootdirectory: %q}, delete: {enabled: true}}
http: {addr: "%s:%d", tls: {certificate: %q, key: %q}}
auth: {htpasswd: {realm: cloister, path: %q}}
`, r.Root, LoopbackHost, r.Port, pki.Cert, pki.Key, filepath.Join(dir, "htpasswd"))
	if err := os.WriteFile(config, []byte(text), 0o600); err != nil {
		return nil, err
	}
	return r, r.start(ctx, binary, config)
}

// StartPlainRegistry starts a registry that has neither TLS nor a password and lets nobody write, with its configuration in
// dir. It offers what another one holds in root. Stop ends it.
func StartPlainRegistry(ctx context.Context, binary, dir, root string) (*Registry, error) {
	r := &Registry{Root: root, done: make(chan struct{})}
	port, err := freePort(ctx)
	if err != nil {
		return nil, err
	}
	r.Port = port
	config := filepath.Join(dir, "plain-registry.yml")
	text := fmt.Sprintf(`version: 0.1
log: {level: error, accesslog: {disabled: true}}
storage: {filesystem: {rootdirectory: %q}, maintenance: {readonly: {enabled: true}}}
http: {addr: "%s:%d"}
`, r.Root, LoopbackHost, r.Port)
	if err := os.WriteFile(config, []byte(text), 0o600); err != nil {
		return nil, err
	}
	return r, r.start(ctx, binary, config)
}

// start runs the registry and waits until it accepts connections; after an error it does not run.
func (r *Registry) start(ctx context.Context, binary, config string) error {
	r.cmd = exec.Command(binary, "serve", config) //nolint:noctx // it outlives ctx; Stop ends it
	r.cmd.Stderr = &r.stderr
	r.cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	if err := r.cmd.Start(); err != nil {
		return fmt.Errorf("start the registry: %w", err)
	}
	go func() {
		defer close(r.done)
		_ = r.cmd.Wait() // how it ended is in r.cmd.ProcessState
	}()
	if err := r.ready(ctx); err != nil {
		return errors.Join(err, r.Stop())
	}
	return nil
}

// Host returns the registry's address under one of its two names.
func (r *Registry) Host(name string) string { return net.JoinHostPort(name, strconv.Itoa(r.Port)) }

// Stop ends the registry.
func (r *Registry) Stop() error {
	err := r.cmd.Process.Signal(syscall.SIGTERM)
	if errors.Is(err, os.ErrProcessDone) {
		return fmt.Errorf("the registry had ended by itself: %s", r.stderr.String())
	}
	select {
	case <-r.done:
		return err
	case <-time.After(3 * time.Second):
		err = errors.Join(err, r.cmd.Process.Kill())
		<-r.done
		return err
	}
}

func (r *Registry) writeAuth(dir, password string) error {
	hash, err := bcrypt.GenerateFromPassword([]byte(password), bcrypt.MinCost)
	if err != nil {
		return fmt.Errorf("hash the registry password: %w", err)
	}
	if err := os.WriteFile(filepath.Join(dir, "htpasswd"), []byte(registryUser+":"+string(hash)+"\n"), 0o600); err != nil {
		return err
	}
	type entry struct {
		Auth string `json:"auth"`
	}
	e := entry{base64.StdEncoding.EncodeToString([]byte(registryUser + ":" + password))}
	data, err := json.Marshal(map[string]map[string]entry{"auths": {r.Host(LoopbackHost): e, r.Host(GuestHost): e}})
	if err != nil {
		return err
	}
	return os.WriteFile(r.Auth, data, 0o600)
}

// ready waits until the registry accepts connections.
func (r *Registry) ready(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, 10*time.Second)
	defer cancel()
	for {
		conn, err := new(net.Dialer).DialContext(ctx, "tcp", r.Host(LoopbackHost))
		if err == nil {
			return conn.Close()
		}
		select {
		case <-r.done:
			return fmt.Errorf("the registry ended (%s): %s", r.cmd.ProcessState, r.stderr.String())
		case <-ctx.Done():
			return fmt.Errorf("the registry does not listen: %w", err)
		case <-time.After(20 * time.Millisecond):
		}
	}
}

func freePort(ctx context.Context) (int, error) {
	l, err := new(net.ListenConfig).Listen(ctx, "tcp", net.JoinHostPort(LoopbackHost, "0"))
	if err != nil {
		return 0, err
	}
	defer l.Close()
	return l.Addr().(*net.TCPAddr).Port, nil
}
