// SPDX-License-Identifier: Apache-2.0
// Copyright The Cloister Authors.

package proc

import (
	"os/exec"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

func TestClear(t *testing.T) {
	r := testReaper(t)
	release := r.Hold() // so that the sweeper does not do it
	defer release()
	running, zombie, spared := orphan(t, r, "exec sleep 1000"), orphan(t, r, "exit 0"), orphan(t, r, "exec sleep 1000")
	adopted := adopt(t, r, "exec sleep 1000")
	started, err := r.Start(exec.Command("sleep", "1000"))
	if err != nil {
		t.Fatal(err)
	}
	asked := make(map[int]bool)
	if err := r.Clear(func(pid int) bool {
		asked[pid] = true
		return pid != spared
	}); err != nil {
		t.Error(err)
	}
	for _, pid := range []int{running, zombie} {
		for deadline := time.Now().Add(time.Minute); isChild(pid) == nil; time.Sleep(time.Millisecond) {
			if time.Now().After(deadline) {
				t.Fatalf("process %d is left", pid)
			}
		}
	}
	if isChild(spared) != nil || adopted.child() != nil || isChild(started.PID()) != nil {
		t.Error("what was claimed or not matched is gone")
	}
	if asked[adopted.PID()] || asked[started.PID()] {
		t.Error("claimed processes were offered")
	}
	if p, err := r.Adopt(spared); err != nil {
		t.Error(err)
	} else {
		_ = p.Signal(unix.SIGKILL)
		<-p.Done()
	}
	_ = adopted.Signal(unix.SIGKILL)
	<-adopted.Done()
	_ = unix.Kill(started.PID(), unix.SIGKILL)
	_, _ = started.Wait()
}

func (p *Process) child() error { return isChild(p.pid) }
