// SPDX-License-Identifier: Apache-2.0
// Copyright The Cloister Authors.

package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"time"

	"github.com/cloister-cc/cloister/client"
	"github.com/cloister-cc/cloister/ctl"
	"github.com/cloister-cc/cloister/guestimage"
	"github.com/cloister-cc/cloister/test/story"
)

const keyURI = "kbs:///default/image-key/bench"

// table is the result; later measurements add rows.
type table struct {
	Title string `json:"title"`
	Rows  []*row `json:"rows"`
}

// row is one measured thing over all runs.
type row struct {
	Name   string  `json:"name"`
	Unit   string  `json:"unit"`
	Median int64   `json:"median"`
	Min    int64   `json:"min"`
	Max    int64   `json:"max"`
	Values []int64 `json:"values"`
}

// row returns the row of that name; it is made if it is not there.
func (t *table) row(name string) *row {
	i := slices.IndexFunc(t.Rows, func(r *row) bool { return r.Name == name })
	if i < 0 {
		i = len(t.Rows)
		t.Rows = append(t.Rows, &row{Name: name})
	}
	return t.Rows[i]
}

func (t *table) add(name, unit string, value int64) {
	r := t.row(name)
	r.Unit = unit
	r.Values = append(r.Values, value)
	sorted := slices.Sorted(slices.Values(r.Values))
	r.Median, r.Min, r.Max = sorted[len(sorted)/2], sorted[0], sorted[len(sorted)-1]
}

func measure(ctx context.Context, arch string, runs int) (t *table, err error) {
	if runs < 1 {
		return nil, errors.New("--runs must be at least 1")
	}
	dir, err := os.MkdirTemp("", "cloister-bench-")
	if err != nil {
		return nil, err
	}
	defer func() { err = errors.Join(err, os.RemoveAll(dir)) }()
	lab, err := story.NewLab(ctx, arch, dir)
	if err != nil {
		return nil, err
	}
	defer func() { err = errors.Join(err, lab.Close()) }()
	key, err := story.NewImageKey(filepath.Join(dir, "image.key"))
	if err != nil {
		return nil, err
	}
	t = &table{Title: fmt.Sprintf("%s guest, %d runs", arch, runs)}
	guest, err := lab.BuildGuest(ctx, "guest", func(o *guestimage.Options) {
		o.ImageKeys = map[string]string{keyURI: key}
	})
	if err != nil {
		return nil, err
	}
	ref, err := lab.PushImage(ctx, lab.Registry, story.Image{Name: "bench", KeyURI: keyURI, KeyFile: key})
	if err != nil {
		return nil, err
	}
	if err := t.sizes(lab, guest); err != nil {
		return nil, err
	}
	for i := range runs {
		fmt.Fprintf(os.Stderr, "guest %d of %d\n", i+1, runs)
		if err := t.oneGuest(ctx, lab, guest, ref); err != nil {
			return nil, err
		}
	}
	if lab.Bed.Bootloader == "" { // nothing to seal
		return t, nil
	}
	return t, t.sealing(ctx, lab.Bed, runs)
}

func (t *table) sizes(lab *story.Lab, guest string) error {
	for name, path := range map[string]string{
		"size of agent":     lab.Agent,
		"size of initramfs": filepath.Join(guest, guestimage.InitramfsFile),
		"size of root disk": filepath.Join(guest, guestimage.DiskFile),
	} {
		info, err := os.Stat(path)
		if err != nil {
			return err
		}
		t.add(name, "KiB", info.Size()>>10)
	}
	slices.SortFunc(t.Rows, func(a, b *row) int { return len(a.Name) - len(b.Name) })
	return nil
}

// oneGuest boots a guest, runs containers in it and reads what the agent says about itself on the console.
func (t *table) oneGuest(ctx context.Context, lab *story.Lab, guest, ref string) (err error) {
	vm, err := lab.Boot(ctx, guest, nil)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, vm.Stop()) }()
	c, err := client.DialReady(ctx, vm.AgentAddress())
	if err != nil {
		return fmt.Errorf("%w\nconsole:\n%s", err, vm.Console())
	}
	defer func() { err = errors.Join(err, c.Close()) }()
	s := ctl.NewSession(c)
	if err := t.containers(ctx, s, ref); err != nil {
		return fmt.Errorf("%w\nconsole:\n%s", err, vm.Console())
	}
	if err := vm.Wait(ctx); err != nil {
		return err
	}
	return t.console(vm.Console())
}

func (t *table) containers(ctx context.Context, s *ctl.Session, ref string) error {
	if err := story.SetUpNetwork(ctx, s); err != nil {
		return err
	}
	if err := s.CreateSandbox(ctx, "bench", "bench", nil); err != nil {
		return err
	}
	sleep := func(id string) ctl.Container {
		return ctl.Container{ID: id, SandboxID: "bench", Image: ref, Process: ctl.Process{Args: []string{"/bin/sleep", "1000"}}}
	}
	for _, m := range []struct {
		name string
		run  func() error
	}{
		{"pull busybox, create", func() error { return s.CreateContainer(ctx, sleep("first")) }},
		{"start", func() error { return s.StartContainer(ctx, "first") }},
		{"create, image cached", func() error { return s.CreateContainer(ctx, sleep("second")) }},
		{"exec of true, wait", func() error {
			if err := s.Exec(ctx, "first", "exec-1", ctl.Process{Args: []string{"/bin/true"}}); err != nil {
				return err
			}
			_, err := s.Wait(ctx, "first", "exec-1")
			return err
		}},
		{"kill, wait", func() error {
			if err := s.Signal(ctx, "first", "", 9); err != nil {
				return err
			}
			_, err := s.Wait(ctx, "first", "")
			return err
		}},
		{"remove", func() error { return s.RemoveContainer(ctx, "first") }},
		{"destroy sandbox", func() error { return s.DestroySandbox(ctx) }},
	} {
		start := time.Now()
		if err := m.run(); err != nil {
			return fmt.Errorf("%s: %w", m.name, err)
		}
		t.add(m.name, "ms", time.Since(start).Milliseconds())
	}
	return nil
}

var (
	handover = regexp.MustCompile(`msg="cloister-agent starts".* handover_ms=(\d+)`)
	stage    = regexp.MustCompile(`msg="boot stage" stage=(\S+) ms=(\d+)`)
	served   = regexp.MustCompile(`msg="agent API is served".* up_ms=(\d+)`)
	memory   = regexp.MustCompile(`msg="agent memory" when=(\S+) rss_kib=(\d+) pss_kib=(\d+)`)
)

// console reads the agent's own figures.
func (t *table) console(text string) error {
	from, to := handover.FindStringSubmatch(text), served.FindStringSubmatch(text)
	if from == nil || to == nil {
		return fmt.Errorf("the console does not say when the agent started and served:\n%s", text)
	}
	t.add("kernel, until hand-over", "ms", number(from[1]))
	for _, m := range stage.FindAllStringSubmatch(text, -1) {
		t.add("stage "+m[1], "ms", number(m[2]))
	}
	t.add("hand-over to vsock listening", "ms", number(to[1])-number(from[1]))
	for _, m := range memory.FindAllStringSubmatch(text, -1) {
		t.add("agent RSS, "+m[1], "KiB", number(m[2]))
		t.add("agent PSS, "+m[1], "KiB", number(m[3]))
	}
	return nil
}

// number reads digits that a pattern has matched.
func number(digits string) int64 {
	n, err := strconv.ParseInt(digits, 10, 64)
	if err != nil {
		return -1
	}
	return n
}
