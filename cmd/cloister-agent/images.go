// SPDX-License-Identifier: Apache-2.0
// Copyright The Cloister Authors.

package main

import (
	"context"
	"encoding/hex"
	"errors"
	"log/slog"
	"time"

	"github.com/cloister-cc/cloister/agent"
	"github.com/cloister-cc/cloister/attest"
	"github.com/cloister-cc/cloister/image/sign"
)

// measure gives image the one thing it needs of attest: to record which images are used.
func measure(events *attest.Log, log *slog.Logger) func(ctx context.Context, reference, digest string) error {
	return func(_ context.Context, reference, digest string) error {
		event, err := attest.PullImage(reference, digest)
		if err == nil {
			err = events.Append(event)
		}
		if err != nil {
			return err
		}
		register := events.Digest()
		log.Info("image is measured", "event", event.String(), "log", "sha384:"+hex.EncodeToString(register[:]))
		return nil
	}
}

// timedImages bounds how long an image may take, unless timeout is 0, and says in agent's terms that one is refused; it
// implements agent.Images.
type timedImages struct {
	agent.Images
	timeout time.Duration
}

// Mount implements agent.Images.
func (t timedImages) Mount(ctx context.Context, containerID, reference, target string) (digest string, err error) {
	if t.timeout > 0 {
		var cancel context.CancelFunc
		ctx, cancel = context.WithTimeout(ctx, t.timeout)
		defer cancel()
	}
	digest, err = t.Images.Mount(ctx, containerID, reference, target)
	if errors.Is(err, sign.ErrRejected) {
		err = deniedError{err}
	}
	return digest, err
}

// deniedError is agent.ErrDenied, with another text.
type deniedError struct{ error }

// Is implements what errors.Is looks for.
func (deniedError) Is(target error) bool { return target == agent.ErrDenied }

// Unwrap returns the cause.
func (e deniedError) Unwrap() error { return e.error }
