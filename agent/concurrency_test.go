// SPDX-License-Identifier: Apache-2.0
// Copyright The Cloister Authors.

package agent_test

import (
	"context"
	"errors"
	"sync"
	"testing"

	"github.com/cloister-cc/cloister/agent"
)

// A call that hangs in the image service or the runtime must not keep others from their containers.
func TestNoLockAcrossCalls(t *testing.T) {
	b := running(t)
	b.start(t, "c1", "echo hello; sleep 1000")
	release, entered := make(chan struct{}), make(chan string, 3)
	b.images.Hook = func(op, id string) error {
		if op == "Mount" && id == "c2" {
			entered <- op
			<-release
		}
		return nil
	}
	b.runtime.Hook = func(op, id string) error {
		if op == "Exec" {
			entered <- op
			<-release
		}
		return nil
	}
	ctx := t.Context()
	var wg sync.WaitGroup
	wg.Go(func() {
		if err := b.CreateContainer(ctx, config("c2", "true")); err != nil {
			t.Error(err)
		}
	})
	wg.Go(func() {
		if err := b.Exec(ctx, "c1", "e1", shell("true")); err != nil {
			t.Error(err)
		}
	})
	<-entered
	<-entered
	if data, err := b.ReadStdout(ctx, "c1", "", 100); err != nil || string(data) != "hello\n" {
		t.Errorf("read: %q, %v", data, err)
	}
	if err := b.Signal(ctx, "c1", "", 0); err != nil {
		t.Error(err)
	}
	b.start(t, "c3", "exit 5")
	b.wantStatus(t, "c3", "", 5)
	if err := b.RemoveContainer(ctx, "c3", 0); err != nil {
		t.Error(err)
	}
	wantErr(t, b.CreateContainer(ctx, config("c2", "true")), agent.ErrAlreadyExists)
	_, err := b.Wait(ctx, "c2", "")
	wantErr(t, err, agent.ErrProcessNotFound)
	_, err = b.Wait(ctx, "c1", "e1")
	wantErr(t, err, agent.ErrProcessNotFound)
	wantErr(t, b.Exec(ctx, "c1", "e1", shell("true")), agent.ErrAlreadyExists)
	close(release)
	wg.Wait()
}

func TestRemoveEndsCreation(t *testing.T) {
	b := running(t)
	entered := make(chan struct{})
	release := make(chan struct{})
	b.images.Hook = func(op, _ string) error {
		if op == "Mount" {
			close(entered)
			<-release
		}
		return nil
	}
	created, removed := make(chan error), make(chan error)
	go func() { created <- b.CreateContainer(t.Context(), config("c1", "sleep 1000")) }()
	<-entered
	go func() { removed <- b.RemoveContainer(t.Context(), "c1", 0) }()
	go close(release)
	createErr, removeErr := <-created, <-removed
	// The removal comes before, while or after the rest of the creation; after both, nothing may be left.
	if removeErr != nil && !errors.Is(removeErr, agent.ErrInvalidContainerID) {
		t.Error(removeErr)
	}
	if createErr != nil && !errors.Is(createErr, context.Canceled) {
		t.Error(createErr)
	}
	b.wantEmpty(t)
}

func TestConcurrentRemove(t *testing.T) {
	b := running(t)
	b.start(t, "c1", "sleep 1000")
	var wg sync.WaitGroup
	for range 8 {
		wg.Go(func() {
			if err := b.RemoveContainer(t.Context(), "c1", 0); err != nil && !errors.Is(err, agent.ErrInvalidContainerID) {
				t.Error(err)
			}
		})
	}
	wg.Wait()
	b.wantEmpty(t)
}
