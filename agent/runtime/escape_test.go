// SPDX-License-Identifier: Apache-2.0
// Copyright The Cloister Authors.

package runtime

import (
	"bytes"
	"context"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"testing"

	specs "github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"

	"github.com/cloister-cc/cloister/agent"
	"github.com/cloister-cc/cloister/agent/oci"
)

// Attacks on the OCI runtime: it is root with every capability, works on an image and a spec of the attacker's, and becomes a
// process of the container on its way.

// craftedImages are images whose content an attacker has changed; it implements agent.Images.
type craftedImages struct {
	binaryImages
	craft func(rootfs string) error
}

func (i craftedImages) Mount(ctx context.Context, id, reference, target string) (digest string, err error) {
	if digest, err = i.binaryImages.Mount(ctx, id, reference, target); err != nil {
		return "", err
	}
	return digest, i.craft(target)
}

// craftedPod makes a pod of which every image is crafted.
func craftedPod(t *testing.T, craft func(rootfs string) error) *pod {
	t.Helper()
	return newPodWith(t, func(p *pod, c *agent.Config) { c.Images = craftedImages{p.images, craft} })
}

// procMount is for a container that mounts nothing else.
func procMount() specs.Mount {
	return specs.Mount{Destination: "/proc", Type: "proc", Options: []string{"nosuid", "noexec", "nodev"}}
}

// Threat: an image whose /dev is a link to a folder of the guest: crun looks for /dev without staying in the root file system,
// and would make its device nodes, links and the terminal's file there, and replace what is called ptmx. Seen: the folder
// stays as it was, whatever the spec mounts, and whether the image has such a folder too or not.
func TestImageWithLinkForDev(t *testing.T) {
	for name, mounts := range map[string][]specs.Mount{
		"default mounts": nil,
		"only proc":      {procMount()},
		"dev":            {procMount(), {Destination: "/dev", Type: "tmpfs", Options: []string{"nosuid", "mode=755"}}},
	} {
		for _, twin := range []bool{false, true} {
			t.Run(fmt.Sprintf("%s, folder in the image %t", name, twin), func(t *testing.T) {
				guest := t.TempDir()
				if err := os.WriteFile(filepath.Join(guest, "ptmx"), []byte("of the guest"), 0o600); err != nil {
					t.Fatal(err)
				}
				p := craftedPod(t, func(rootfs string) error {
					if twin {
						if err := os.MkdirAll(filepath.Join(rootfs, guest), 0o755); err != nil {
							return err
						}
					}
					dev := filepath.Join(rootfs, "dev")
					if err := os.Remove(dev); err != nil {
						return err
					}
					return os.Symlink(guest, dev)
				})
				c := busybox("c1", "exec sleep 1000")
				c.Spec.Mounts = mounts
				c.Spec.Process.Terminal = true
				if err := p.CreateContainer(t.Context(), c); err == nil {
					t.Error("the container was created")
				}
				if entries, err := os.ReadDir(guest); err != nil || len(entries) != 1 {
					t.Errorf("the guest's folder has %v, %v", entries, err)
				}
				if data, err := os.ReadFile(filepath.Join(guest, "ptmx")); err != nil || string(data) != "of the guest" {
					t.Errorf("the guest's file is %q, %v", data, err)
				}
			})
		}
	}
}

// Threat: an image, and a volume that the host has prepared, put links in the place of /dev/null, /dev/ptmx and terminals,
// which crun opens and mounts in the container as root (CVE-2026-88264, CVE-2026-88265): directly, or by a link in the image
// through which the volume comes to lie on /dev/pts. Seen: /dev and /dev/pts are the container's own.
func TestImageWithItsOwnDev(t *testing.T) {
	p := craftedPod(t, func(rootfs string) error {
		dev := filepath.Join(rootfs, "dev")
		if err := os.Mkdir(filepath.Join(dev, "pts"), 0o755); err != nil {
			return err
		}
		for name, target := range map[string]string{"null": "/proc/self/fd/3", "ptmx": "/volume/ptmx", "tty": "/proc/1/mem"} {
			if err := os.Symlink(target, filepath.Join(dev, name)); err != nil {
				return err
			}
		}
		return os.Symlink("/dev/pts", filepath.Join(rootfs, "way"))
	})
	ctx := t.Context()
	for _, name := range []string{"ptmx", "0", "1"} {
		if err := p.CopyFile(ctx, p.hostFile("volume/"+name, unix.S_IFLNK|0o777, "/proc/sys/kernel/core_pattern")); err != nil {
			t.Fatal(err)
		}
	}
	c := busybox("c1", "tty; for n in null tty ptmx pts/ptmx; do [ -c /dev/$n ] && echo $n; done; ls -1 /dev/pts; "+
		"grep -c ' /dev/pts devpts' /proc/mounts; cut -d' ' -f2,3 /proc/mounts | grep '^/dev/console'; exec sleep 1000")
	volume := specs.Mount{Destination: "/way", Type: "bind", Source: filepath.Join(p.dir, oci.SharedDir, "volume"), Options: []string{"rbind"}}
	c.Spec.Mounts = []specs.Mount{procMount(), volume}
	c.Spec.Process.Terminal = true
	p.run(t, c)
	want := "/dev/pts/0\r\nnull\r\ntty\r\nptmx\r\npts/ptmx\r\n0\r\nptmx\r\n1\r\n/dev/console devpts\r\n"
	p.say(t, "c1", "", want)
	for _, on := range []string{"/dev", "/dev/pts"} {
		c.ID, volume.Destination = "c2", on
		c.Spec.Mounts = []specs.Mount{procMount(), volume}
		if err := p.CreateContainer(ctx, c); err == nil {
			t.Errorf("a container was created with a volume on %s", on)
		}
	}
}

// Threat: crun applies the container's system call filter to itself before it gives up its capabilities; a filter under which
// that only seems to work leaves them all to the container. Seen: no container under such a filter has a capability that its
// spec does not give it.
func TestFilterThatKeepsCapabilities(t *testing.T) {
	p := newPod(t)
	drop := []specs.LinuxSeccompArg{{Index: 0, Value: unix.PR_CAPBSET_DROP, Op: specs.OpEqualTo}}
	created := 0
	for i, action := range []specs.LinuxSyscall{
		{Action: specs.ActErrno, ErrnoRet: new(uint(0))},
		{Action: specs.ActErrno, ErrnoRet: new(uint(unix.EINVAL))},
		{Action: specs.ActErrno},
		{Action: specs.ActTrace, ErrnoRet: new(uint(0))},
		{Action: specs.ActTrap},
		{Action: specs.ActLog},
	} {
		for j, rule := range []specs.LinuxSyscall{
			{Names: []string{"prctl"}, Args: drop}, {Names: []string{"capset"}}, {Names: []string{"capset", "prctl"}},
		} {
			rule.Action, rule.ErrnoRet = action.Action, action.ErrnoRet
			c := busybox(fmt.Sprintf("c%d%d", i, j), "grep Cap[PEB] /proc/self/status; exec sleep 1000")
			c.Spec.Process.Capabilities = &specs.LinuxCapabilities{}
			c.Spec.Linux = &specs.Linux{Seccomp: &specs.LinuxSeccomp{DefaultAction: specs.ActAllow, Syscalls: []specs.LinuxSyscall{rule}}}
			if p.CreateContainer(t.Context(), c) != nil || p.StartContainer(t.Context(), c.ID) != nil {
				continue
			}
			created++
			const none = "0000000000000000\n"
			p.say(t, c.ID, "", "CapPrm:\t"+none+"CapEff:\t"+none+"CapBnd:\t"+none)
		}
	}
	if created == 0 {
		t.Error("no filter was taken, so nothing was tested")
	}
}

// hunt tries to get at other processes for as long as it runs, and says what it got if those can do more than itself.
func hunt() int {
	own, _ := permitted("self")
	_, _ = fmt.Println("hunting")
	for {
		entries, _ := os.ReadDir("/proc")
		for _, e := range entries {
			pid, err := strconv.Atoi(e.Name())
			if err != nil || pid == os.Getpid() {
				continue
			}
			more := func() bool {
				caps, err := permitted(e.Name())
				return err == nil && caps&^own != 0
			}
			if !more() {
				continue
			}
			fds, _ := os.ReadDir("/proc/" + e.Name() + "/fd")
			for _, fd := range fds {
				if link, err := os.Readlink("/proc/" + e.Name() + "/fd/" + fd.Name()); err == nil && more() {
					_, _ = fmt.Printf("file %s of process %d\n", link, pid)
				}
			}
			// The kernel asks the same of who opens a process's memory as of who traces it, which would hold it up.
			if mem, err := os.OpenFile("/proc/"+e.Name()+"/mem", os.O_RDWR, 0); err == nil {
				if more() { // it had not given up its capabilities meanwhile
					_, _ = fmt.Printf("memory of process %d\n", pid)
				}
				_ = mem.Close()
			}
		}
	}
}

// permitted returns the capabilities of a process.
func permitted(pid string) (caps uint64, err error) {
	status, err := os.ReadFile("/proc/" + pid + "/status")
	if err != nil {
		return 0, err
	}
	_, after, _ := strings.Cut(string(status), "\nCapPrm:\t")
	line, _, _ := strings.Cut(after, "\n")
	return strconv.ParseUint(line, 16, 64)
}

// Threat: crun is a process in the container's PID namespace, still with every capability and with files of the guest open,
// when it starts a further process, or a container that shares the namespace; a process of the container takes it over.
// Seen: CAP_SYS_PTRACE, by which that works, is refused, and without it neither memory nor an open file of it is found.
func TestContainerThatHuntsTheRuntime(t *testing.T) {
	p := newPod(t)
	hunter := agent.ContainerConfig{
		ID: "hunter",
		Spec: &specs.Spec{Process: &specs.Process{
			Args: []string{"/program", inContainer, "hunt"}, Cwd: "/", Capabilities: capabilities("CAP_SYS_PTRACE"),
		}},
		Storages: []agent.Storage{{Driver: agent.DriverImageGuestPull, Source: "registry.example/app:1"}},
	}
	if err := p.CreateContainer(t.Context(), hunter); err == nil {
		t.Fatal("a container was created that may trace")
	}
	hunter.Spec.Process.Capabilities = capabilities(withinBounds(t, []string{"CAP_SYS_RESOURCE", "CAP_CHECKPOINT_RESTORE", "CAP_SETPCAP", "CAP_KILL"})...)
	p.run(t, hunter)
	p.say(t, "hunter", "", "hunting\n")
	for i := range sample(30, 5, 300) {
		id := "e" + strconv.Itoa(i)
		if err := p.Exec(t.Context(), "hunter", id, &specs.Process{Args: []string{"/program", inContainer, "tell"}}); err != nil {
			t.Fatal(err)
		}
		c := inProgram("c"+strconv.Itoa(i), "tell")
		c.SandboxPIDNS = true
		p.run(t, c)
		for _, process := range []struct{ id, exec string }{{"hunter", id}, {c.ID, ""}} {
			p.wantStatus(t, process.id, process.exec, 5)
		}
		if err := p.RemoveContainer(t.Context(), c.ID, 0); err != nil {
			t.Fatal(err)
		}
	}
	if err := p.Signal(t.Context(), "hunter", "", 9); err != nil {
		t.Fatal(err)
	}
	if got := p.output(t, "hunter", ""); got != "" {
		t.Errorf("found:\n%s", got)
	}
}

func capabilities(names ...string) *specs.LinuxCapabilities {
	return &specs.LinuxCapabilities{Bounding: names, Effective: names, Permitted: names}
}

// Threat: the host has crun fail to close its files, by a filter, and names by them the program or the working folder of a
// process: by their parents, any folder of the guest. Seen: processes have their three streams and nothing else open, nothing of
// the agent's environment, and no program or folder of the guest.
func TestDescriptorsOfTheRuntime(t *testing.T) {
	t.Setenv("AGENTS_OWN", "canary")
	p := newPod(t)
	guest := filepath.Join(t.TempDir(), "busybox")
	if err := copyProgram(os.Getenv(busyboxEnv), guest); err != nil {
		t.Fatal(err)
	}
	keep := &specs.Linux{Seccomp: &specs.LinuxSeccomp{DefaultAction: specs.ActAllow, Syscalls: []specs.LinuxSyscall{
		{Names: []string{"close_range"}, Action: specs.ActErrno, ErrnoRet: new(uint(unix.EACCES))},
	}}}
	c := busybox("c1", "exec sleep 1000")
	c.Spec.Linux = keep
	p.run(t, c)
	if err := p.Exec(t.Context(), "c1", "sleeper", shell("exec sleep 1000")); err != nil {
		t.Fatal(err)
	}
	list := "for p in /proc/[0-9]*; do grep -q ^sleep $p/cmdline && ls $p/fd; done 2>/dev/null; cat /proc/*/environ | grep -c canary"
	if got := p.execShell(t, "c1", "list", list); got != "0\n1\n2\n0\n1\n2\n0\n" {
		t.Errorf("open files, and how often the agent's environment is there:\n%s", got)
	}
	for n := 3; n < 16; n++ {
		fd := fmt.Sprintf("/proc/self/fd/%d", n)
		out := fd + strings.Repeat("/..", 12)
		attempt := fmt.Sprintf("a%d", n)
		by := map[string]*specs.Process{
			"program": {Args: []string{out + guest, "sh", "-c", "echo escaped"}, Cwd: "/"},
			"parents": {Args: []string{"/busybox", "ls", filepath.Base(guest)}, Cwd: out + filepath.Dir(guest)},
			"folder":  {Args: []string{"/busybox", "sh", "-c", "pwd; ls"}, Cwd: fd},
		}
		for what, process := range by {
			if p.Exec(t.Context(), "c1", attempt+what, process) == nil {
				if got := p.output(t, "c1", attempt+what); strings.Contains(got, "escaped") || what != "folder" && got != "" {
					t.Errorf("exec, %s by %d: %q", what, n, got)
				}
			}
			c := busybox(attempt+what, "")
			c.Spec.Process, c.Spec.Linux = process, keep
			if p.CreateContainer(t.Context(), c) == nil && p.StartContainer(t.Context(), c.ID) == nil {
				if got := p.output(t, c.ID, ""); strings.Contains(got, "escaped") || what != "folder" && got != "" {
					t.Errorf("container, %s by %d: %q", what, n, got)
				}
			}
		}
	}
}

// Threat: a container has crun executed in it, by /proc/self/exe as its program, and writes to the file by what the kernel
// shows of the process (CVE-2019-5736). Seen: the guest's crun is what it was.
func TestContainerThatWritesToTheRuntime(t *testing.T) {
	p := newPod(t)
	crun := crunPath(t)
	before, err := os.ReadFile(crun)
	if err != nil {
		t.Fatal(err)
	}
	p.run(t, busybox("c1", "echo ready; while :; do for p in /proc/[0-9]*; do exec 3<$p/exe && echo >/proc/self/fd/3; done; done 2>/dev/null"))
	p.say(t, "c1", "", "ready\n")
	for i := range sample(20, 3, 200) {
		id := "e" + strconv.Itoa(i)
		if err := p.Exec(t.Context(), "c1", id, &specs.Process{Args: []string{"/proc/self/exe", "--version"}}); err != nil {
			continue
		}
		_ = p.output(t, "c1", id)
	}
	after, err := os.ReadFile(crun)
	if err != nil || !bytes.Equal(before, after) {
		t.Errorf("crun was changed, %v", err)
	}
}

// Threat: a container that may write to its control groups leaves them for others, makes groups in groups, and freezes itself,
// so that nobody else can act on it. Seen: it sees its own groups only, gets no device by a new one, and is removed in time.
func TestContainerWithWritableGroups(t *testing.T) {
	p := newPod(t)
	p.run(t, busybox("other", "exec sleep 1000"))
	c := busybox("c1", `grep ^0:: /proc/self/cgroup; cd /sys/fs/cgroup; ls -d ../other other containers 2>/dev/null
		mkdir sub; echo 0 > sub/cgroup.procs; mknod /dev/mem c 1 1 && cat /dev/mem >/dev/null 2>&1 && echo memory
		i=0; while [ $i -lt 20 ]; do mkdir n && cd n || break; i=$((i+1)); done; echo $i
		exec 3>/sys/fs/cgroup/cgroup.freeze; echo freezing; echo 1 >&3; exec sleep 1000`)
	c.Spec.Process.Capabilities = capabilities("CAP_MKNOD")
	c.Spec.Mounts = []specs.Mount{
		procMount(), {Destination: "/sys", Type: "sysfs", Options: []string{"ro"}}, {Destination: "/sys/fs/cgroup", Type: "cgroup", Options: []string{"rw"}},
	}
	p.run(t, c)
	p.say(t, "c1", "", "0::/\n20\nfreezing\n")
	ctx, cancel := context.WithTimeout(t.Context(), patience)
	defer cancel()
	if err := p.RemoveContainer(ctx, "c1", 0); err != nil {
		t.Error(err)
	}
	if got := p.execShell(t, "other", "e1", "echo lives"); got != "lives\n" {
		t.Errorf("the other container says %q", got)
	}
}
