// SPDX-License-Identifier: Apache-2.0
// Copyright The Cloister Authors.

package rpc_test

import (
	"context"
	"crypto/sha256"
	"encoding/binary"
	"errors"
	"io"
	"log/slog"
	"math/rand/v2"
	"net"
	"os"
	"os/signal"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"
	"unicode/utf8"

	"github.com/containerd/ttrpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/emptypb"

	"github.com/cloister-cc/cloister/agent"
	"github.com/cloister-cc/cloister/agent/proc"
	"github.com/cloister-cc/cloister/storage/share"
	"github.com/cloister-cc/cloister/storage/volume"
)

// The first byte of a fuzz input says what is done with the requests that the others make.
const (
	flagBare       = 1 << iota // nothing is there yet; otherwise a sandbox and a running container are
	flagDenied                 // the gate denies everything
	flagConcurrent             // all requests at once
	flagFrames                 // in the end bytes that need not be frames, on a connection of their own
	flagRandom                 // after the input come random requests, which it decides too: a sandbox costs more than a request
)

const (
	// maxSteps bounds the requests of one input.
	maxSteps = 24
	// randomSteps are those that flagRandom adds.
	randomSteps = 100
)

// FuzzRequests: threat: requests of the host, in whatever order, that make the agent panic, hang, or touch what is not
// in its run folder. Seen: each one is answered in time by a bounded text, Check afterwards too, a denied one does not
// come through, no file outside has changed, and with the sandbox everything else is gone.
func FuzzRequests(f *testing.F) {
	for _, seed := range seeds() {
		f.Add(seed)
	}
	base := folder(f)
	handled := make(chan os.Signal, 1)
	signal.Notify(handled, syscall.SIGCHLD) // starts a goroutine that stays
	signal.Stop(handled)
	reaper, err := proc.New(slog.New(slog.DiscardHandler))
	if err != nil {
		f.Fatal(err)
	}
	f.Cleanup(func() { _ = reaper.Close() })
	all, template := methods(), newGenerator(nil, "")
	f.Fuzz(func(t *testing.T, data []byte) {
		dir, err := os.MkdirTemp(base, "") //nolint:usetesting // in memory, see folder
		if err != nil {
			t.Fatal(err)
		}
		defer func() { _ = os.RemoveAll(dir) }() // the whole of base is removed in the end
		if err := outside(dir); err != nil {
			t.Fatal(err)
		}
		before, err := picture(dir)
		if err != nil {
			t.Fatal(err)
		}
		goroutines := runtime.NumGoroutine()
		g := template
		g.source = &source{data: data}
		g.run = filepath.Join(dir, "run")
		flags := g.byte()
		b := newBed(t, dir, reaper, flags&flagDenied != 0)
		b.play(g, all, flags)
		b.close()
		settled(t, goroutines)
		if after, err := picture(dir); err != nil || after != before {
			t.Errorf("files outside of the run folder: %v\nbefore\n%safter\n%s", err, before, after)
		}
	})
}

// folder is in memory where that is possible: it makes the fuzzing twice as fast.
func folder(f *testing.F) string {
	f.Helper()
	dir, err := os.MkdirTemp("/dev/shm", "fuzz-")
	if err != nil {
		return f.TempDir()
	}
	f.Cleanup(func() {
		if err := os.RemoveAll(dir); err != nil {
			f.Error(err)
		}
	})
	return dir
}

// play sends the requests of an input.
func (b *bed) play(g generator, all []method, flags byte) {
	denied := flags&flagDenied != 0
	byName := func(name string) method {
		return all[slices.IndexFunc(all, func(m method) bool { return m.name == name })]
	}
	if flags&(flagBare|flagDenied) == 0 {
		quiet := generator{&source{}, b.run, ""}
		for _, name := range []string{"CreateSandbox", "CopyFile", "CreateContainer", "StartContainer"} {
			if err := b.call(byName(name), quiet.request(byName(name)), false); err != nil {
				b.t.Fatalf("%s: %v", name, err)
			}
		}
	}
	var wg sync.WaitGroup
	steps := maxSteps
	if flags&flagRandom != 0 {
		hash := sha256.Sum256(g.data)
		g.random = rand.New(rand.NewChaCha8(hash))
		steps += randomSteps
	}
	for n := 0; n < steps && (g.random != nil || len(g.data) > 0) && (flags&flagFrames == 0 || len(g.data) > 64); n++ {
		m := all[g.below(len(all))]
		raw := g.request(m)
		done := make(chan struct{})
		wg.Go(func() {
			defer close(done)
			_ = b.call(m, raw, denied) // it checks the answer
		})
		if flags&flagConcurrent != 0 {
			continue
		}
		if !slices.Contains([]string{"WaitProcess", "ReadStdout", "ReadStderr", "WriteStdin", "GetOOMEvent"}, m.name) {
			<-done
			continue
		}
		select {
		case <-done:
		case <-time.After(200 * time.Microsecond): // it may wait for what a later request does
		}
	}
	if flags&flagFrames != 0 {
		b.frames(g)
	}
	if err := b.call(byName("Check"), nil, false); err != nil {
		b.t.Errorf("Check: %v", err)
	}
	if err := b.call(byName("DestroySandbox"), nil, denied); err != nil && !denied {
		b.t.Errorf("DestroySandbox: %v", err)
	}
	wg.Wait() // nothing outlives the sandbox
}

// call sends one request and checks its answer.
func (b *bed) call(m method, raw []byte, denied bool) error {
	in, out := &emptypb.Empty{}, m.out.New().Interface()
	in.ProtoReflect().SetUnknown(raw)
	ctx, cancel := context.WithTimeout(context.Background(), answerTime)
	defer cancel()
	err := b.client.Call(ctx, m.service, m.name, in, out)
	if ctx.Err() != nil {
		b.t.Errorf("%s is not answered: %v", m.name, err)
		return err
	}
	if denied && m.service != "grpc.Health" && proto.Size(out) != 0 {
		b.t.Errorf("%s was denied and answered by %v", m.name, out)
	}
	if err == nil {
		return nil
	}
	text := status.Convert(err).Message()
	switch {
	case errors.Is(err, ttrpc.ErrClosed):
		b.t.Errorf("%s ends the connection", m.name)
	case strings.Contains(text, "internal error of the agent"), strings.Contains(text, "served without a request"):
		b.t.Errorf("%s panics: %s", m.name, text)
	case len(text) > 4200 || !utf8.ValidString(text):
		b.t.Errorf("%s is answered by %d bytes of text, %.4300q", m.name, len(text), text)
	case strings.Contains(text, "UTF-8") && status.Code(err) != codes.InvalidArgument:
		b.t.Errorf("the answer to %s cannot be encoded: %v", m.name, err)
	}
	return err
}

// frames writes requests with false headers, and whatever is left of the input.
func (b *bed) frames(g generator) {
	conn, err := dialUnix(b.address)
	if err != nil {
		b.t.Fatal(err)
	}
	defer func() { _ = conn.Close() }()
	_ = conn.SetDeadline(time.Now().Add(answerTime))
	for id := uint32(1); len(g.data) > 0; id += 2 {
		head := g.byte()
		payload, err := proto.Marshal(&ttrpc.Request{Service: "grpc.AgentService", Method: "StatsContainer", Payload: g.take(g.below(40))})
		if err != nil {
			b.t.Fatal(err)
		}
		frame := binary.BigEndian.AppendUint32(nil, uint32(len(payload)))
		frame = append(binary.BigEndian.AppendUint32(frame, id), 1, 0)
		frame = append(frame, payload...)
		if head < 128 {
			frame[int(head)%len(frame)] ^= g.byte()
		}
		if _, err := conn.Write(frame); err != nil {
			break // the agent has dropped the connection
		}
	}
	_ = conn.CloseWrite() // fails if the agent has dropped the connection
	if _, err := io.Copy(io.Discard, conn); errors.Is(err, os.ErrDeadlineExceeded) {
		b.t.Error("a connection that the host has ended stays open")
	}
}

// seeds are what the shim does, by the zero bytes that choose what is valid, and some of the ways to deviate from it.
func seeds() [][]byte {
	all := methods()
	sequence := func(flags byte, names ...string) []byte {
		data := []byte{flags}
		for _, name := range names {
			i := slices.IndexFunc(all, func(m method) bool { return m.name == name })
			// As many zeros as the generator consumes for a valid request of that kind.
			data = append(data, byte(i))
			g := newGenerator(make([]byte, 256), "/run")
			g.request(all[i])
			data = append(data, make([]byte, 256-len(g.data))...)
		}
		return data
	}
	var names []string
	for _, m := range all {
		names = append(names, m.name)
	}
	life := []string{
		"ExecProcess", "WriteStdin", "ReadStdout", "TtyWinResize", "PauseContainer", "StatsContainer", "ResumeContainer", "UpdateContainer",
		"GetDiagnosticData", "CloseStdin", "WaitProcess", "ReadStdout", "ReadStderr", "SignalProcess", "RemoveStaleVirtiofsShareMounts", "RemoveContainer",
	}
	out := [][]byte{
		nil,
		sequence(0, life...),
		sequence(flagBare, append([]string{"CreateSandbox", "CopyFile", "CreateContainer", "StartContainer"}, life...)...),
		sequence(flagConcurrent, life...),
		sequence(0, "WaitProcess", "ReadStdout", "ReadStderr", "GetOOMEvent", "SignalProcess", "RemoveContainer", "DestroySandbox", "CreateContainer"),
		sequence(0, "UpdateEphemeralMounts", "CopyFile", "CopyFile", "UpdateInterface", "UpdateRoutes", "GetGuestDetails", "ReseedRandomDev", "SetGuestDateTime"),
		sequence(flagFrames, life[:3]...),
		{flagRandom, 1},
		{flagRandom | flagConcurrent, 2},
		{flagRandom | flagBare, 3},
		{flagRandom | flagDenied, 4},
	}
	for half := range slices.Chunk(names, maxSteps) {
		out = append(out, sequence(flagDenied, half...), sequence(flagBare, half...), sequence(0, half...))
	}
	for i, base := range slices.Clone(out) { // the same with other choices
		changed := slices.Clone(base)
		for j := 2; j < len(changed); j += 3 {
			changed[j] = byte(i*31 + j*57)
		}
		out = append(out, changed)
	}
	return out
}

func dialUnix(path string) (*net.UnixConn, error) {
	return net.DialUnix("unix", nil, &net.UnixAddr{Name: path, Net: "unix"})
}

// volumesOf and shared adapt the two packages as the agent's main does.
type volumesOf struct{ *volume.Manager }

func (v volumesOf) Add(ctx context.Context, owner string, s agent.Storage) error {
	return v.Manager.Add(ctx, owner, volumeStorage(s))
}

func (v volumesOf) Update(ctx context.Context, s agent.Storage) error {
	return v.Manager.Update(ctx, volumeStorage(s))
}

func volumeStorage(in agent.Storage) volume.Storage {
	out := volume.Storage{Driver: in.Driver, FSType: in.FSType, Options: in.Options, MountPoint: in.MountPoint}
	if g := in.FSGroup; g != nil {
		out.Group = &volume.FSGroup{ID: g.GID, OnRootMismatch: g.OnRootMismatch}
	}
	return out
}

type shared struct {
	*share.Dir
	stale *share.Stale
}

func (s shared) Copy(f agent.File) error { return s.Dir.Copy(share.File(f)) }

func (s shared) DropStale(ctx context.Context) error {
	_, err := s.stale.Remove(ctx)
	return err
}
