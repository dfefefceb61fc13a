// SPDX-License-Identifier: Apache-2.0
// Copyright The Cloister Authors.

package ctl

import (
	"encoding/json"
	"fmt"
	"io"
	"strings"
	"sync"
	"time"

	"github.com/cloister-cc/cloister/rpc/pb"
)

// StepPrinter returns a func for Session.OnStep that writes a line for each step to w: for people, or as JSON with the
// fields step, ms (milliseconds) and error. It may be called concurrently.
func StepPrinter(w io.Writer, asJSON bool) func(Step) {
	var mu sync.Mutex
	return func(s Step) {
		mu.Lock()
		defer mu.Unlock()
		if asJSON {
			line := struct {
				Step  string  `json:"step"`
				MS    float64 `json:"ms"`
				Error string  `json:"error,omitempty"`
			}{Step: s.Name, MS: float64(s.Took.Microseconds()) / 1000}
			if s.Err != nil {
				line.Error = s.Err.Error()
			}
			_ = json.NewEncoder(w).Encode(line) // a step that cannot be shown does not stop the run
			return
		}
		outcome := "ok"
		if s.Err != nil {
			outcome = "failed"
		}
		_, _ = fmt.Fprintf(w, "%10s  %-6s  %s\n", s.Took.Round(100*time.Microsecond), outcome, s.Name)
	}
}

// FormatRoutes returns a line for each route.
func FormatRoutes(routes *pb.Routes) string {
	lines := make([]string, 0, len(routes.GetRoutes()))
	for _, r := range routes.GetRoutes() {
		dest := r.GetDest()
		if dest == "" {
			dest = "default"
		}
		line := dest
		if r.GetGateway() != "" {
			line += " via " + r.GetGateway()
		}
		lines = append(lines, line+" dev "+r.GetDevice())
	}
	return strings.Join(lines, "\n")
}
