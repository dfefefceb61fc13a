// SPDX-License-Identifier: Apache-2.0
// Copyright The Cloister Authors.

package verity

import (
	"bytes"
	"strings"
	"testing"

	"github.com/anatol/devmapper.go"
	"github.com/google/go-cmp/cmp"
)

func testParams() Params {
	return Params{
		Device: "/dev/dm-0", RootHash: bytes.Repeat([]byte{0xab}, 32), Salt: []byte{0x01, 0x02, 0xff},
		BlockSize: 4096, DataBlocks: 1000, HashOffset: 1001 * 4096, Name: "root",
	}
}

func TestTable(t *testing.T) {
	want := devmapper.VerityTable{
		Start: 0, Length: 4096000, HashType: 1, DataDevice: "/dev/dm-0", HashDevice: "/dev/dm-0",
		DataBlockSize: 4096, HashBlockSize: 4096, NumDataBlocks: 1000, HashStartBlock: 1001,
		Algorithm: "sha256", Digest: strings.Repeat("ab", 32), Salt: "0102ff",
	}
	got, err := testParams().table()
	if err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("table differs (-want +got):\n%s", diff)
	}
	p := testParams()
	p.Salt = nil
	if got, err := p.table(); err != nil || got.Salt != "-" {
		t.Errorf("no salt: %q, %v", got.Salt, err)
	}
}

func TestParams(t *testing.T) {
	for name, tc := range map[string]struct {
		change func(p *Params)
		want   string
	}{
		"device":           {func(p *Params) { p.Device = "/dev/vda 0 1 ignore_corruption" }, "device"},
		"name":             {func(p *Params) { p.Name = "a b" }, "device name"},
		"short hash":       {func(p *Params) { p.RootHash = p.RootHash[:31] }, "root hash has 31 bytes"},
		"no hash":          {func(p *Params) { p.RootHash = nil }, "root hash has 0 bytes"},
		"long salt":        {func(p *Params) { p.Salt = make([]byte, 257) }, "salt has 257 bytes"},
		"block size":       {func(p *Params) { p.BlockSize = 512 }, "block size 512"},
		"no data":          {func(p *Params) { p.DataBlocks = 0 }, "0 data blocks"},
		"negative data":    {func(p *Params) { p.DataBlocks = -1 }, "data blocks"},
		"overflow":         {func(p *Params) { p.DataBlocks = 1 << 52; p.HashOffset = 0 }, "data blocks"},
		"hash in the data": {func(p *Params) { p.HashOffset = 999 * 4096 }, "hash offset"},
		"hash unaligned":   {func(p *Params) { p.HashOffset++ }, "hash offset"},
		"negative offset":  {func(p *Params) { p.HashOffset = -4096 }, "hash offset"},
	} {
		t.Run(name, func(t *testing.T) {
			p := testParams()
			tc.change(&p)
			if _, err := Open(p); err == nil || !strings.Contains(err.Error(), tc.want) {
				t.Errorf("error %v, want %q", err, tc.want)
			}
		})
	}
}
