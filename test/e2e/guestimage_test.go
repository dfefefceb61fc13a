// SPDX-License-Identifier: Apache-2.0
// Copyright The Cloister Authors.

package e2e

import (
	"context"
	"io"
	"io/fs"
	"os"
	"path"
	"path/filepath"
	"strings"
	"testing"

	"github.com/cloister-cc/cloister/ctl"
	"github.com/cloister-cc/cloister/initramfs"
	"github.com/cloister-cc/cloister/internal/qemu"
	"github.com/cloister-cc/cloister/rpc/pb"
	"github.com/cloister-cc/cloister/test/story"
)

// The agent as init of a guest image that is not ours: it mounts what an init mounts, takes its settings from the
// kernel command line, runs a pod, offers its log and a shell on the ports that were asked for, and powers the machine off.
func TestInitOfAGuestImage(t *testing.T) {
	t.Parallel()
	w := need(t)
	work := t.TempDir()
	vm, err := qemu.Start(t.Context(), qemu.Config{
		Arch: w.Arch, Dir: w.Bed.QEMUDir, VsockBackend: w.Bed.VsockBackend, WorkDir: work, Vsock: true, Kernel: w.Bed.Kernel,
		Initrd: w.guestImage(t, work), Append: qemu.ConsoleArgs(w.Arch) + " agent.log=debug agent.log_vport=1025 agent.debug_console agent.debug_console_vport=1026 agent.unheard_of=1",
	})
	must(t, err)
	t.Cleanup(func() { _ = vm.Stop() })
	c, s := connect(t, vm)
	details, err := s.Details(t.Context())
	must(t, err)
	if !details.GetAgentDetails().GetInitDaemon() || !details.GetAgentDetails().GetSupportsSeccomp() {
		t.Errorf("details %v", details)
	}
	must(t, s.CreateSandbox(t.Context(), "pod", "story", nil))
	must(t, s.CreateContainer(t.Context(), ctl.Container{ID: "pod", Pause: true}))
	must(t, s.StartContainer(t.Context(), "pod"))
	stats, err := c.Agent().StatsContainer(t.Context(), &pb.StatsContainerRequest{ContainerId: "pod"})
	must(t, err)
	if stats.GetCgroupStats().GetMemoryStats().GetUsage().GetUsage() == 0 || stats.GetCgroupStats().GetPidsStats().GetCurrent() == 0 {
		t.Errorf("the container uses nothing: %v", stats)
	}
	if log := readLogPort(t, vm); !strings.Contains(log, `"setting":"agent.unheard_of"`) || !strings.Contains(log, `"msg":"container started"`) {
		t.Errorf("the log port says %q", log)
	}
	askConsole(t, vm)
	must(t, s.Signal(t.Context(), "pod", "", 9))
	if status, err := s.Wait(t.Context(), "pod", ""); err != nil || status != 128+9 {
		t.Errorf("the pause program ends with %d, %v", status, err)
	}
	must(t, s.RemoveContainer(t.Context(), "pod"))
	must(t, s.DestroySandbox(t.Context()))
	ctx, cancel := context.WithTimeout(t.Context(), bootTimeout)
	defer cancel()
	must(t, vm.Wait(ctx))
	if !strings.Contains(vm.Console(), "sandbox is destroyed, powering off") {
		t.Errorf("the console ends with %s", vm.Console()[max(0, len(vm.Console())-2000):])
	}
}

// guestImage writes an initramfs with preinit and, in a folder, the image.
func (w *world) guestImage(t *testing.T, dir string) string {
	t.Helper()
	preinit := filepath.Join(dir, "preinit")
	must(t, story.GoBuild(t.Context(), w.Arch, preinit, "github.com/cloister-cc/cloister/test/e2e/preinit"))
	var tree initramfs.Tree
	files := []initramfs.File{
		{Path: "/init", Mode: 0o755, Source: preinit},
		{Path: "/newroot", Mode: fs.ModeDir | 0o755},
		{Path: "/dev/console", Mode: fs.ModeDevice | fs.ModeCharDevice | 0o600, Major: 5, Minor: 1},
		{Path: "/image/sbin/init", Mode: 0o755, Source: w.Agent},
		{Path: "/image/usr/bin/crun", Mode: 0o755, Source: w.Bed.Crun},
		{Path: "/image/bin/sh", Mode: 0o755, Source: w.Bed.Busybox},
		{Path: "/image/etc/hostname", Mode: 0o644, Data: []byte("guest\n")},
		{Path: "/image/etc/resolv.conf", Mode: 0o644, Data: nil},
	}
	for _, d := range []string{"proc", "sys", "dev", "run", "tmp"} {
		files = append(files, initramfs.File{Path: "/image/" + d, Mode: fs.ModeDir | 0o755})
	}
	want, err := initramfs.GuestModules(w.Arch)
	must(t, err)
	closure, err := initramfs.Resolve(w.Bed.ModulesDir, want)
	must(t, err)
	var order strings.Builder
	for _, m := range closure.Modules {
		files = append(files, initramfs.File{Path: path.Join("/modules", m.File), Mode: 0o644, Data: m.Data})
		order.WriteString(m.File + "\n")
	}
	files = append(files, initramfs.File{Path: "/modules/order", Mode: 0o644, Data: []byte(order.String())})
	for _, f := range files {
		must(t, tree.Add(f))
	}
	out, err := os.Create(filepath.Join(dir, "initramfs"))
	must(t, err)
	must(t, tree.WriteImage(t.Context(), out, initramfs.CompressNone))
	must(t, out.Close())
	return out.Name()
}

// readLogPort returns what the log port offers at once.
func readLogPort(t *testing.T, vm *qemu.VM) string {
	t.Helper()
	conn := dialPort(t, vm, 1025)
	var all strings.Builder
	buf := make([]byte, 64<<10)
	for !strings.Contains(all.String(), `"msg":"container started"`) {
		n, err := conn.Read(buf)
		must(t, err)
		all.Write(buf[:n])
	}
	return all.String()
}

// askConsole has the shell of the debug console calculate.
func askConsole(t *testing.T, vm *qemu.VM) {
	t.Helper()
	conn := dialPort(t, vm, 1026)
	var all strings.Builder
	asked := false
	buf := make([]byte, 4096)
	for !strings.Contains(all.String(), "answer 42 of guest") {
		n, err := conn.Read(buf)
		if err != nil {
			t.Fatalf("the console says %q: %v", all.String(), err)
		}
		all.Write(buf[:n])
		if !asked && strings.Contains(all.String(), "# ") { // what comes before its prompt, the shell drops
			_, err := conn.Write([]byte("read h </proc/sys/kernel/hostname; echo answer $((40+2)) of $h\n"))
			must(t, err)
			asked = true
		}
	}
}

// wantClosedPorts: a guest of ours has neither log port nor console unless it was built with them.
func wantClosedPorts(t *testing.T, vm *qemu.VM) {
	t.Helper()
	for _, port := range []int{1025, 1026} {
		if answer, err := io.ReadAll(dialPort(t, vm, port)); strings.HasPrefix(string(answer), "OK") {
			t.Errorf("port %d answers %q, %v", port, answer, err)
		}
	}
}
