// SPDX-License-Identifier: Apache-2.0
// Copyright The Cloister Authors.

package agent

import (
	"context"
	"errors"
	"fmt"
	"strings"

	specs "github.com/opencontainers/runtime-spec/specs-go"
)

// sealedPrefix starts the value of a variable that stands for a secret, see package keys/sealed.
const sealedPrefix = "sealed."

// maxSealed bounds the sealed variables of one process: each costs the check of a signature.
const maxSealed = 256

// openSecrets puts the secrets into the environment of a process, in place of what stands for them. One that does not
// open is an error: the process would start without what it was given, and could not tell.
func (s *Sandbox) openSecrets(ctx context.Context, p *specs.Process) error {
	opened := 0
	for i, variable := range p.Env {
		name, value, _ := strings.Cut(variable, "=")
		if !strings.HasPrefix(value, sealedPrefix) {
			continue
		}
		if s.cfg.OpenSecret == nil {
			return fmt.Errorf("%w: environment variable %s is a sealed secret, this guest opens none", ErrInvalidArgument, name)
		}
		if opened++; opened > maxSealed {
			return fmt.Errorf("%w: more than %d sealed secrets in the environment", ErrInvalidArgument, maxSealed)
		}
		secret, err := s.cfg.OpenSecret(ctx, value)
		if err == nil && strings.ContainsRune(secret, 0) {
			err = errors.New("the secret has a zero byte, which no environment variable can hold")
		}
		if err != nil {
			return fmt.Errorf("%w: environment variable %s: %w", ErrInvalidArgument, name, err)
		}
		p.Env[i] = name + "=" + secret
	}
	return nil
}
