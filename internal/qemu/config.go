// SPDX-License-Identifier: Apache-2.0
// Copyright The Cloister Authors.

package qemu

import (
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strconv"
	"strings"
)

// agentPort is the vsock port of the agent API.
const agentPort = 1024

// Defaults and bounds of Config.
const (
	defaultMemoryMiB = 1024
	maxMemoryMiB     = 64 * 1024
	defaultCPUs      = 1
	maxCPUs          = 64
	defaultCPU       = "max"
)

// Config says which guest to start. The zero value of an optional field means its default.
type Config struct {
	// Arch is the guest's architecture: s390x or amd64.
	Arch string
	// Dir is an unpacked QEMU (binaries in usr/bin, firmware in usr/share/qemu); "" means the one in PATH.
	Dir string
	// Kernel is the kernel image.
	Kernel string
	// Initrd is the initramfs; "" means none.
	Initrd string
	// Append is the kernel command line; "" where the kernel brings its own. ConsoleArgs of the architecture have to be
	// part of it.
	Append string
	// Disks are raw disk images that the guest may write, virtio-blk, in this order.
	Disks []string
	// ReadOnlyDisks are raw disk images that the guest cannot write; they come after Disks.
	ReadOnlyDisks []string
	// CPUs is the number of processors, 1 by default.
	CPUs int
	// CPU is QEMU's processor model with its properties, "max" by default.
	CPU string
	// MemoryMiB is the size of the guest's memory in MiB, 1024 by default.
	MemoryMiB int
	// Network gives the guest a virtio-net device in QEMU's user network: the host's loopback is 10.0.2.2, the guest
	// is 10.0.2.15/24, and nothing reaches the guest from outside.
	Network bool
	// Vsock gives the guest a vsock device.
	Vsock bool
	// VsockBackend is the vhost-device-vsock binary that serves the device; "" means the host kernel's /dev/vhost-vsock.
	VsockBackend string
	// Capture is a folder for what the host holds of the guest, see CaptureNetwork and the others; "" means none. The vsock
	// device must have a backend then.
	Capture string
	// WorkDir holds the sockets; it must exist, and its path be shorter than about 90 bytes.
	WorkDir string
	// Console gets what the guest writes to its console; nil means that it is only kept for VM.Console.
	Console io.Writer
}

// ConsoleArgs returns the kernel arguments of an architecture's console, and those that every guest of ours has.
func ConsoleArgs(arch string) string {
	console := "ttyS0"
	if arch == "s390x" {
		console = "ttysclp0"
	}
	return "console=" + console + " panic=-1 init_on_free=1"
}

// withDefaults checks the config and fills in the defaults.
func (c Config) withDefaults() (Config, error) {
	if _, err := machineOf(c.Arch); err != nil {
		return c, err
	}
	if c.MemoryMiB == 0 {
		c.MemoryMiB = defaultMemoryMiB
	}
	if c.CPUs == 0 {
		c.CPUs = defaultCPUs
	}
	if c.CPU == "" {
		c.CPU = defaultCPU
	}
	if c.MemoryMiB < 16 || c.MemoryMiB > maxMemoryMiB {
		return c, fmt.Errorf("memory of %d MiB is not between 16 and %d", c.MemoryMiB, maxMemoryMiB)
	}
	if c.CPUs < 1 || c.CPUs > maxCPUs {
		return c, fmt.Errorf("%d processors are not between 1 and %d", c.CPUs, maxCPUs)
	}
	if c.Console == nil {
		c.Console = io.Discard
	}
	return c, c.checkFiles()
}

func (c Config) checkFiles() error {
	files := append([]string{c.Kernel}, c.Disks...)
	files = append(files, c.ReadOnlyDisks...)
	if c.Initrd != "" {
		files = append(files, c.Initrd)
	}
	for _, f := range files {
		st, err := os.Stat(f)
		if err != nil {
			return err
		}
		if st.IsDir() {
			return fmt.Errorf("%s is a folder, not a file", f)
		}
	}
	if c.Capture != "" {
		if st, err := os.Stat(c.Capture); err != nil || !st.IsDir() {
			return fmt.Errorf("capture folder %q is not there", c.Capture)
		}
		if c.Vsock && c.VsockBackend == "" {
			return errors.New("vsock of the host kernel cannot be captured: give a backend")
		}
	}
	if !c.Vsock {
		return nil
	}
	if st, err := os.Stat(c.WorkDir); err != nil || !st.IsDir() {
		return fmt.Errorf("work folder %q is not there", c.WorkDir)
	}
	// sun_path of unix(7) has 108 bytes, the closing zero included.
	if n := len(c.agentSocket()); n > 107 {
		return fmt.Errorf("work folder %s: its socket's path would have %d bytes, at most 107 are possible: choose a shorter one", c.WorkDir, n)
	}
	return nil
}

func (c Config) agentSocket() string  { return filepath.Join(c.WorkDir, "vsock.sock") }
func (c Config) teeSocket() string    { return filepath.Join(c.WorkDir, "tee.sock") }
func (c Config) deviceSocket() string { return filepath.Join(c.WorkDir, "vhost.sock") }

// machine is what differs between architectures.
type machine struct {
	binary  string
	typ     string
	bus     string // suffix of virtio device names
	netOpts string
	vsock   string // device with the host kernel's vhost-vsock
	console []string
}

func machineOf(arch string) (machine, error) {
	switch arch {
	case "s390x":
		return machine{
			binary: "qemu-system-s390x", typ: "s390-ccw-virtio", bus: "ccw", vsock: "vhost-vsock-ccw",
			console: []string{"-device", "sclpconsole,chardev=c0"},
		}, nil
	case "amd64":
		return machine{
			// Without a boot ROM for the network card, which Debian has in a package of its own.
			binary: "qemu-system-x86_64", typ: "q35", bus: "pci", netOpts: ",romfile=", vsock: "vhost-vsock-pci",
			console: []string{"-serial", "chardev:c0"},
		}, nil
	default:
		return machine{}, fmt.Errorf("architecture %q is neither s390x nor amd64", arch)
	}
}

// args returns QEMU's arguments. cid is the guest's context id where the host kernel serves the vsock device.
func (c Config) args(cid uint32) ([]string, error) {
	m, err := machineOf(c.Arch)
	if err != nil {
		return nil, err
	}
	mem := strconv.Itoa(c.MemoryMiB) + "M"
	args := []string{
		"-accel", "tcg,thread=multi", "-cpu", c.CPU, "-smp", strconv.Itoa(c.CPUs),
		"-machine", m.typ + ",memory-backend=mem0",
		// Shared memory is what a vhost-user backend can map.
		"-object", "memory-backend-memfd,id=mem0,size=" + mem + ",share=on", "-m", mem,
		"-nodefaults", "-no-user-config", "-display", "none", "-no-reboot",
		"-chardev", "stdio,id=c0,signal=off",
	}
	args = append(args, m.console...)
	if c.Dir != "" {
		// Debian keeps the PC's firmware in a folder of its own.
		args = append(args, "-L", filepath.Join(c.Dir, "usr/share/qemu"), "-L", filepath.Join(c.Dir, "usr/share/seabios"))
	}
	switch {
	case c.Vsock && c.VsockBackend != "":
		args = append(args, "-chardev", "socket,id=vs,path="+escape(c.deviceSocket()), "-device", "vhost-user-vsock-pci,chardev=vs")
	case c.Vsock:
		args = append(args, "-device", m.vsock+",guest-cid="+strconv.FormatUint(uint64(cid), 10))
	}
	if c.Network {
		args = append(args, "-netdev", "user,id=n0", "-device", "virtio-net-"+m.bus+",netdev=n0"+m.netOpts)
	}
	for i, d := range c.Disks {
		args = append(args, diskArgs(m, "d"+strconv.Itoa(i), d, "")...)
	}
	for i, d := range c.ReadOnlyDisks {
		args = append(args, diskArgs(m, "r"+strconv.Itoa(i), d, ",read-only=on")...)
	}
	args = append(args, c.captureArgs()...)
	args = append(args, "-kernel", c.Kernel)
	if c.Append != "" {
		args = append(args, "-append", c.Append)
	}
	if c.Initrd != "" {
		args = append(args, "-initrd", c.Initrd)
	}
	return args, nil
}

// diskArgs attaches a raw image. The format is said and never guessed from what the guest wrote, and -blockdev takes
// the file name as it is, where -drive would see a protocol in a colon.
func diskArgs(m machine, id, path, option string) []string {
	return []string{
		"-blockdev", "driver=raw,node-name=" + id + option + ",file.driver=file,file.filename=" + escape(path),
		"-device", "virtio-blk-" + m.bus + ",drive=" + id + ",serial=" + id,
	}
}

// escape doubles commas, which part QEMU's options.
func escape(path string) string { return strings.ReplaceAll(path, ",", ",,") }
