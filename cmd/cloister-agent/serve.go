// SPDX-License-Identifier: Apache-2.0
// Copyright The Cloister Authors.

package main

import (
	"context"
	"crypto/x509"
	"errors"
	"fmt"
	"log/slog"
	"path/filepath"
	"time"

	"github.com/cloister-cc/cloister/agent"
	"github.com/cloister-cc/cloister/agent/boot"
	"github.com/cloister-cc/cloister/agent/kernel"
	"github.com/cloister-cc/cloister/agent/netdev"
	"github.com/cloister-cc/cloister/agent/proc"
	"github.com/cloister-cc/cloister/agent/runtime"
	"github.com/cloister-cc/cloister/image"
	"github.com/cloister-cc/cloister/initramfs/layout"
	"github.com/cloister-cc/cloister/internal/version"
	"github.com/cloister-cc/cloister/keys"
	"github.com/cloister-cc/cloister/keys/sealed"
	"github.com/cloister-cc/cloister/rpc"
)

// shutdownTimeout is how long requests may take to end once the sandbox is destroyed; the answer to DestroySandbox
// itself is among them.
const shutdownTimeout = 5 * time.Second

// imagesDir is the image store. With a path of at most 20 bytes, an image can have 127 layers, see package store.
const imagesDir = boot.ScratchDir + "/img"

// serve wires the parts together and serves the agent API until the sandbox is destroyed.
func serve(ctx context.Context, guest *boot.Guest, reaper *proc.Reaper, log *slog.Logger) error {
	sandbox, err := newSandbox(guest, reaper, log)
	if err != nil {
		return err
	}
	server, err := rpc.NewServer(sandbox, gate(guest.Config.Policy), log, version.String())
	if err != nil {
		return err
	}
	address := fmt.Sprintf("vsock://-1:%d", port(guest.Config))
	listener, err := rpc.Listen(address)
	if err != nil {
		return err
	}
	failed := make(chan error, 1)
	go func() { failed <- server.Serve(ctx, listener) }()
	log.Info("agent API is served", "address", address, "policy", policyName(guest.Config.Policy), "up_ms", uptime().Milliseconds())
	logMemory(ctx, log, "idle")
	select {
	case <-sandbox.Done():
		logMemory(ctx, log, "end")
	case err := <-failed:
		return errors.Join(errors.New("the agent API ended by itself"), err)
	}
	ctx, cancel := context.WithTimeout(ctx, shutdownTimeout)
	defer cancel()
	if err := server.Shutdown(ctx); err != nil && !errors.Is(err, context.DeadlineExceeded) {
		log.Warn("server did not shut down in order", "error", err)
	}
	return nil
}

func newSandbox(guest *boot.Guest, reaper *proc.Reaper, log *slog.Logger) (*agent.Sandbox, error) {
	images, err := newImages(guest, log)
	if err != nil {
		return nil, err
	}
	crun, err := runtime.New(runtime.Config{Command: boot.RuntimePath, Root: filepath.Join(boot.RunDir, "crun"), Reaper: reaper})
	if err != nil {
		return nil, err
	}
	links := netdev.New()
	if err := links.LoopbackUp(); err != nil {
		return nil, err
	}
	return agent.NewSandbox(agent.Config{
		Images: images, Runtime: crun, Kernel: kernel.Linux{}, Network: links, Reaper: reaper, OpenSecret: openFunc(guest.Secrets), Log: log,
	})
}

func newImages(guest *boot.Guest, log *slog.Logger) (*image.Service, error) {
	ca, err := certPool(guest.RegistryCA)
	if err != nil {
		return nil, err
	}
	defer guest.RegistryAuth.Wipe()
	return image.New(image.Config{
		Root:        imagesDir,
		CA:          ca,
		Auth:        guest.RegistryAuth.Bytes(),
		Keys:        keyFunc(guest.ImageKeys),
		Log:         log,
		PauseRootfs: boot.PauseRootfs,
	})
}

// certPool reads the CA of the sealed initramfs. There is no other: without it, no registry is trusted.
func certPool(pem []byte) (*x509.CertPool, error) {
	pool := x509.NewCertPool()
	if len(pem) > 0 && !pool.AppendCertsFromPEM(pem) {
		return nil, errors.New("the registry CA in the initramfs holds no certificate")
	}
	return pool, nil
}

// keyFunc gives image the one thing it needs of keys.
func keyFunc(provider keys.Provider) func(context.Context, string) ([]byte, error) {
	return func(ctx context.Context, uri string) ([]byte, error) {
		secret, err := provider.Get(ctx, uri)
		if errors.Is(err, keys.ErrNotFound) {
			return nil, fmt.Errorf("%w: %s", image.ErrNoKey, uri)
		}
		if err != nil {
			return nil, err
		}
		return secret.Bytes(), nil
	}
}

// openFunc gives agent the one thing it needs of sealed secrets.
func openFunc(provider keys.Provider) func(context.Context, string) (string, error) {
	return func(ctx context.Context, text string) (string, error) {
		secret, err := sealed.Open(ctx, text, provider)
		if err != nil {
			return "", err
		}
		defer secret.Wipe()
		return string(secret.Bytes()), nil
	}
}

// gate turns the boot config's policy into a Gate; whatever is not known denies.
func gate(policy string) rpc.Gate {
	if policy == layout.PolicyAllowAll {
		return rpc.AllowAll
	}
	return rpc.DenyAll
}

func policyName(policy string) string {
	if policy == "" {
		return layout.PolicyDenyAll
	}
	return policy
}

func port(c *layout.BootConfig) uint32 {
	if c.Port == 0 {
		return layout.DefaultPort
	}
	return c.Port
}
