// SPDX-License-Identifier: Apache-2.0
// Copyright The Cloister Authors.

package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"
	"syscall"
	"time"

	"github.com/cloister-cc/cloister/ctl"
)

const (
	// pairs is how often the agent and what it is compared with take turns.
	pairs = 40
	// manyContainers run at the same time in the end, of which the first and the last someContainers are compared.
	manyContainers, someContainers = 500, 50
)

func (n *native) container(id string, args ...string) ctl.Container {
	return ctl.Container{ID: id, SandboxID: sandboxID, Image: n.image, Process: ctl.Process{Args: args}}
}

// steps runs functions until one fails.
func steps(all ...func() error) error {
	for _, f := range all {
		if err := f(); err != nil {
			return err
		}
	}
	return nil
}

// time adds how long f takes, in microseconds.
func (t *table) time(name string, f func() error) error {
	start := time.Now()
	err := f()
	t.add(name, "µs", time.Since(start).Microseconds())
	return err
}

// step returns f with a row of its own, if name is not empty.
func (t *table) step(name, what string, f func() error) func() error {
	return func() error {
		if name == "" {
			return f()
		}
		return t.time(name+": "+what, f)
	}
}

// cycle takes a container through its whole life; each request has a row of its own, if name is not empty.
func (n *native) cycle(ctx context.Context, name, id string) error {
	s := n.session
	return steps(
		n.step(name, "create", func() error { return s.CreateContainer(ctx, n.container(id, "/bin/true")) }),
		n.step(name, "start", func() error { return s.StartContainer(ctx, id) }),
		n.step(name, "wait", func() error { _, err := s.Wait(ctx, id, ""); return err }),
		n.step(name, "remove", func() error { return s.RemoveContainer(ctx, id) }),
	)
}

// bare runs crun as the agent does.
func (n *native) bare(ctx context.Context, args ...string) error {
	command := args[0]
	args = append([]string{"--root", filepath.Join(n.dir, "crun"), "--cgroup-manager=" + n.cgroupManager()}, args...)
	cmd := exec.CommandContext(ctx, n.crun, args...)
	var text strings.Builder
	if command != "create" {
		cmd.Stderr = &text
	}
	if err := cmd.Run(); err != nil {
		return fmt.Errorf("crun %s: %w: %s", command, err, text.String())
	}
	return nil
}

// cgroupManager is what the agent gives crun, see agent/runtime: none at all where the machine has no cgroup v2.
func (n *native) cgroupManager() string {
	if _, err := os.Stat("/sys/fs/cgroup/cgroup.controllers"); err != nil {
		return "disabled"
	}
	return "cgroupfs"
}

// bareCycle does with the bare runtime what cycle does with the agent: the same config.json and root file system.
func (n *native) bareCycle(ctx context.Context, name, bundle, id string) error {
	pidFile := filepath.Join(n.dir, "pid")
	return steps(
		n.step(name, "create", func() error { return n.bare(ctx, "create", "--bundle", bundle, "--pid-file", pidFile, id) }),
		n.step(name, "start", func() error { return n.bare(ctx, "start", id) }),
		n.step(name, "wait", func() error { return reapBare(pidFile) }),
		n.step(name, "delete", func() error { return n.bare(ctx, "delete", id) }),
	)
}

// reapBare waits for a process whose parent this program has become.
func reapBare(pidFile string) error {
	text, err := os.ReadFile(pidFile)
	if err != nil {
		return err
	}
	pid, err := strconv.Atoi(strings.TrimSpace(string(text)))
	if err != nil {
		return err
	}
	for {
		var status syscall.WaitStatus
		_, err := syscall.Wait4(pid, &status, 0, nil)
		if !errors.Is(err, syscall.EINTR) {
			return err
		}
	}
}

// template is a container whose bundle the bare runtime uses.
const template = "template"

// life compares the life of a container that runs true.
func (n *native) life(ctx context.Context) error {
	if err := n.time("pull busybox, create", func() error { return n.session.CreateContainer(ctx, n.container(template, "/bin/true")) }); err != nil {
		return err
	}
	bundle := filepath.Join(agentRunDir, template)
	for i := range pairs {
		id := fmt.Sprintf("life-%d", i)
		err := steps(
			func() error { return n.time("container, agent", func() error { return n.cycle(ctx, "", id) }) },
			func() error {
				return n.time("container, bare crun", func() error { return n.bareCycle(ctx, "", bundle, id) })
			},
			func() error { return n.cycle(ctx, "agent", id+"-steps") },
			func() error { return n.bareCycle(ctx, "bare crun", bundle, id) },
		)
		if err != nil {
			return err
		}
	}
	n.compare("container", "container, agent", "container, bare crun")
	return n.session.RemoveContainer(ctx, template)
}

// compare adds the difference and the ratio of two medians.
func (t *table) compare(name, a, b string) {
	x, y := t.row(a), t.row(b)
	t.add(name+": difference", x.Unit, x.Median-y.Median)
	t.add(name+": ratio", "%", x.Median*100/max(y.Median, 1))
}

// execs compares a further process that runs true in a container that sleeps.
func (n *native) execs(ctx context.Context) error {
	const agent, bare = "sleeper", "bare-sleeper"
	bundle, pidFile := filepath.Join(agentRunDir, agent), filepath.Join(n.dir, "pid")
	err := steps(
		func() error { return n.session.CreateContainer(ctx, n.container(agent, "/bin/sleep", "1000000")) },
		func() error { return n.session.StartContainer(ctx, agent) },
		func() error { return n.bare(ctx, "create", "--bundle", bundle, "--pid-file", pidFile, bare) },
		func() error { return n.bare(ctx, "start", bare) },
	)
	for i := 0; i < pairs && err == nil; i++ {
		id := fmt.Sprintf("exec-%d", i)
		err = steps(
			func() error {
				return n.time("exec, agent", func() error {
					if err := n.session.Exec(ctx, agent, id, ctl.Process{Args: []string{"/bin/true"}}); err != nil {
						return err
					}
					_, err := n.session.Wait(ctx, agent, id)
					return err
				})
			},
			func() error {
				return n.time("exec, bare crun", func() error { return n.bare(ctx, "exec", bare, "/bin/true") })
			},
		)
	}
	if err != nil {
		return err
	}
	n.compare("exec", "exec, agent", "exec, bare crun")
	return steps(
		func() error { return n.bare(ctx, "delete", "--force", bare) },
		func() error { return reapBare(pidFile) },
		func() error { return n.session.RemoveContainer(ctx, agent) },
	)
}

// many measures what a container costs as there are more of them, with the bare runtime as the measure of what the
// kernel makes of that.
func (n *native) many(ctx context.Context) error {
	if err := n.session.CreateContainer(ctx, n.container(template, "/bin/true")); err != nil {
		return err
	}
	bundle := filepath.Join(agentRunDir, template)
	bare := func(when string) error {
		for i := range pairs / 4 {
			if err := n.time("bare crun, "+when, func() error { return n.bareCycle(ctx, "", bundle, fmt.Sprintf("m-%d", i)) }); err != nil {
				return err
			}
		}
		return nil
	}
	if err := errors.Join(n.memory("no container"), bare("no container")); err != nil {
		return err
	}
	first, last := fmt.Sprintf("create and start, first %d", someContainers), fmt.Sprintf("create and start, last %d of %d", someContainers, manyContainers)
	for i := range manyContainers {
		name := "create and start, others"
		switch {
		case i < someContainers:
			name = first
		case i >= manyContainers-someContainers:
			name = last
		}
		id := fmt.Sprintf("many-%d", i)
		if err := n.time(name, func() error {
			return errors.Join(n.session.CreateContainer(ctx, n.container(id, "/bin/sleep", "1000000")), n.session.StartContainer(ctx, id))
		}); err != nil {
			return err
		}
		if i == 99 {
			if err := n.memory("100 containers"); err != nil {
				return err
			}
		}
	}
	n.compare("create and start, last over first", last, first)
	when := fmt.Sprintf("%d containers", manyContainers)
	if err := errors.Join(n.memory(when), bare(when)); err != nil {
		return err
	}
	n.compare("bare crun, many over none", "bare crun, "+when, "bare crun, no container")
	for i := range manyContainers {
		if err := n.time("remove", func() error { return n.session.RemoveContainer(ctx, fmt.Sprintf("many-%d", i)) }); err != nil {
			return err
		}
	}
	return errors.Join(n.memory("after their removal"), n.session.RemoveContainer(ctx, template))
}

var rollup = regexp.MustCompile(`(?m)^(Rss|Pss): +([0-9]+) kB$`)

// memory adds what the agent takes, see proc_pid_smaps(5).
func (n *native) memory(when string) error {
	text, err := os.ReadFile(fmt.Sprintf("/proc/%d/smaps_rollup", n.pid))
	if err != nil {
		return err
	}
	for _, m := range rollup.FindAllStringSubmatch(string(text), -1) {
		n.add("agent "+strings.ToUpper(m[1])+", "+when, "KiB", number(m[2]))
	}
	return nil
}
