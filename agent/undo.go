// SPDX-License-Identifier: Apache-2.0
// Copyright The Cloister Authors.

package agent

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"time"
)

// undoTimeout bounds the undo of a failed operation.
const undoTimeout = 60 * time.Second

// undo collects how to take back what an operation has done so far. The zero value is empty.
type undo struct{ steps []undoStep }

type undoStep struct {
	name string
	do   func(ctx context.Context) error
	// kept steps are those that are due at the end of what the operation made, too, and can be repeated.
	kept bool
}

func (u *undo) add(name string, do func(ctx context.Context) error) {
	u.steps = append(u.steps, undoStep{name: name, do: do})
}

func (u *undo) keep(name string, do func(ctx context.Context) error) {
	u.steps = append(u.steps, undoStep{name: name, do: do, kept: true})
}

// kept returns the kept steps of u.
func (u *undo) kept() undo {
	return undo{steps: slices.DeleteFunc(slices.Clone(u.steps), func(s undoStep) bool { return !s.kept })}
}

// repeat takes back every step, last one first, and goes on if one fails; those that failed are left for another time.
func (u *undo) repeat(ctx context.Context) error {
	var errs []error
	var left []undoStep
	for _, step := range slices.Backward(u.steps) {
		if err := step.do(ctx); err != nil {
			errs = append(errs, fmt.Errorf("%s: %w", step.name, err))
			left = append(left, step)
		}
	}
	slices.Reverse(left)
	u.steps = left
	return errors.Join(errs...)
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
