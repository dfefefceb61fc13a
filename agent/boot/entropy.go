// SPDX-License-Identifier: Apache-2.0
// Copyright The Cloister Authors.

package boot

import (
	"context"
	"errors"
	"fmt"
	"time"

	"golang.org/x/sys/unix"
)

// entropyTimeout is how long the kernel's random number generator may take to be seeded.
const entropyTimeout = 10 * time.Second

// entropy waits until the kernel's generator is seeded. The host decides what hardware the guest sees, so a guest
// that never becomes ready must stop with a reason, not hang in its first read of a random number.
func (b *booter) entropy(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, entropyTimeout)
	defer cancel()
	for {
		var probe [1]byte
		_, err := unix.Getrandom(probe[:], unix.GRND_NONBLOCK)
		if err == nil {
			return nil
		}
		if !errors.Is(err, unix.EAGAIN) && !errors.Is(err, unix.EINTR) {
			return fmt.Errorf("getrandom: %w", err)
		}
		select {
		case <-ctx.Done():
			return fmt.Errorf("the kernel has no entropy after %s: this machine offers no random number generator", entropyTimeout)
		case <-time.After(20 * time.Millisecond):
		}
	}
}
