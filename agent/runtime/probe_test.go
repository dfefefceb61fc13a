// SPDX-License-Identifier: Apache-2.0
// Copyright The Cloister Authors.

package runtime

import (
	"bufio"
	"fmt"
	"os"
	"os/signal"
	"strings"

	"golang.org/x/sys/unix"
)

// probe tells, as a process of a container, what it is allowed.
func probe() int {
	told := make(map[string]string)
	status, _ := os.ReadFile("/proc/self/status")
	for line := range strings.Lines(string(status)) {
		if key, value, ok := strings.Cut(line, ":"); ok {
			told[key] = strings.Join(strings.Fields(value), " ")
		}
	}
	for key, path := range map[string]string{
		"uid_map": "/proc/self/uid_map", "oom": "/proc/self/oom_score_adj", "kcore": "/proc/kcore", "shmmni": "/proc/sys/kernel/shmmni",
		"ping": "/proc/sys/net/ipv4/ping_group_range",
	} {
		data, err := os.ReadFile(path)
		if err != nil {
			data = []byte(err.Error())
		}
		told[key] = strings.Join(strings.Fields(string(data[:min(len(data), 1000)])), " ")
	}
	var limit unix.Rlimit
	_ = unix.Getrlimit(unix.RLIMIT_CPU, &limit)
	told["cpu"] = fmt.Sprint(limit.Cur, limit.Max)
	told["mkdir"] = errno(unix.Mkdir("/made", 0o755))
	told["link"] = errno(unix.Symlink("/x", "/made-link"))
	told["sys"] = errno(unix.Access("/proc/sys/kernel/shmmni", unix.W_OK))
	told["cdi"] = errno(opens("/dev/cdi-null", unix.O_RDWR))
	told["null"] = errno(opens("/dev/null", unix.O_RDWR))
	told["mknod"] = errno(unix.Mknod("/dev/own", unix.S_IFCHR|0o600, int(unix.Mkdev(1, 11))))
	told["kmsg"] = errno(opens("/dev/own", unix.O_RDONLY))
	for key, value := range told {
		_, _ = fmt.Printf("%s=%s\n", key, value)
	}
	return 0
}

// errno is the number of a system call's error, 0 for none.
func errno(err error) string {
	if err == nil {
		return "0"
	}
	if e, ok := err.(unix.Errno); ok { //nolint:errorlint // a system call's own
		return fmt.Sprint(int(e))
	}
	return err.Error()
}

// terminalMain tells of its terminal: first what it is, then each size and each line, and 6 at the end of the input.
func terminalMain() int {
	sizes := make(chan os.Signal, 10)
	signal.Notify(sizes, unix.SIGWINCH)
	for fd := range 3 {
		if _, err := unix.IoctlGetTermios(fd, unix.TCGETS); err != nil {
			_, _ = fmt.Printf("%d is no terminal: %v\n", fd, err)
		}
	}
	tty, err := os.OpenFile("/dev/tty", os.O_RDWR, 0)
	if err != nil {
		_, _ = fmt.Printf("no controlling terminal: %v\n", err)
		return 97
	}
	size := func(what string) {
		w, err := unix.IoctlGetWinsize(int(tty.Fd()), unix.TIOCGWINSZ)
		if err == nil {
			_, _ = fmt.Printf("%s %dx%d\n", what, w.Row, w.Col)
		}
	}
	size("at first")
	go func() {
		for range sizes {
			size("now")
		}
	}()
	for lines := bufio.NewScanner(os.Stdin); lines.Scan(); {
		_, _ = fmt.Printf("line %s\n", lines.Text())
	}
	return 6
}

// pipesMain tells how much the pipes of its standard streams hold.
func pipesMain() int {
	for fd := range 3 {
		size, err := unix.FcntlInt(uintptr(fd), unix.F_GETPIPE_SZ, 0)
		_, _ = fmt.Println(size, err)
	}
	return 0
}

// eat uses more and more memory.
func eat() int {
	var all [][]byte
	for {
		piece := make([]byte, 1<<20)
		for i := range piece {
			piece[i] = byte(i)
		}
		all = append(all, piece)
		if len(all) > 1<<12 {
			return 96
		}
	}
}
