// SPDX-License-Identifier: Apache-2.0
// Copyright The Cloister Authors.

package rpc_test

import (
	"context"
	"fmt"
	"math/rand/v2"
	"net"
	"os"
	"path/filepath"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/containerd/ttrpc"
	"google.golang.org/protobuf/proto"

	"github.com/cloister-cc/cloister/agent"
	"github.com/cloister-cc/cloister/agent/agenttest"
	"github.com/cloister-cc/cloister/agent/proc"
	"github.com/cloister-cc/cloister/rpc"
	"github.com/cloister-cc/cloister/rpc/pb"
)

// vanishing is a connection that ends, in the middle of a frame or not, when so many bytes have been written.
type vanishing struct {
	net.Conn
	left int
}

func (v *vanishing) Write(p []byte) (int, error) {
	if len(p) <= v.left {
		v.left -= len(p)
		return v.Conn.Write(p)
	}
	n, _ := v.Conn.Write(p[:v.left])
	v.left = 0
	_ = v.Close()
	return n, net.ErrClosed
}

// vanishBed is an agent whose containers are plain processes, and that counts the requests it serves.
type vanishBed struct {
	t       *testing.T
	run     string
	address string
	sandbox *agent.Sandbox
	images  agenttest.Images
	runtime agenttest.Runtime
	kernel  agenttest.Kernel
	serving atomic.Int32
}

func newVanishBed(t *testing.T) *vanishBed {
	t.Helper()
	reaper, err := proc.New(nil)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = reaper.Close() })
	dir := t.TempDir()
	b := &vanishBed{t: t, run: filepath.Join(dir, "run"), address: filepath.Join(dir, "agent.sock")}
	b.sandbox, err = agent.NewSandbox(agent.Config{
		Images: &b.images, Runtime: &b.runtime, Kernel: &b.kernel, Reaper: reaper, RunDir: b.run, ResolvConf: filepath.Join(dir, "none"),
	})
	if err != nil {
		t.Fatal(err)
	}
	count := func(next ttrpc.UnaryServerInterceptor) ttrpc.UnaryServerInterceptor {
		return func(ctx context.Context, u ttrpc.Unmarshaler, i *ttrpc.UnaryServerInfo, m ttrpc.Method) (any, error) {
			b.serving.Add(1)
			defer b.serving.Add(-1)
			return next(ctx, u, i, m)
		}
	}
	server, err := rpc.NewServer(rpc.Config{Sandbox: b.sandbox, Machine: agenttest.Machine{}, Gate: rpc.AllowAll, Wrap: count})
	if err != nil {
		t.Fatal(err)
	}
	l, err := rpc.Listen("unix://" + b.address)
	if err != nil {
		t.Fatal(err)
	}
	served := make(chan error, 1)
	go func() { served <- server.Serve(context.Background(), l) }()
	t.Cleanup(func() {
		_ = server.Close()
		if err := <-served; err != nil {
			t.Error(err)
		}
	})
	return b
}

// client connects; the connection ends after so many bytes of requests.
func (b *vanishBed) client(bytes int) (pb.AgentServiceService, *ttrpc.Client, net.Conn) {
	b.t.Helper()
	conn, err := dialUnix(b.address)
	if err != nil {
		b.t.Fatal(err)
	}
	v := &vanishing{conn, bytes}
	c := ttrpc.NewClient(v)
	return pb.NewAgentServiceClient(c), c, v
}

func shell(script string) *pb.Process {
	return &pb.Process{Args: []string{"sh", "-c", script}, Cwd: "/"}
}

func containerRequest(id string) *pb.CreateContainerRequest {
	return &pb.CreateContainerRequest{
		ContainerId: id, OCI: &pb.Spec{Process: shell("echo out; exec sleep 1000"), Linux: &pb.Linux{CgroupsPath: "/" + id}},
		Storages: []*pb.Storage{{Driver: "image_guest_pull", Source: "registry.example/i:1"}},
	}
}

// vanish runs a container on a connection that ends somewhere on the way: after a number of bytes, and after a time.
func (b *vanishBed) vanish(id string, r *rand.Rand) {
	size := proto.Size(containerRequest(id))
	a, c, conn := b.client(r.IntN(3 * size)) // all requests together have less
	ctx := context.Background()
	var wg sync.WaitGroup
	wg.Go(func() {
		if _, err := a.CreateContainer(ctx, containerRequest(id)); err != nil {
			return
		}
		if _, err := a.StartContainer(ctx, &pb.StartContainerRequest{ContainerId: id}); err != nil {
			return
		}
		wg.Go(func() { _, _ = a.WaitProcess(ctx, &pb.WaitProcessRequest{ContainerId: id}) }) // until the connection ends
		wg.Go(func() {
			for err := error(nil); err == nil; {
				_, err = a.ReadStdout(ctx, &pb.ReadStreamRequest{ContainerId: id, Len: 32768})
			}
		})
		for i := range 3 {
			r := &pb.ExecProcessRequest{ContainerId: id, ExecId: fmt.Sprintf("e%d", i), Process: shell("exec sleep 1000")}
			if _, err := a.ExecProcess(ctx, r); err != nil {
				return
			}
		}
	})
	timer := time.AfterFunc(time.Duration(r.IntN(8000))*time.Microsecond, func() { _ = conn.Close() })
	wg.Wait()
	timer.Stop()
	_ = c.Close()
}

// TestVanishingClient: a shim that is killed leaves requests behind that nobody waits for. Seen: none of them is served
// for ever; each container either is there, and can be removed, or is not, and its id can be used; nothing is left.
func TestVanishingClient(t *testing.T) {
	t.Parallel()
	const clients = 48
	b := newVanishBed(t)
	ctx, cancel := context.WithTimeout(t.Context(), 3*time.Minute) // emulated machines are slow
	defer cancel()
	a, c, _ := b.client(1 << 30)
	defer func() { _ = c.Close() }()
	if _, err := a.CreateSandbox(ctx, &pb.CreateSandboxRequest{SandboxId: "pod"}); err != nil {
		t.Fatal(err)
	}
	seed := rand.Uint64()
	t.Logf("seed %#x", seed)
	var wg sync.WaitGroup
	for i := range clients {
		r := rand.New(rand.NewPCG(seed, uint64(i)))
		wg.Go(func() { b.vanish(fmt.Sprintf("c%02d", i), r) })
		if i%4 == 3 {
			wg.Wait()
		}
	}
	for b.serving.Load() > 0 {
		if time.Sleep(time.Millisecond); ctx.Err() != nil {
			t.Fatalf("%d requests of clients that are gone are still served", b.serving.Load())
		}
	}
	there := b.sandbox.Containers()
	t.Logf("%d of %d containers are there", there, clients)
	if runs := b.runtime.Containers(); len(runs) != there {
		t.Errorf("the runtime has %q, the sandbox %d", runs, there)
	}
	removed := 0
	for i := range clients {
		id := fmt.Sprintf("c%02d", i)
		if _, err := a.RemoveContainer(ctx, &pb.RemoveContainerRequest{ContainerId: id}); err == nil {
			removed++
		}
		if _, err := a.CreateContainer(ctx, containerRequest(id)); err != nil {
			t.Errorf("create %s again: %v", id, err)
		}
		if _, err := a.RemoveContainer(ctx, &pb.RemoveContainerRequest{ContainerId: id}); err != nil {
			t.Errorf("remove %s: %v", id, err)
		}
	}
	if removed != there {
		t.Errorf("%d containers were removed, %d were there", removed, there)
	}
	if _, err := a.DestroySandbox(ctx, &pb.DestroySandboxRequest{}); err != nil {
		t.Errorf("DestroySandbox: %v", err)
	}
	b.wantEmpty()
}

func (b *vanishBed) wantEmpty() {
	b.t.Helper()
	if n, r, m, k := b.sandbox.Containers(), b.runtime.Containers(), b.images.Mounted(), b.kernel.Mounts(); n+len(r)+len(m)+len(k) != 0 {
		b.t.Errorf("left: %d containers, %q in the runtime, mounts %v and %v", n, r, m, k)
	}
	entries, err := os.ReadDir(b.run)
	if err != nil {
		b.t.Error(err)
	}
	for _, e := range entries {
		if e.Name() != "sandbox" && e.Name() != "shared" {
			b.t.Errorf("%s is left in the run folder", e.Name())
		}
	}
}
