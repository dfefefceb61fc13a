// SPDX-License-Identifier: Apache-2.0
// Copyright The Cloister Authors.

package layout

import (
	"bytes"
	"encoding/json"
	"math"
	"os"
	"reflect"
	"strings"
	"testing"
)

func validConfig() *BootConfig {
	return &BootConfig{
		Version:     BootConfigVersion,
		CommandLine: "console=ttysclp0 panic=-1",
		Modules:     []Module{{File: "virtio_blk.ko"}, {File: "dm-mod.ko", Params: "stats=0", Optional: true}},
		Root: Root{
			HeaderSize: 512 << 10, PayloadOffset: 512 << 10, PayloadSize: 103 * 4096, SectorSize: 4096,
			Verity: Verity{RootHash: strings.Repeat("0f", 32), Salt: "00ff", BlockSize: 4096, DataBlocks: 100, HashOffset: 101 * 4096},
		},
		Policy: PolicyDenyAll, Port: DefaultPort, LogLevel: "info",
	}
}

func TestBootConfigRoundTrip(t *testing.T) {
	t.Parallel()
	want := validConfig()
	data, err := want.Encode()
	if err != nil {
		t.Fatal(err)
	}
	got, err := ParseBootConfig(bytes.NewReader(data))
	if err != nil {
		t.Fatal(err)
	}
	if !reflect.DeepEqual(got, want) {
		t.Errorf("got %+v, want %+v", got, want)
	}
}

func TestBootConfigRefuses(t *testing.T) {
	t.Parallel()
	for name, tc := range map[string]struct {
		change func(*BootConfig)
		want   string
	}{
		"version":               {func(c *BootConfig) { c.Version = 2 }, "version 2"},
		"no version":            {func(c *BootConfig) { c.Version = 0 }, "version 0"},
		"no command line":       {func(c *BootConfig) { c.CommandLine = "" }, "command line"},
		"command line long":     {func(c *BootConfig) { c.CommandLine = strings.Repeat("a", 4097) }, "command line"},
		"command lines":         {func(c *BootConfig) { c.CommandLine = "a\nb" }, "command line"},
		"command line with NUL": {func(c *BootConfig) { c.CommandLine = "a\x00b" }, "command line"},
		"module without name":   {func(c *BootConfig) { c.Modules[0].File = "" }, "module file name"},
		"module elsewhere":      {func(c *BootConfig) { c.Modules[0].File = "../a.ko" }, "module file name"},
		"module is the folder":  {func(c *BootConfig) { c.Modules[0].File = ".." }, "module file name"},
		"module with NUL":       {func(c *BootConfig) { c.Modules[0].File = "a\x00" }, "module file name"},
		"policy":                {func(c *BootConfig) { c.Policy = "allow" }, "policy"},
		"log level":             {func(c *BootConfig) { c.LogLevel = "trace" }, "log level"},
		"log port of any":       {func(c *BootConfig) { c.LogPort = math.MaxUint32 }, "port"},
		"log port of the API":   {func(c *BootConfig) { c.LogPort = 1024 }, "log port"},
		"log port of a shell":   {func(c *BootConfig) { c.LogPort = 1026 }, "log port"},
		"port of a shell":       {func(c *BootConfig) { c.Port, c.DebugConsole = 1026, true }, "debug console"},
		"hooks nowhere":         {func(c *BootConfig) { c.GuestHookPath = "hooks" }, "guest hook path"},
		"hooks elsewhere":       {func(c *BootConfig) { c.GuestHookPath = "/usr/../run" }, "guest hook path"},
		"pipes negative":        {func(c *BootConfig) { c.ContainerPipeSize = -1 }, "pipe size"},
		"pipes huge":            {func(c *BootConfig) { c.ContainerPipeSize = 1 << 30 }, "pipe size"},
		"port of any":           {func(c *BootConfig) { c.Port = math.MaxUint32 }, "port"},
		"sector size":           {func(c *BootConfig) { c.Root.SectorSize = 0 }, "sector size"},
		"header small":          {func(c *BootConfig) { c.Root.HeaderSize = 0 }, "header size"},
		"header negative":       {func(c *BootConfig) { c.Root.HeaderSize = -4096 }, "header size"},
		"header huge":           {func(c *BootConfig) { c.Root.HeaderSize, c.Root.PayloadOffset = 64<<20, 64<<20 }, "header size"},
		"header over payload":   {func(c *BootConfig) { c.Root.HeaderSize += 4096 }, "header size"},
		"payload offset odd":    {func(c *BootConfig) { c.Root.PayloadOffset += 512 }, "whole sectors"},
		"payload size odd":      {func(c *BootConfig) { c.Root.PayloadSize++ }, "whole sectors"},
		"payload size zero":     {func(c *BootConfig) { c.Root.PayloadSize = 0 }, "whole sectors"},
		"payload size negative": {func(c *BootConfig) { c.Root.PayloadSize = -4096 }, "whole sectors"},
		"payload end overflows": {func(c *BootConfig) { c.Root.PayloadOffset = math.MaxInt64 &^ 4095 }, "payload"},
		"root hash short":       {func(c *BootConfig) { c.Root.Verity.RootHash = "00" }, "root hash"},
		"root hash no digits":   {func(c *BootConfig) { c.Root.Verity.RootHash = strings.Repeat("x", 64) }, "root hash"},
		"root hash with a word": {func(c *BootConfig) { c.Root.Verity.RootHash += " 1" }, "root hash"},
		"salt":                  {func(c *BootConfig) { c.Root.Verity.Salt = "- 1" }, "salt"},
		"salt long":             {func(c *BootConfig) { c.Root.Verity.Salt = strings.Repeat("00", 257) }, "salt"},
		"block size":            {func(c *BootConfig) { c.Root.Verity.BlockSize = 512 }, "block size"},
		"no data":               {func(c *BootConfig) { c.Root.Verity.DataBlocks = 0 }, "data blocks"},
		"too much data":         {func(c *BootConfig) { c.Root.Verity.DataBlocks = 104 }, "data blocks"},
		"data overflows":        {func(c *BootConfig) { c.Root.Verity.DataBlocks = math.MaxInt64 }, "data blocks"},
		"tree in the data":      {func(c *BootConfig) { c.Root.Verity.HashOffset = 99 * 4096 }, "hash offset"},
		"tree behind the end":   {func(c *BootConfig) { c.Root.Verity.HashOffset = 103 * 4096 }, "hash offset"},
		"tree between blocks":   {func(c *BootConfig) { c.Root.Verity.HashOffset += 512 }, "hash offset"},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			c := validConfig()
			tc.change(c)
			if _, err := c.Encode(); err == nil || !strings.Contains(err.Error(), tc.want) {
				t.Errorf("encode: error %v, want one with %q", err, tc.want)
			}
			data, err := json.Marshal(c) // what Encode refuses to write
			if err != nil {
				t.Fatal(err)
			}
			if _, err := ParseBootConfig(bytes.NewReader(data)); err == nil || !strings.Contains(err.Error(), tc.want) {
				t.Errorf("parse: error %v, want one with %q", err, tc.want)
			}
		})
	}
}

func TestParseBootConfigRefuses(t *testing.T) {
	t.Parallel()
	data, err := validConfig().Encode()
	if err != nil {
		t.Fatal(err)
	}
	good := string(data)
	for name, tc := range map[string]struct{ text, want string }{
		"empty":         {"", "parse boot config"},
		"cut":           {good[:len(good)/2], "parse boot config"},
		"unknown field": {strings.Replace(good, `"policy"`, `"polcy"`, 1), "unknown field"},
		"two objects":   {good + "{}", "data after"},
		"text after":    {good + "x", "data after"},
		"wrong type":    {strings.Replace(good, `"version": 1`, `"version": "1"`, 1), "parse boot config"},
		"port too big":  {strings.Replace(good, `"port": 1024`, `"port": 4294967296`, 1), "parse boot config"},
		"too large":     {good + strings.Repeat(" ", MaxBootConfigSize), "larger than"},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			if _, err := ParseBootConfig(strings.NewReader(tc.text)); err == nil || !strings.Contains(err.Error(), tc.want) {
				t.Errorf("error %v, want one with %q", err, tc.want)
			}
		})
	}
}

const docFile = "../../docs/boot-config.md"

// TestDocumentedExample parses the example of the documentation.
func TestDocumentedExample(t *testing.T) {
	t.Parallel()
	doc, err := os.ReadFile(docFile)
	if err != nil {
		t.Fatal(err)
	}
	_, rest, ok := strings.Cut(string(doc), "```json\n")
	example, _, closed := strings.Cut(rest, "```")
	if !ok || !closed {
		t.Fatal("the documentation holds no JSON example")
	}
	c, err := ParseBootConfig(strings.NewReader(example))
	if err != nil {
		t.Fatal(err)
	}
	encoded, err := c.Encode()
	if err != nil {
		t.Fatal(err)
	}
	if string(encoded) != example {
		t.Errorf("the example is not what the build host writes:\n%s", encoded)
	}
}

// TestEveryFieldIsDocumented looks for each JSON field, with its path, in the documentation's tables.
func TestEveryFieldIsDocumented(t *testing.T) {
	t.Parallel()
	doc, err := os.ReadFile(docFile)
	if err != nil {
		t.Fatal(err)
	}
	for _, field := range fields("", reflect.TypeFor[BootConfig]()) {
		if !strings.Contains(string(doc), "| `"+field+"` |") {
			t.Errorf("%s does not describe %s", docFile, field)
		}
	}
}

func fields(prefix string, typ reflect.Type) []string {
	var out []string
	for f := range typ.Fields() {
		name, _, _ := strings.Cut(f.Tag.Get("json"), ",")
		inner := f.Type
		if inner.Kind() == reflect.Slice {
			inner, name = inner.Elem(), name+"[]"
		}
		if inner.Kind() == reflect.Struct {
			out = append(out, fields(prefix+name+".", inner)...)
		} else {
			out = append(out, prefix+name)
		}
	}
	return out
}

func FuzzParseBootConfig(f *testing.F) {
	good, err := validConfig().Encode()
	if err != nil {
		f.Fatal(err)
	}
	f.Add(good)
	f.Add([]byte(`{"version":1}`))
	f.Add([]byte(`{"version":1,"root":{"sector_size":4096,"payload_offset":9223372036854771712,"header_size":4096,"payload_size":4096}}`))
	f.Add([]byte(`[]`))
	withImage := validConfig()
	withImage.Images = []Image{validImage("registry.test/a:1")}
	if good, err = withImage.Encode(); err != nil {
		f.Fatal(err)
	}
	f.Add(good)
	f.Fuzz(func(t *testing.T, data []byte) {
		c, err := ParseBootConfig(bytes.NewReader(data))
		if err != nil {
			return
		}
		r := c.Root
		if r.PayloadOffset < r.HeaderSize || r.PayloadOffset+r.PayloadSize <= r.PayloadOffset {
			t.Errorf("payload at %d, %d bytes, after a header of %d", r.PayloadOffset, r.PayloadSize, r.HeaderSize)
		}
		if v := r.Verity; v.HashOffset < v.DataBlocks*int64(v.BlockSize) || v.HashOffset >= r.PayloadSize {
			t.Errorf("tree at %d, %d blocks of data, %d bytes of payload", v.HashOffset, v.DataBlocks, r.PayloadSize)
		}
		for _, m := range c.Modules {
			if p := ModulePath(m.File); p != ModulesDir+"/"+m.File {
				t.Errorf("module %q lies at %s", m.File, p)
			}
		}
		again, err := c.Encode()
		if err != nil {
			t.Fatalf("what was parsed does not encode: %v", err)
		}
		c2, err := ParseBootConfig(bytes.NewReader(again))
		if err != nil {
			t.Fatalf("what was encoded does not parse: %v", err)
		}
		if len(c.Modules) == 0 { // null, [] and absent are the same
			c.Modules, c2.Modules = nil, nil
		}
		if len(c.Images) == 0 {
			c.Images, c2.Images = nil, nil
		}
		if !reflect.DeepEqual(c, c2) {
			t.Errorf("%+v became %+v", c, c2)
		}
	})
}
