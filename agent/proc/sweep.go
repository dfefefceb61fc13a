// SPDX-License-Identifier: Apache-2.0
// Copyright The Cloister Authors.

package proc

import (
	"bytes"
	"fmt"
	"maps"
	"os"
	"path/filepath"
	"strconv"
	"time"
)

// sweepInterval is the least time for which a zombie stands unclaimed before it is swept up.
const sweepInterval = 2 * time.Second

// zombie identifies a process by its pid and its start time, because pids come round again.
type zombie struct {
	pid   int
	start string
}

// sightings says when each unclaimed zombie was first seen.
type sightings map[zombie]time.Time

// update takes the result of one sweep and returns the pids that are due. While held, none is.
func (s sightings) update(now time.Time, zombies []zombie, held bool, claimed func(pid int) bool) (due []int) {
	old := maps.Clone(s)
	clear(s)
	for _, z := range zombies {
		if claimed(z.pid) {
			continue
		}
		first, again := old[z]
		switch {
		case !again:
			s[z] = now
		case held || now.Sub(first) < sweepInterval:
			s[z] = first
		default:
			due = append(due, z.pid)
		}
	}
	return due
}

// child is a child process, running or zombie.
type child struct {
	zombie
	exited bool
}

// findZombies returns the zombies below procDir (a proc file system, see proc_pid_stat(5)) whose parent is parent.
func findZombies(procDir string, parent int) ([]zombie, error) {
	children, err := findChildren(procDir, parent)
	var zombies []zombie
	for _, c := range children {
		if c.exited {
			zombies = append(zombies, c.zombie)
		}
	}
	return zombies, err
}

// findChildren returns the processes below procDir whose parent is parent.
func findChildren(procDir string, parent int) ([]child, error) {
	dir, err := os.Open(procDir)
	if err != nil {
		return nil, fmt.Errorf("open proc: %w", err)
	}
	names, err := dir.Readdirnames(-1)
	if cerr := dir.Close(); err == nil {
		err = cerr
	}
	if err != nil {
		return nil, fmt.Errorf("list processes: %w", err)
	}
	var children []child
	for _, name := range names {
		pid, err := strconv.Atoi(name)
		if err != nil {
			continue
		}
		stat, err := os.ReadFile(filepath.Join(procDir, name, "stat"))
		if err != nil {
			continue // it is gone
		}
		state, ppid, start, ok := parseStat(stat)
		if ok && ppid == parent {
			children = append(children, child{zombie{pid: pid, start: start}, state == "Z"})
		}
	}
	return children, nil
}

// parseStat reads state (field 3), parent (4) and start time (22) of /proc/PID/stat. The command name (field 2) is in
// parentheses and may hold parentheses and spaces of its own.
func parseStat(stat []byte) (state string, parent int, start string, ok bool) {
	end := bytes.LastIndexByte(stat, ')')
	if end < 0 {
		return "", 0, "", false
	}
	fields := bytes.Fields(stat[end+1:])
	if len(fields) < 20 {
		return "", 0, "", false
	}
	parent, err := strconv.Atoi(string(fields[1]))
	if err != nil {
		return "", 0, "", false
	}
	return string(fields[0]), parent, string(fields[19]), true
}
