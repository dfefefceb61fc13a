// SPDX-License-Identifier: Apache-2.0
// Copyright The Cloister Authors.

package main

import (
	"context"
	"errors"
	"fmt"
	"math"
	"regexp"
	"strconv"
	"strings"
	"text/tabwriter"
	"time"

	"github.com/spf13/cobra"

	"github.com/cloister-cc/cloister/ctl"
	"github.com/cloister-cc/cloister/rpc/pb"
)

func (c *ctlCommand) pause() *cobra.Command {
	return c.simple("pause ID", "Stop all processes of a container until resume", cobra.ExactArgs(1),
		func(ctx context.Context, s *ctl.Session, args []string) error { return s.PauseContainer(ctx, args[0]) })
}

func (c *ctlCommand) resume() *cobra.Command {
	return c.simple("resume ID", "Let the processes of a paused container go on", cobra.ExactArgs(1),
		func(ctx context.Context, s *ctl.Session, args []string) error { return s.ResumeContainer(ctx, args[0]) })
}

func (c *ctlCommand) stats() *cobra.Command {
	return &cobra.Command{
		Use:   "stats ID...",
		Short: "Show what containers use",
		Long: "stats shows the CPU time, memory, processes and block I/O of containers, as the guest's control groups tell them. A\n" +
			"dash is what the guest cannot tell. With --json, each container's whole answer is a line.",
		Args: cobra.MinimumNArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			return c.do(cmd, func(ctx context.Context, s *ctl.Session) error {
				rows := []string{"CONTAINER\tCPU TIME\tMEMORY\tLIMIT\tPEAK\tPIDS\tREAD\tWRITTEN"}
				for _, id := range args {
					r, err := s.Stats(ctx, id)
					if err != nil {
						return err
					}
					if c.json {
						if err := c.answer(cmd, r, ""); err != nil {
							return err
						}
					}
					rows = append(rows, statsRow(id, r.GetCgroupStats()))
				}
				if c.json {
					return nil
				}
				w := tabwriter.NewWriter(cmd.OutOrStdout(), 0, 0, 2, ' ', 0)
				for _, row := range rows {
					_, _ = fmt.Fprintln(w, row) // kept for Flush
				}
				return w.Flush()
			})
		},
	}
}

// statsRow is what a container uses, in cells that end with a tab.
func statsRow(id string, st *pb.CgroupStats) string {
	const none = "-"
	cpu, memory, limit, peak, pids, read, written := none, none, none, none, none, none, none
	if u := st.GetCpuStats().GetCpuUsage(); u != nil {
		cpu = (time.Duration(min(u.GetTotalUsage(), math.MaxInt64)) * time.Nanosecond).Round(time.Millisecond).String()
	}
	if m := st.GetMemoryStats().GetUsage(); m != nil {
		memory, limit, peak = byteCount(m.GetUsage()), byteCount(m.GetLimit()), byteCount(m.GetMaxUsage())
	}
	if p := st.GetPidsStats(); p != nil {
		pids = strconv.FormatUint(p.GetCurrent(), 10)
		if p.GetLimit() != 0 {
			pids += " of " + strconv.FormatUint(p.GetLimit(), 10)
		}
	}
	if b := st.GetBlkioStats(); b != nil {
		sums := map[string]uint64{}
		for _, e := range b.GetIoServiceBytesRecursive() {
			sums[e.GetOp()] += e.GetValue()
		}
		read, written = byteCount(sums["read"]), byteCount(sums["write"])
	}
	return strings.Join([]string{id, cpu, memory, limit, peak, pids, read, written}, "\t")
}

// byteCount prints a number of bytes, of which the largest stands for no limit.
func byteCount(n uint64) string {
	if n > math.MaxInt64 {
		return "none"
	}
	return byteSize(int64(n))
}

func (c *ctlCommand) update() *cobra.Command {
	var limits ctl.Limits
	var memory string
	cmd := c.simple("update [flags] ID", "Change limits of a container", cobra.ExactArgs(1),
		func(ctx context.Context, s *ctl.Session, args []string) error {
			return s.UpdateContainer(ctx, args[0], limits)
		})
	cmd.Long = "update changes limits of a container; what is not given stays as it is."
	f := cmd.Flags()
	f.StringVar(&memory, "memory", "", "memory in bytes, or with K, M, G or T: 64M is 64 MiB; max is without limit")
	f.Int64Var(&limits.CPUQuota, "cpu-quota", 0, "CPU time in microseconds for each period; -1 is without limit")
	f.Uint64Var(&limits.CPUPeriod, "cpu-period", 0, "period of --cpu-quota in microseconds, 100000 is usual")
	f.Uint64Var(&limits.CPUShares, "cpu-shares", 0, "CPU weight against other containers, 1024 is usual")
	f.Int64Var(&limits.Pids, "pids", 0, "number of processes and threads; -1 is without limit")
	cmd.PreRunE = func(cmd *cobra.Command, _ []string) (err error) {
		if memory != "" {
			if limits.Memory, err = parseSize(memory); err != nil {
				return &usageError{cmd: cmd.CommandPath(), err: fmt.Errorf("--memory: %w", err)}
			}
		}
		if limits == (ctl.Limits{}) {
			err := errors.New("nothing to change: give --memory, --cpu-quota, --cpu-period, --cpu-shares or --pids")
			return &usageError{cmd: cmd.CommandPath(), err: err}
		}
		if limits.CPUQuota < -1 || limits.Pids < -1 {
			return &usageError{cmd: cmd.CommandPath(), err: errors.New("of the negative numbers, limits can be -1 only")}
		}
		return nil
	}
	return cmd
}

// sizePattern is a size in bytes with a binary unit.
var sizePattern = regexp.MustCompile(`^([1-9][0-9]*)([KMGT]?)(i|iB)?$`)

// parseSize reads a size in bytes above 0 with an optional binary unit (64M, 64Mi and 64MiB are the same), or "max",
// which is -1.
func parseSize(s string) (int64, error) {
	if s == "max" {
		return -1, nil
	}
	wrong := fmt.Errorf("%q is neither a size such as 64M nor max", s)
	m := sizePattern.FindStringSubmatch(s)
	if m == nil || m[2] == "" && m[3] != "" {
		return 0, wrong
	}
	n, err := strconv.ParseInt(m[1], 10, 64)
	shift := 0
	if m[2] != "" {
		shift = 10 * (strings.Index("KMGT", m[2]) + 1)
	}
	if err != nil || n > math.MaxInt64>>shift {
		return 0, wrong
	}
	return n << shift, nil
}

func (c *ctlCommand) oom() *cobra.Command {
	return &cobra.Command{
		Use:   "oom",
		Short: "Wait until a container runs out of memory and print its id",
		Long: "oom waits until the kernel has killed a process of a container that used too much memory, and prints the container's\n" +
			"id. An event that came before and that nobody has asked for counts. Each goes to one who waits: to the Kata shim or to\n" +
			"this command, where both do.",
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			return c.do(cmd, func(ctx context.Context, s *ctl.Session) error {
				r, err := s.NextOOM(ctx)
				if err != nil {
					return err
				}
				return c.answer(cmd, r, r.GetContainerId())
			})
		},
	}
}
