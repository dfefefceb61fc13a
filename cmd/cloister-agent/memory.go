// SPDX-License-Identifier: Apache-2.0
// Copyright The Cloister Authors.

package main

import (
	"context"
	"log/slog"
	"os"
	"strconv"
	"strings"
)

// logMemory says how much memory the agent takes, for benchmarks; it costs nothing unless debug logs are on.
func logMemory(ctx context.Context, log *slog.Logger, when string) {
	if !log.Enabled(ctx, slog.LevelDebug) {
		return
	}

	data, err := os.ReadFile("/proc/self/smaps_rollup")
	if err != nil {
		log.Debug("agent memory is not known", "error", err)
		return
	}
	log.Debug("agent memory", "when", when, "rss_kib", kib(string(data), "Rss:"), "pss_kib", kib(string(data), "Pss:"))
}

// kib finds a line such as "Rss:   1234 kB" (proc_pid_smaps(5)); 0 if there is none.
func kib(rollup, name string) int {
	for line := range strings.Lines(rollup) {
		f := strings.Fields(line)
		if len(f) == 3 && f[0] == name {
			n, err := strconv.Atoi(f[1])
			if err == nil {
				return n
			}
		}
	}
	return 0
}
