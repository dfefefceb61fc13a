// SPDX-License-Identifier: Apache-2.0
// Copyright The Cloister Authors.

package agent_test

import (
	"path/filepath"
	"testing"

	"github.com/cloister-cc/cloister/agent"
)

func TestUpdateEphemeralMounts(t *testing.T) {
	b := running(t)
	shm := filepath.Join(b.dir, "run/sandbox/shm")
	storage := func(driver, mountPoint, size string) []agent.Storage {
		return []agent.Storage{{Driver: driver, FSType: "tmpfs", MountPoint: mountPoint, Options: []string{"size=" + size}}}
	}
	if err := b.UpdateEphemeralMounts(t.Context(), storage("ephemeral", shm, "1048576")); err != nil {
		t.Fatal(err)
	}
	if got := b.kernel.Mounts()[shm]; got != "remount:shm" {
		t.Errorf("the shared memory is mounted as %q", got)
	}
	wantErr(t, b.UpdateEphemeralMounts(t.Context(), storage("ephemeral", shm, "1,mode=0")), agent.ErrInvalidArgument)
	wantErr(t, b.UpdateEphemeralMounts(t.Context(), storage("local", shm, "1")), agent.ErrInvalidArgument)
	wantErr(t, b.UpdateEphemeralMounts(t.Context(), storage("ephemeral", "/etc", "1")), agent.ErrUnsupported)
}
