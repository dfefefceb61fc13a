// SPDX-License-Identifier: Apache-2.0
// Copyright The Cloister Authors.

package unpack

import (
	"archive/tar"
	"io"
)

// Filter holds one layer against Limits, as Apply does, for code that makes something else of the layer than files.
type Filter struct{ f filter }

// NewFilter returns the filter of one layer.
func NewFilter(l Limits) *Filter { return &Filter{filter{limits: l.withDefaults()}} }

// Reader returns the layer's uncompressed tar stream, which fails with ErrLimit where it is too large.
func (f *Filter) Reader(r io.Reader) io.Reader {
	return &limitReader{r: r, left: f.f.limits.Size, limit: f.f.limits.Size}
}

// Accept looks at the header of the layer's next entry, whose name is clean as path.Clean makes it, before anything is
// made of it. An entry that is not accepted is left out. It changes the header where its type has another name, and gives
// hard links the capabilities of their files. Its errors are those of Apply.
func (f *Filter) Accept(h *tar.Header) (bool, error) { return f.f.accept(h) }

// Limits returns the limits, with defaults.
func (f *Filter) Limits() Limits { return f.f.limits }

// Stats say what the layer held so far.
func (f *Filter) Stats() Stats {
	return Stats{Size: f.f.size, Disk: f.f.disk, Entries: f.f.entries, Devices: f.f.devices}
}
