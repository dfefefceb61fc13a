// SPDX-License-Identifier: Apache-2.0
// Copyright The Cloister Authors.

package boot

import (
	"context"
	"errors"
	"fmt"
	"os"

	"golang.org/x/sys/unix"

	"github.com/cloister-cc/cloister/initramfs/layout"
)

// modules loads what the boot config lists, in its order. There is no modprobe in the guest: what is not listed is
// never loaded.
func (b *booter) modules(context.Context) error {
	for _, m := range b.guest.Config.Modules {
		err := loadModule(layout.ModulePath(m.File), m.Params)
		switch {
		case err == nil, errors.Is(err, unix.EEXIST):
		case m.Optional && errors.Is(err, unix.ENODEV):
			b.Log.Debug("no hardware for module", "module", m.File)
		default:
			return fmt.Errorf("load module %s: %w", m.File, err)
		}
	}
	return nil
}

func loadModule(path, params string) error {
	f, err := os.Open(path)
	if err != nil {
		return err
	}
	defer f.Close()
	return unix.FinitModule(int(f.Fd()), params, 0)
}
