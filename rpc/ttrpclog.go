// SPDX-License-Identifier: Apache-2.0
// Copyright The Cloister Authors.

package rpc

import (
	"context"
	"io"
	"log/slog"

	"github.com/containerd/log"
	"github.com/sirupsen/logrus"
)

// withTTRPCLog makes ttrpc, which logs through the logger of its context, log to ours.
func withTTRPCLog(ctx context.Context, l *slog.Logger) context.Context {
	logger := logrus.New()
	logger.SetOutput(io.Discard)
	logger.AddHook(slogHook{l})
	return log.WithLogger(ctx, logrus.NewEntry(logger))
}

// slogHook forwards logrus entries; all that ttrpc reports are failures of a connection.
type slogHook struct{ log *slog.Logger }

// Levels returns the levels that are forwarded.
func (slogHook) Levels() []logrus.Level {
	return []logrus.Level{logrus.PanicLevel, logrus.FatalLevel, logrus.ErrorLevel, logrus.WarnLevel}
}

// Fire forwards an entry.
func (h slogHook) Fire(e *logrus.Entry) error {
	h.log.Warn("connection failed", "detail", e.Message, "error", e.Data[logrus.ErrorKey])
	return nil
}
