// SPDX-License-Identifier: Apache-2.0
// Copyright The Cloister Authors.

package runtime

import (
	"fmt"
	"maps"
	"os"
	"os/exec"
	"os/signal"
	"slices"
	"strconv"
	"strings"
	"time"

	"golang.org/x/sys/unix"
)

// inContainer is the first argument of this test binary when it runs as a container's process.
const inContainer = "in-container"

// containerMain is the program in the test's containers, since the guest has no other.
func containerMain(args []string) int {
	switch args[0] {
	case "serve":
		return serve("serving\n")
	case "tell-and-serve":
		return serve(toldText())
	case "tell":
		_, _ = os.Stdout.WriteString(toldText())
		return 5
	case "probe":
		return probe()
	case "terminal":
		return terminalMain()
	case "pipes":
		return pipesMain()
	case "eat":
		return eat()
	case "hunt":
		return hunt()
	case "attack":
		return attack()
	case "attack-as-owner":
		return attackAsOwner()
	case "leave-behind":
		child := exec.Command("/proc/self/exe", inContainer, "hold")
		child.Stdout = os.Stdout
		if err := child.Start(); err != nil {
			return 98
		}
		_, _ = os.Stdout.WriteString("left\n")
		return 0
	case "hold":
		time.Sleep(time.Hour)
	}
	return 99
}

// serve says text and waits for SIGTERM.
func serve(text string) int {
	term := make(chan os.Signal, 1)
	signal.Notify(term, unix.SIGTERM)
	_, _ = os.Stdout.WriteString(text)
	<-term
	return 3
}

// tell returns what a process sees of its surroundings.
func tell() map[string]string {
	told := map[string]string{"number": strconv.Itoa(os.Getpid()), "uid": strconv.Itoa(os.Getuid()), "token": os.Getenv("TOKEN")}
	told["host"], _ = os.Hostname()
	for _, ns := range []string{"ipc", "uts", "pid", "net", "mnt", "cgroup"} {
		told[ns], _ = os.Readlink("/proc/self/ns/" + ns)
	}
	for key, path := range map[string]string{"shmmni": "/proc/sys/kernel/shmmni", "resolv": "/etc/resolv.conf"} {
		data, err := os.ReadFile(path)
		if err != nil {
			data = []byte(err.Error())
		}
		told[key] = strings.TrimSpace(string(data))
	}
	return told
}

func toldText() string {
	var text strings.Builder
	told := tell()
	for _, key := range slices.Sorted(maps.Keys(told)) {
		_, _ = fmt.Fprintf(&text, "%s=%s\n", key, told[key])
	}
	return text.String()
}

func parseTold(text string) map[string]string {
	told := make(map[string]string)
	for line := range strings.Lines(text) {
		key, value, _ := strings.Cut(strings.TrimSuffix(line, "\n"), "=")
		told[key] = value
	}
	return told
}
