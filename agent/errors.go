// SPDX-License-Identifier: Apache-2.0
// Copyright The Cloister Authors.

package agent

import "errors"

// Errors that callers tell apart; rpc maps each to a status code. Methods wrap them, so use errors.Is.
var (
	// ErrInvalidContainerID means that no container has that id, or that the id is not well formed.
	ErrInvalidContainerID = errors.New("Invalid container id") //nolint:staticcheck // ST1005: the shim's text
	// ErrProcessNotFound means that the container has no process of that exec id.
	ErrProcessNotFound = errors.New("process not found")
	// ErrAlreadyExists means that the container or exec id is taken.
	ErrAlreadyExists = errors.New("already exists")
	// ErrState means that the sandbox or container is not in a state that allows the operation.
	ErrState = errors.New("not allowed in this state")
	// ErrInvalidArgument means that the request itself is wrong.
	ErrInvalidArgument = errors.New("invalid argument")
	// ErrDenied means that the guest's own configuration does not allow it, for instance its image policy.
	ErrDenied = errors.New("not allowed in this guest")
	// ErrUnsupported means that this agent does not offer what was asked.
	ErrUnsupported = errors.New("unsupported")
	// ErrNoWriter means that the process's standard input has ended.
	ErrNoWriter = errors.New("Cannot get writer") //nolint:staticcheck // ST1005: the text that users of the API know
	// ErrNoTerminal means that the process has no terminal.
	ErrNoTerminal = errors.New("no tty")
	// ErrTainted means that an undo failed earlier: only stopping and destroying are still possible.
	ErrTainted = errors.New("sandbox is tainted by an incomplete undo")
)
