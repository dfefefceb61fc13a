// SPDX-License-Identifier: Apache-2.0
// Copyright The Cloister Authors.

package unpack

import (
	"context"
	"fmt"
	"io"

	"github.com/containerd/containerd/v2/pkg/archive"
	"github.com/containerd/log"
	"github.com/sirupsen/logrus"
)

// Stats say what a layer held.
type Stats struct {
	// Size is the sum of the sizes of its files in bytes.
	Size int64
	// Disk is about how many bytes the layer takes on a disk.
	Disk int64
	// Entries is the number of tar entries.
	Entries int
	// Devices is the number of device nodes that were left out.
	Devices int
	// Opaque says that the layer hides every layer below it.
	Opaque bool
}

// Apply writes the files of a tar stream below dir, which exists and is empty, with owners, modes, times and extended
// attributes (but trusted ones), and reads r to its end. It needs the rights of root. On error dir is left as it is.
func Apply(ctx context.Context, dir string, r io.Reader, l Limits) (Stats, error) {
	var opaque bool
	f := NewFilter(l)
	limited := f.Reader(r)
	quiet := logrus.New()
	quiet.SetOutput(io.Discard)
	_, err := archive.Apply(log.WithLogger(ctx, logrus.NewEntry(quiet)), dir, limited,
		archive.WithFilter(f.Accept), archive.WithConvertWhiteout(convertWhiteout(dir, &opaque)))
	if err != nil {
		return Stats{}, fmt.Errorf("unpack layer: %w", err)
	}
	// What follows the tar's end marker belongs to the digests.
	if _, err := io.Copy(io.Discard, limited); err != nil {
		return Stats{}, fmt.Errorf("unpack layer: %w", err)
	}
	stats := f.Stats()
	stats.Opaque = opaque
	return stats, nil
}
