// SPDX-License-Identifier: Apache-2.0
// Copyright The Cloister Authors.

// Package logport hands the agent's log to whoever connects to a port (Kata's agent.log_vport), as JSON lines.
//
// A line is what Kata's agent writes (src/libs/logging, slog_json) and what kata-log-parser reads out of the shim's log:
// one object with string values only, since the parser decodes it into a map of strings. The keys are msg, level (TRCE,
// DEBG, INFO, WARN, ERRO, CRIT), ts, pid, name, source, subsystem, version, and the record's own attributes.
//
// The reader is the untrusted host: it may not read, read a byte an hour, or connect a thousand times. Nothing of this
// makes a logger wait or costs memory beyond the Fanout's own; what a reader is too slow for, it does not get. Whether
// the host may have the log at all is for the caller to decide.
package logport
