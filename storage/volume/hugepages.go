// SPDX-License-Identifier: Apache-2.0
// Copyright The Cloister Authors.

package volume

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
)

// maxPages bounds the huge pages of one volume, so that sums of them do not overflow.
const maxPages = 1 << 40

// pools sets how many huge pages the kernel keeps (the kernel's admin-guide/mm/hugetlbpage). There is one pool for each
// page size, which all volumes share: it gets as many pages as all of them need together, where Kata's agent sets it to
// what the last one needs. Pages that the kernel was told to keep before are counted as part of that.
type pools struct {
	dir   string
	write func(name string, data []byte) error

	mu       sync.Mutex        // also held while the kernel looks for memory
	base     map[uint64]uint64 // what the kernel kept at first
	used     map[uint64]uint64
	reserved map[string]reservation
}

type reservation struct{ pageSize, pages uint64 }

func newPools(sysDir string) *pools {
	return &pools{
		dir:      filepath.Join(sysDir, "kernel/mm/hugepages"),
		write:    func(name string, data []byte) error { return os.WriteFile(name, data, 0) },
		base:     map[uint64]uint64{},
		used:     map[uint64]uint64{},
		reserved: map[string]reservation{},
	}
}

// reserve makes room for a volume's pages. The kernel may find less memory than it was asked for; that is an error.
func (p *pools) reserve(volume string, pageSize, pages uint64) error {
	if pages > maxPages {
		return fmt.Errorf("%w: %d huge pages", ErrInvalid, pages)
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	now, err := p.read(pageSize)
	if err != nil {
		return fmt.Errorf("huge pages of %d bytes: %w", pageSize, err)
	}
	if _, ok := p.base[pageSize]; !ok {
		p.base[pageSize] = now
	}
	want := p.used[pageSize] + pages
	if now < want {
		err := p.set(pageSize, want)
		got, readErr := p.read(pageSize)
		if err := errors.Join(err, readErr); err != nil {
			return fmt.Errorf("huge pages of %d bytes: %w", pageSize, err)
		}
		if got < want {
			err := fmt.Errorf("huge pages of %d bytes: %d of %d", pageSize, got, want)
			return errors.Join(err, p.set(pageSize, now))
		}
	}
	p.used[pageSize] = want
	p.reserved[volume] = reservation{pageSize, pages}
	return nil
}

// release gives back a volume's pages; those still in use go when they are free. Nothing reserved is no error.
func (p *pools) release(volume string) error {
	p.mu.Lock()
	defer p.mu.Unlock()
	r, ok := p.reserved[volume]
	if !ok {
		return nil
	}
	rest := p.used[r.pageSize] - r.pages
	if err := p.set(r.pageSize, max(rest, p.base[r.pageSize])); err != nil {
		return fmt.Errorf("huge pages of %d bytes: %w", r.pageSize, err)
	}
	p.used[r.pageSize] = rest
	delete(p.reserved, volume)
	return nil
}

func (p *pools) file(pageSize uint64) string {
	return filepath.Join(p.dir, fmt.Sprintf("hugepages-%dkB", pageSize/1024), "nr_hugepages")
}

func (p *pools) read(pageSize uint64) (uint64, error) {
	data, err := os.ReadFile(p.file(pageSize))
	if err != nil {
		return 0, err
	}
	return strconv.ParseUint(strings.TrimSpace(string(data)), 10, 64)
}

func (p *pools) set(pageSize, pages uint64) error {
	return p.write(p.file(pageSize), []byte(strconv.FormatUint(pages, 10)))
}
