// SPDX-License-Identifier: Apache-2.0
// Copyright The Cloister Authors.

package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"time"

	"golang.org/x/sync/errgroup"
)

// findPeers says what to do where a program is missing that the pull is compared with.
func findPeers() error {
	for _, name := range []string{"skopeo", "umoci"} {
		if _, err := exec.LookPath(name); err != nil {
			return fmt.Errorf("%s is not installed, which a pull is compared with: apt-get install skopeo umoci, "+
				"or measure without them (--peers=false): %w", name, err)
		}
	}
	return nil
}

// tools measures skopeo and umoci with the encrypted image of a reference, and returns how long pull and unpack take, with
// umoci's usual way and with its quickest, where it does not write down what it has unpacked.
func (b *imageBench) tools(ctx context.Context, fs scratch, reference string) (usual, quick time.Duration, err error) {
	dir, err := fs.folder(ctx)
	if err != nil {
		return 0, 0, err
	}
	defer func() { err = errors.Join(err, fs.leave(dir)) }()
	on := " (" + fs.name() + ")"
	layout := filepath.Join(dir, "layout") + ":1"
	skopeo, peak, err := timed(ctx, "skopeo", "copy", "--insecure-policy", "--src-cert-dir", b.certs, "--decryption-key", b.private,
		"docker://"+reference, "oci:"+layout)
	if err != nil {
		return 0, 0, err
	}
	b.add("skopeo copy"+on, "ms", skopeo.Milliseconds())
	b.add("skopeo: peak memory"+on, "KiB", peak)
	umoci, peak, err := timed(ctx, "umoci", "unpack", "--image", layout, filepath.Join(dir, "bundle"))
	if err != nil {
		return 0, 0, err
	}
	b.add("umoci unpack"+on, "ms", umoci.Milliseconds())
	b.add("umoci: peak memory"+on, "KiB", peak)
	raw, _, err := timed(ctx, "umoci", "raw", "unpack", "--image", layout, filepath.Join(dir, "rootfs"))
	if err != nil {
		return 0, 0, err
	}
	b.add("umoci raw unpack"+on, "ms", raw.Milliseconds())
	return skopeo + umoci, skopeo + raw, nil
}

// bareUnpack unpacks the plain layers with gzip and tar, as many at a time as the issue says, each into a folder.
func bareUnpack(ctx context.Context, fs scratch, img *plainImage) (took, cpu time.Duration, err error) {
	dir, err := fs.folder(ctx)
	if err != nil {
		return 0, 0, err
	}
	defer func() { err = errors.Join(err, fs.leave(dir)) }()
	used := make([]time.Duration, len(img.manifest.Layers))
	group, ctx := errgroup.WithContext(ctx)
	group.SetLimit(2)
	start := time.Now()
	for i, l := range img.manifest.Layers {
		group.Go(func() error {
			to := filepath.Join(dir, fmt.Sprint(i))
			if err := os.Mkdir(to, 0o755); err != nil {
				return err
			}
			cmd := exec.CommandContext(ctx, "sh", "-c", `gzip -dc "$1" | tar -x -C "$2"`, "sh", blobFile(img.layout, l.Digest), to)
			if text, err := cmd.CombinedOutput(); err != nil {
				return fmt.Errorf("gzip -dc | tar -x: %w\n%s", err, text)
			}
			used[i] = processorTime(cmd)
			return nil
		})
	}
	err = group.Wait()
	took = time.Since(start)
	for _, d := range used {
		cpu += d
	}
	return took, cpu, err
}
