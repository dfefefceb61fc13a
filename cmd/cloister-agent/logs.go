// SPDX-License-Identifier: Apache-2.0
// Copyright The Cloister Authors.

package main

import (
	"log/slog"

	"github.com/cloister-cc/cloister/agent/logport"
	"github.com/cloister-cc/cloister/internal/version"
)

// keptLog is how much of the log is kept for whoever reads it from the log port, in bytes.
const keptLog = 256 << 10

// newLog returns a log to the console, and with a port the lines for that.
func newLog(l slog.Level, port uint32) (*slog.Logger, *logport.Fanout) {
	console := consoleHandler(l)
	if port == 0 {
		return slog.New(console), nil
	}
	id := logport.Identity{Name: "cloister-agent", Source: "agent", Version: version.String()}
	lines := logport.NewFanout(id, keptLog)
	return slog.New(slog.NewMultiHandler(console, logport.NewHandler(lines, id, l))), lines
}
