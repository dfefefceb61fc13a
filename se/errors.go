// SPDX-License-Identifier: Apache-2.0
// Copyright The Cloister Authors.

package se

import (
	"errors"
	"fmt"
)

// ErrNotImage means that data is no image of Secure Execution, nor its header.
var ErrNotImage = errors.New("no image of IBM Secure Execution")

// ErrHeaderAuthentication means that a header was changed, or that the key is not the one that it was made with.
var ErrHeaderAuthentication = errors.New("the header does not verify: it was changed, or the header key is a different one")

// Parts of an image in a FormatError.
const (
	PartImage  = "image"
	PartArgs   = "stage3a arguments"
	PartHeader = "header"
	PartIPIB   = "IPIB"
)

// FormatError says which field of an image is wrong.
type FormatError struct {
	// Part is the part of the image, one of the constants above.
	Part string
	// Offset is the field's offset in that part, in bytes.
	Offset int64
	// What says what is wrong.
	What string
}

// Error implements error.
func (e *FormatError) Error() string { return fmt.Sprintf("%s at 0x%x: %s", e.Part, e.Offset, e.What) }

func formatError(part string, offset int64, format string, a ...any) error {
	return &FormatError{Part: part, Offset: offset, What: fmt.Sprintf(format, a...)}
}
