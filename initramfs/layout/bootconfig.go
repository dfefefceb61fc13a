// SPDX-License-Identifier: Apache-2.0
// Copyright The Cloister Authors.

package layout

import (
	"bytes"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"math"
	"path"
	"strings"
)

// BootConfigVersion is the only version of BootConfig that this code reads and writes.
const BootConfigVersion = 1

// MaxBootConfigSize bounds the boot config file, in bytes.
const MaxBootConfigSize = 1 << 20

// Policies that BootConfig.Policy can name. The empty string means PolicyDenyAll.
const (
	// PolicyDenyAll answers every request of the agent API with PERMISSION_DENIED, but those of the health service, and a
	// read of a stream with its end.
	PolicyDenyAll = "deny-all"
	// PolicyAllowAll lets every request of the host pass. It is for tests and demonstrations.
	PolicyAllowAll = "allow-all"
)

// MaxCommandLine bounds BootConfig.CommandLine, in bytes: what a kernel of s390x takes at most.
const MaxCommandLine = 4096

// BootConfig is the agent's configuration, JSON at BootConfigPath. Unknown fields are refused, so that a guest never
// starts with a setting that its agent does not understand. docs/boot-config.md describes each field.
type BootConfig struct {
	// Version is BootConfigVersion.
	Version int `json:"version"`
	// CommandLine is the kernel command line, 1 to MaxCommandLine bytes: the agent boots with this one only.
	CommandLine string `json:"command_line"`
	// Modules are the kernel modules to load, in order: file names in ModulesDir.
	Modules []Module `json:"modules"`
	// Root says how the root disk is found, unlocked and checked.
	Root Root `json:"root"`
	// Policy decides on requests of the host: PolicyDenyAll (also when empty) or PolicyAllowAll.
	Policy string `json:"policy,omitempty"`
	// Port is the vsock port of the agent API; 0 means DefaultPort.
	Port uint32 `json:"port,omitempty"`
	// LogLevel is debug, info, warn or error; empty means info.
	LogLevel string `json:"log_level,omitempty"`
	// LogPort is a vsock port on which the host can read the agent's log; 0 offers it on the console alone.
	LogPort uint32 `json:"log_port,omitempty"`
	// DebugConsole gives whoever connects to DebugConsolePort a shell in the guest, if its root file system has one. It is
	// for development: the guest has no secrets then.
	DebugConsole bool `json:"debug_console,omitempty"`
	// Privileged allows containers that reach out of themselves into the guest.
	Privileged bool `json:"privileged,omitempty"`
	// GuestHookPath is the folder of the root file system with hooks, which the host may name as guest_hook_path; empty
	// allows none.
	GuestHookPath string `json:"guest_hook_path,omitempty"`
	// ContainerPipeSize is the size of the pipes of containers' standard streams in bytes, at most MaxPipeSize; 0 means the
	// kernel's default.
	ContainerPipeSize int `json:"container_pipe_size,omitempty"`
	// Tracing writes an OpenTelemetry span of each request to the log.
	Tracing bool `json:"tracing,omitempty"`
	// Image says which images are used; the zero value allows none.
	Image ImageSettings `json:"image,omitzero"`
	// Images are container images in the root file system, at most MaxImages, each reference once. Containers start from
	// them without a registry, and no policy is asked: who sealed the guest chose them.
	Images []Image `json:"images,omitempty"`
}

// MaxPipeSize bounds BootConfig.ContainerPipeSize, in bytes.
const MaxPipeSize = 64 << 20

// DebugConsolePort is the vsock port of the debug console, which kata-runtime's exec expects.
const DebugConsolePort = 1026

// DefaultPort is the vsock port on which the Kata shim expects the agent API.
const DefaultPort = 1024

// anyPort is VMADDR_PORT_ANY of the kernel's linux/vm_sockets.h.
const anyPort = 1<<32 - 1

// Module is one kernel module.
type Module struct {
	// File is the module's file name in ModulesDir, for instance "dm-crypt.ko".
	File string `json:"file"`
	// Params are the module's parameters, as on modprobe's command line.
	Params string `json:"params,omitempty"`
	// Optional says that the boot goes on where the machine has no hardware for the module (ENODEV).
	Optional bool `json:"optional,omitempty"`
}

// Root describes the root disk: a LUKS2 container (dm-crypt) that holds an erofs image followed by its dm-verity
// hash tree. Every number is what the build host wrote; the disk's own header is only compared with the pinned copy.
type Root struct {
	// HeaderSize is the number of bytes at the start of the disk that must equal the file at DiskHeaderPath.
	HeaderSize int64 `json:"header_size"`
	// PayloadOffset is where the encrypted payload starts on the disk, in bytes.
	PayloadOffset int64 `json:"payload_offset"`
	// PayloadSize is the size of the encrypted payload in bytes.
	PayloadSize int64 `json:"payload_size"`
	// SectorSize is dm-crypt's sector size in bytes.
	SectorSize int `json:"sector_size"`
	// Verity describes the hash tree inside the decrypted payload.
	Verity Verity `json:"verity"`
}

// Verity are the dm-verity parameters of the root file system (hash type 1, sha256), see the kernel's
// Documentation/admin-guide/device-mapper/verity.rst.
type Verity struct {
	// RootHash is the root of the tree, 64 hexadecimal digits.
	RootHash string `json:"root_hash"`
	// Salt is hexadecimal, at most 512 digits; "" means none.
	Salt string `json:"salt"`
	// BlockSize is the size of data and hash blocks in bytes.
	BlockSize int `json:"block_size"`
	// DataBlocks is the number of data blocks: the file system's size divided by BlockSize.
	DataBlocks int64 `json:"data_blocks"`
	// HashOffset is where the tree's first hash block (after any superblock) starts in the payload, in bytes.
	HashOffset int64 `json:"hash_offset"`
}

// ParseBootConfig reads a boot config and checks it.
func ParseBootConfig(r io.Reader) (*BootConfig, error) {
	data, err := io.ReadAll(io.LimitReader(r, MaxBootConfigSize+1))
	if err != nil {
		return nil, fmt.Errorf("read boot config: %w", err)
	}
	if len(data) > MaxBootConfigSize {
		return nil, fmt.Errorf("boot config is larger than %d bytes", MaxBootConfigSize)
	}
	dec := json.NewDecoder(bytes.NewReader(data))
	dec.DisallowUnknownFields()
	var c BootConfig
	if err := dec.Decode(&c); err != nil {
		return nil, fmt.Errorf("parse boot config: %w", err)
	}
	if _, err := dec.Token(); !errors.Is(err, io.EOF) {
		return nil, errors.New("parse boot config: data after the JSON object")
	}
	if err := c.Validate(); err != nil {
		return nil, err
	}
	return &c, nil
}

// Encode writes the boot config as ParseBootConfig reads it.
func (c *BootConfig) Encode() ([]byte, error) {
	if err := c.Validate(); err != nil {
		return nil, err
	}
	data, err := json.MarshalIndent(c, "", "  ")
	if err != nil {
		return nil, fmt.Errorf("encode boot config: %w", err)
	}
	if len(data) >= MaxBootConfigSize {
		return nil, fmt.Errorf("boot config has %d bytes, at most %d are allowed", len(data)+1, MaxBootConfigSize)
	}
	return append(data, '\n'), nil
}

// Validate reports the first thing that is wrong with the boot config.
func (c *BootConfig) Validate() error {
	if c.Version != BootConfigVersion {
		return fmt.Errorf("boot config: version %d, this agent reads version %d", c.Version, BootConfigVersion)
	}
	if n := len(c.CommandLine); n == 0 || n > MaxCommandLine || strings.ContainsAny(c.CommandLine, "\x00\n") {
		return fmt.Errorf("boot config: command line of %d bytes is not one line of 1 to %d", n, MaxCommandLine)
	}
	for _, m := range c.Modules {
		if m.File == "" || m.File == "." || m.File == ".." || strings.ContainsAny(m.File, "/\x00") {
			return fmt.Errorf("boot config: module file name %q", m.File)
		}
	}
	switch c.Policy {
	case "", PolicyDenyAll, PolicyAllowAll:
	default:
		return fmt.Errorf("boot config: policy %q is neither %s nor %s", c.Policy, PolicyDenyAll, PolicyAllowAll)
	}
	switch c.LogLevel {
	case "", "debug", "info", "warn", "error":
	default:
		return fmt.Errorf("boot config: log level %q is none of debug, info, warn, error", c.LogLevel)
	}
	for _, port := range []uint32{c.Port, c.LogPort} {
		if port == anyPort {
			return fmt.Errorf("boot config: port %d would let the kernel choose one", port)
		}
	}
	if c.LogPort != 0 && (c.LogPort == c.Port || c.LogPort == DebugConsolePort || c.Port == 0 && c.LogPort == DefaultPort) {
		return fmt.Errorf("boot config: log port %d is the port of something else", c.LogPort)
	}
	if c.DebugConsole && c.Port == DebugConsolePort {
		return fmt.Errorf("boot config: port %d is that of the debug console", c.Port)
	}
	if p := c.GuestHookPath; p != "" && (!path.IsAbs(p) || path.Clean(p) != p || strings.ContainsRune(p, 0)) {
		return fmt.Errorf("boot config: guest hook path %q is not a clean absolute path", p)
	}
	if n := c.ContainerPipeSize; n < 0 || n > MaxPipeSize {
		return fmt.Errorf("boot config: container pipe size %d is not between 0 and %d bytes", n, MaxPipeSize)
	}
	if err := validateImages(c.Images); err != nil {
		return err
	}
	if err := c.Image.Validate(); err != nil {
		return fmt.Errorf("boot config: %w", err)
	}
	return c.Root.validate()
}

func (r *Root) validate() error {
	if r.SectorSize != 512 && r.SectorSize != 1024 && r.SectorSize != 2048 && r.SectorSize != 4096 {
		return fmt.Errorf("boot config: root sector size %d is none of 512, 1024, 2048, 4096", r.SectorSize)
	}
	sector := int64(r.SectorSize)
	if r.HeaderSize < 4096 || r.HeaderSize > 32<<20 || r.HeaderSize > r.PayloadOffset {
		return fmt.Errorf("boot config: root header size %d does not fit before the payload at %d", r.HeaderSize, r.PayloadOffset)
	}
	if r.PayloadOffset%sector != 0 || r.PayloadSize <= 0 || r.PayloadSize%sector != 0 {
		return fmt.Errorf("boot config: root payload (offset %d, size %d) is not whole sectors of %d bytes", r.PayloadOffset, r.PayloadSize, sector)
	}
	if r.PayloadSize > math.MaxInt64-r.PayloadOffset {
		return fmt.Errorf("boot config: root payload (offset %d, size %d) has no end", r.PayloadOffset, r.PayloadSize)
	}
	return r.Verity.validate(r.PayloadSize)
}

func (v *Verity) validate(payload int64) error {
	if h, err := hex.DecodeString(v.RootHash); err != nil || len(h) != 32 {
		return fmt.Errorf("boot config: verity root hash %q is not 64 hexadecimal digits", v.RootHash)
	}
	if s, err := hex.DecodeString(v.Salt); err != nil || len(s) > 256 {
		return errors.New("boot config: verity salt is not hexadecimal or longer than 256 bytes")
	}
	if v.BlockSize != 4096 {
		return fmt.Errorf("boot config: verity block size %d, only 4096 is supported", v.BlockSize)
	}
	block := int64(v.BlockSize)
	if v.DataBlocks <= 0 || v.DataBlocks > payload/block {
		return fmt.Errorf("boot config: %d verity data blocks do not fit a payload of %d bytes", v.DataBlocks, payload)
	}
	if v.HashOffset < v.DataBlocks*block || v.HashOffset >= payload || v.HashOffset%block != 0 {
		return fmt.Errorf("boot config: verity hash offset %d is not a block between data and end of the payload", v.HashOffset)
	}
	return nil
}
