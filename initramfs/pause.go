// SPDX-License-Identifier: Apache-2.0
// Copyright The Cloister Authors.

package initramfs

import _ "embed"

//go:embed pause/pause.c
var pauseSource string

// PauseSource returns the C source of the pause process, which the build host compiles for the guest's architecture.
func PauseSource() string { return pauseSource }
