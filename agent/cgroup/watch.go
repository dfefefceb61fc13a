// SPDX-License-Identifier: Apache-2.0
// Copyright The Cloister Authors.

package cgroup

import (
	"encoding/binary"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"os"
	"sync"

	"golang.org/x/sys/unix"
)

// errNoController means that a group has no memory controller, so that nobody counts its out-of-memory kills.
var errNoController = errors.New("cgroup has no memory controller")

const memoryEvents = "memory.events"

// Watcher tells when the kernel's out-of-memory killer has killed processes of groups. It has one inotify(7) instance
// and one goroutine however many groups it watches: a user has no more than 128 instances by default. Its methods may
// be called at the same time.
type Watcher struct {
	hierarchy Hierarchy
	log       *slog.Logger
	inotify   *os.File
	done      chan struct{}
	err       error // of the goroutine, valid after done

	mu      sync.Mutex
	closed  bool
	watches map[string]*watch
	byFile  map[int32]*watch // by the watch descriptors of both files
}

// watch is what a Watcher knows of a group. The Watcher's lock covers it.
type watch struct {
	path      string
	oom       func()
	files     []int32
	kills     uint64
	populated bool
}

// NewWatcher returns a Watcher that watches nothing yet. It logs what hinders it to log.
func NewWatcher(h Hierarchy, log *slog.Logger) (*Watcher, error) {
	fd, err := unix.InotifyInit1(unix.IN_CLOEXEC | unix.IN_NONBLOCK)
	if err != nil {
		return nil, fmt.Errorf("make inotify instance: %w", err)
	}
	w := &Watcher{
		hierarchy: h, log: log, inotify: os.NewFile(uintptr(fd), "inotify"), done: make(chan struct{}),
		watches: map[string]*watch{}, byFile: map[int32]*watch{},
	}
	go w.run()
	return w, nil
}

// Add watches a group: oom is called each time that the number of its processes killed for lack of memory is found
// higher than before, once for any number of them. The kills before Add do not count, so a group is best added before
// its first process runs. The watch ends by itself when the group's last process ends.
//
// oom runs on the Watcher's goroutine or in a call of Remove. It must return soon, and must not call Close.
//
// A group without a memory controller gives an error that wraps errNoController, one that is gone fs.ErrNotExist, and
// one that is watched already fs.ErrExist.
func (w *Watcher) Add(path string, oom func()) error {
	group, err := w.hierarchy.open(path)
	if err != nil {
		return fmt.Errorf("watch: %w", err)
	}
	defer func() { _ = group.Close() }()
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.closed {
		return fmt.Errorf("watch cgroup %s: %w", path, fs.ErrClosed)
	}
	if w.watches[path] != nil {
		return fmt.Errorf("watch cgroup %s: %w", path, fs.ErrExist)
	}
	x := &watch{path: path, oom: oom}
	if err := w.start(x, group); err != nil {
		w.forget(x)
		return fmt.Errorf("watch cgroup %s: %w", path, err)
	}
	w.watches[path] = x
	return nil
}

// start watches the files before it reads them, so that no change falls between.
func (w *Watcher) start(x *watch, group *os.Root) error {
	err := w.watchFile(x, group, eventsFile)
	if err != nil {
		return err
	}
	if err = w.watchFile(x, group, memoryEvents); errors.Is(err, fs.ErrNotExist) {
		if _, err := readFile(group, eventsFile); err != nil {
			return err // it is the group that is gone
		}
		return errNoController
	}
	if err != nil {
		return err
	}
	x.kills, x.populated, err = state(group)
	return err
}

// watchFile adds one file by an open descriptor of it, because a path could lead elsewhere by now.
func (w *Watcher) watchFile(x *watch, group *os.Root, name string) error {
	f, err := group.Open(name)
	if err != nil {
		return gone(err)
	}
	defer f.Close()
	wd := -1
	path := fmt.Sprintf("/proc/self/fd/%d", f.Fd())
	if cerr := w.control(func(fd int) { wd, err = unix.InotifyAddWatch(fd, path, unix.IN_MODIFY) }); cerr != nil {
		return cerr
	}
	if err != nil {
		return fmt.Errorf("watch %s: %w", name, err)
	}
	x.files = append(x.files, int32(wd))
	w.byFile[int32(wd)] = x
	return nil
}

// control calls f with the inotify instance, which stays open meanwhile.
func (w *Watcher) control(f func(fd int)) error {
	raw, err := w.inotify.SyscallConn()
	if err != nil {
		return err
	}
	return raw.Control(func(fd uintptr) { f(int(fd)) })
}

// Remove ends the watch of a group, if there is one. It looks at the group a last time first: the kernel may delay its
// events by 10 ms, and those of a group that is removed meanwhile never come.
func (w *Watcher) Remove(path string) {
	w.mu.Lock()
	x := w.watches[path]
	killed := false
	if x != nil {
		killed, _ = w.look(x)
		w.forget(x)
	}
	w.mu.Unlock()
	if killed {
		x.oom()
	}
}

// Close ends all watches and waits for a callback that runs. Its error is why watching ended early, if it did.
func (w *Watcher) Close() error {
	w.mu.Lock()
	first := !w.closed
	w.closed = true
	w.mu.Unlock()
	var err error
	if first {
		err = w.inotify.Close()
	}
	<-w.done
	return errors.Join(err, w.err)
}

// forget ends a watch. Its descriptors are invalid already where the group is gone.
func (w *Watcher) forget(x *watch) {
	if w.watches[x.path] == x {
		delete(w.watches, x.path)
	}
	for _, wd := range x.files {
		delete(w.byFile, wd)
		err := w.control(func(fd int) { _, _ = unix.InotifyRmWatch(fd, uint32(wd)) })
		if err != nil && !errors.Is(err, os.ErrClosed) {
			w.log.Warn("cannot end watch of cgroup", "cgroup", x.path, "error", err)
		}
	}
	x.files = nil
}

// run reads events until Close.
func (w *Watcher) run() {
	defer close(w.done)
	buf := make([]byte, 16<<10)
	for {
		n, err := w.inotify.Read(buf)
		if errors.Is(err, os.ErrClosed) {
			return
		}
		var files []int32
		if err == nil {
			files, err = parseInotify(buf[:n])
		}
		if err != nil {
			w.err = fmt.Errorf("read inotify events: %w", err)
			w.log.Error("watch for out-of-memory kills ended", "error", w.err)
			return
		}
		for _, oom := range w.handle(files) {
			oom()
		}
	}
}

// handle looks at the groups of changed files and returns the callbacks that are due. The descriptor -1 says that
// events were lost, so that any group may have changed.
func (w *Watcher) handle(files []int32) (due []func()) {
	w.mu.Lock()
	defer w.mu.Unlock()
	changed := map[*watch]bool{}
	for _, wd := range files {
		if wd == -1 {
			for _, x := range w.watches {
				changed[x] = true
			}
		} else if x := w.byFile[wd]; x != nil {
			changed[x] = true
		}
	}
	for x := range changed {
		killed, ended := w.look(x)
		if killed {
			due = append(due, x.oom)
		}
		if ended {
			w.forget(x)
		}
	}
	return due
}

// look reads a group's files and reports whether processes were killed since the last look, and whether its last
// process is gone.
func (w *Watcher) look(x *watch) (killed, ended bool) {
	group, err := w.hierarchy.open(x.path)
	if err == nil {
		defer func() { _ = group.Close() }()
		var kills uint64
		var populated bool
		if kills, populated, err = state(group); err == nil {
			killed, ended = kills > x.kills, x.populated && !populated
			x.kills, x.populated = kills, populated
			return killed, ended
		}
	}
	if errors.Is(err, fs.ErrNotExist) {
		return false, true
	}
	w.log.Warn("cannot look for out-of-memory kills", "cgroup", x.path, "error", err)
	return false, false
}

// state returns how many kills for lack of memory a group has had, by process and by group, and whether it has
// processes. It reads the latter first: the last process may be one that was killed.
func state(group *os.Root) (kills uint64, populated bool, err error) {
	data, err := readFile(group, eventsFile)
	if err != nil {
		return 0, false, err
	}
	p, err := eventValue(data, "populated")
	if err != nil {
		return 0, false, err
	}
	if data, err = readFile(group, memoryEvents); err != nil {
		return 0, false, err
	}
	values, err := parseFlat(data)
	if err != nil {
		return 0, false, fmt.Errorf("parse %s: %w", memoryEvents, err)
	}
	return values["oom_kill"] + values["oom_group_kill"], p == 1, nil
}

// parseInotify returns the watch descriptors of inotify(7) events. Each is a descriptor, a mask and a cookie of 32
// bits each, the length of the name that follows, and the name; files have none.
func parseInotify(data []byte) ([]int32, error) {
	var files []int32
	for len(data) > 0 {
		var e unix.InotifyEvent
		n, err := binary.Decode(data, binary.NativeEndian, &e)
		if err != nil || uint64(e.Len) > uint64(len(data)-n) {
			return nil, errors.New("short event")
		}
		files = append(files, e.Wd)
		data = data[n+int(e.Len):]
	}
	return files, nil
}
