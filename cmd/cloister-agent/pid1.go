// SPDX-License-Identifier: Apache-2.0
// Copyright The Cloister Authors.

package main

import (
	"context"
	"fmt"
	"log/slog"
	"os"
	"runtime/debug"
	"time"

	"golang.org/x/sys/unix"

	"github.com/cloister-cc/cloister/agent/boot"
	"github.com/cloister-cc/cloister/agent/proc"
	"github.com/cloister-cc/cloister/internal/callers"
	"github.com/cloister-cc/cloister/internal/version"
)

// runPID1 runs an agent that is PID 1, of one kind or the other, and powers the machine off whatever happens: the end
// of PID 1 would be a kernel panic.
func runPID1(agent func(ctx context.Context, log *slog.Logger) error) {
	// The runtime's traces show what functions were called with, maybe a part of a key, and the host reads the console.
	debug.SetTraceback("none")
	log := slog.New(consoleHandler(slog.LevelInfo))
	defer powerOff(log)
	defer func() {
		if r := recover(); r != nil {
			log.Error("agent panicked, powering off", "panic", fmt.Sprint(r), "stack", callers.Names())
		}
	}()
	log.Info("cloister-agent starts", "version", version.String(), "handover_ms", uptime().Milliseconds())
	if err := agent(context.Background(), log); err != nil {
		log.Error("cannot go on, powering off", "error", err)
		return
	}
	log.Info("sandbox is destroyed, powering off")
}

// sealedGuest boots a guest from an initramfs of ours and serves.
func sealedGuest(ctx context.Context, log *slog.Logger) error {
	reaper, err := proc.New(log)
	if err != nil {
		return err
	}
	guest, err := boot.Run(ctx, boot.Options{Log: log, Volumes: volumes{reaper}})
	if err != nil {
		return err
	}
	for _, s := range guest.Stages {
		log.Info("boot stage", "stage", s.Name, "ms", s.Duration.Milliseconds())
	}
	log, logs := newLog(level(guest.Config.LogLevel), guest.Config.LogPort)
	s, err := sealedSetup(ctx, guest, log)
	if err != nil {
		return err
	}
	s.side.logs = logs
	defer guest.RegistryAuth.Wipe()
	return serve(ctx, s, reaper, log)
}

// powerOff writes out what the disks have not seen and ends the machine; it does not return.
func powerOff(log *slog.Logger) {
	unix.Sync()
	err := unix.Reboot(unix.LINUX_REBOOT_CMD_POWER_OFF)
	log.Error("power-off failed, halting", "error", err)
	_ = unix.Reboot(unix.LINUX_REBOOT_CMD_HALT)
	select {}
}

// consoleHandler logs to the console, which the host reads: nothing secret may be logged. The kernel's clock stands in
// for the time of day, which the host sets as it likes.
func consoleHandler(l slog.Level) slog.Handler {
	return slog.NewTextHandler(os.Stderr, &slog.HandlerOptions{
		Level: l,
		ReplaceAttr: func(groups []string, a slog.Attr) slog.Attr {
			if a.Key == slog.TimeKey && len(groups) == 0 {
				return slog.String("up", fmt.Sprintf("%.3f", uptime().Seconds()))
			}
			return a
		},
	})
}

// uptime is the time since the kernel started.
func uptime() time.Duration {
	var ts unix.Timespec
	if err := unix.ClockGettime(unix.CLOCK_BOOTTIME, &ts); err != nil {
		return 0
	}
	return time.Duration(ts.Nano())
}

// level reads a log level that the boot config has already validated.
func level(name string) slog.Level {
	var l slog.Level
	if err := l.UnmarshalText([]byte(name)); err != nil {
		return slog.LevelInfo
	}
	return l
}
