// SPDX-License-Identifier: Apache-2.0
// Copyright The Cloister Authors.

package main

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"sync"

	"github.com/cloister-cc/cloister/agent/debugconsole"
	"github.com/cloister-cc/cloister/agent/logport"
	"github.com/cloister-cc/cloister/agent/proc"
	"github.com/cloister-cc/cloister/rpc"
	"github.com/cloister-cc/cloister/rpc/trace"
)

// machineConsole is where the debug console is if it has no port.
const machineConsole = "/dev/console"

// side is what the agent offers besides its API.
type side struct {
	// logs are offered on logPort, a vsock port; 0 means nowhere.
	logs    *logport.Fanout
	logPort uint32
	// console opens a shell on consolePort, a vsock port; 0 means on the machine's console.
	console     bool
	consolePort uint32
	tracing     bool
}

// tracer returns nil without tracing.
func (s side) tracer(log *slog.Logger) *trace.Tracer {
	if !s.tracing {
		return nil
	}
	return trace.New(log)
}

// start starts it; stop ends it and waits for that.
func (s side) start(ctx context.Context, reaper *proc.Reaper, log *slog.Logger) (stop func(), err error) {
	ctx, cancel := context.WithCancel(ctx)
	var wg sync.WaitGroup
	stop = func() {
		cancel()
		wg.Wait()
	}
	defer func() {
		if err != nil {
			stop()
			stop = nil
		}
	}()
	if s.logs != nil && s.logPort != 0 {
		l, err := rpc.ListenHost(s.logPort, log)
		if err != nil {
			return stop, fmt.Errorf("offer logs: %w", err)
		}
		wg.Go(func() { report(log, "log port", s.logs.Serve(ctx, l)) })
	}
	if !s.console {
		return stop, nil
	}
	log.Warn("the debug console is on: whoever reaches it is root in this guest", "port", s.consolePort)
	c, err := debugconsole.New(reaper, debugconsole.DefaultShells(), log)
	if err != nil {
		return stop, err
	}
	if s.consolePort == 0 {
		wg.Go(func() { report(log, "debug console", c.Run(ctx, machineConsole)) })
		return stop, nil
	}
	l, err := rpc.ListenHost(s.consolePort, log)
	if err != nil {
		return stop, fmt.Errorf("offer debug console: %w", err)
	}
	wg.Go(func() { report(log, "debug console", c.Serve(ctx, l)) })
	return stop, nil
}

func report(log *slog.Logger, what string, err error) {
	if err != nil && !errors.Is(err, context.Canceled) {
		log.Warn("no longer served", "what", what, "error", err)
	}
}
