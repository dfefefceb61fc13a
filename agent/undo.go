// SPDX-License-Identifier: Apache-2.0
// Copyright The Cloister Authors.

package agent

import (
	"context"
	"errors"
	"fmt"
	"time"
)

// undoTimeout bounds the undo of a failed operation.
const undoTimeout = 60 * time.Second

// undo collects how to take back what an operation has done so far. The zero value is empty.
type undo struct{ steps []undoStep }

type undoStep struct {
	name string
	do   func(ctx context.Context) error
}

func (u *undo) add(name string, do func(ctx context.Context) error) {
	u.steps = append(u.steps, undoStep{name, do})
}

// run takes back every step, last one first, and goes on if one fails. It does not end with the context that it is
// given, but after undoTimeout.
func (u *undo) run(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), undoTimeout)
	defer cancel()
	var errs []error
	for len(u.steps) > 0 {
		step := u.steps[len(u.steps)-1]
		u.steps = u.steps[:len(u.steps)-1]
		if err := step.do(ctx); err != nil {
			errs = append(errs, fmt.Errorf("undo %s: %w", step.name, err))
		}
	}
	return errors.Join(errs...)
}
