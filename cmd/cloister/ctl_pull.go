// SPDX-License-Identifier: Apache-2.0
// Copyright The Cloister Authors.

package main

import (
	"context"
	"encoding/json"
	"fmt"
	"io"
	"time"

	"github.com/spf13/cobra"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/cloister-cc/cloister/ctl"
	"github.com/cloister-cc/cloister/internal/progress"
)

const pullLong = "pull has the guest pull an image, so that the next container of it finds it there. It shows how far the pull is: by a\n" +
	"bar on a terminal, by a line every few seconds elsewhere.\n\n" +
	"The sandbox must have been created. For the agent API has no request of its own for this, pull creates a container that\n" +
	"never runs and removes it; in a sandbox with --share-pid, create another container first. When pull is interrupted, the\n" +
	"guest goes on for a while, and the same command joins it."

func (c *ctlCommand) pull() *cobra.Command {
	var sandboxID string
	cmd := &cobra.Command{
		Use: "pull [flags] IMAGE", Short: "Have the guest pull an image into its store", Long: pullLong, Args: cobra.ExactArgs(1),
	}
	cmd.Flags().StringVar(&sandboxID, "sandbox", "", "id of the sandbox (default: one of its own)")
	cmd.RunE = func(cmd *cobra.Command, args []string) error {
		return c.do(cmd, func(ctx context.Context, s *ctl.Session) error {
			var task *progress.Task
			done, err := s.Pull(ctx, args[0], sandboxID, func(p ctl.PullProgress) {
				if p.Total == 0 {
					return
				}
				if task == nil { // a bar without a known end would move by itself
					task = progress.Start(cmd.ErrOrStderr(), "pull", p.Total)
				}
				task.Set(p.Bytes, p.Total)
			})
			task.Done()
			if err != nil {
				return pullError(ctx, err)
			}
			if done.Unknown != nil {
				_, _ = fmt.Fprintf(cmd.ErrOrStderr(), "the guest tells nothing about progress: %v\n", done.Unknown)
			}
			return printPulled(cmd.OutOrStdout(), args[0], done, c.json)
		})
	}
	return cmd
}

// pullError adds to an error of a pull what can be done.
func pullError(ctx context.Context, err error) error {
	switch {
	case ctx.Err() != nil:
		return &hintError{err, "the guest goes on with a pull that has begun, for 15 minutes unless configured otherwise; the same command joins it"}
	case status.Code(err) == codes.FailedPrecondition:
		return &hintError{err, "has the sandbox been created? 'cloister ctl create-sandbox ID' does that"}
	default:
		return err
	}
}

func printPulled(w io.Writer, image string, p ctl.Pulled, asJSON bool) error {
	if asJSON {
		return json.NewEncoder(w).Encode(struct {
			Image  string `json:"image"`
			Digest string `json:"digest,omitempty"`
			Layers int    `json:"layers,omitempty"`
			Bytes  *int64 `json:"bytes,omitempty"`
			MS     int64  `json:"ms"`
		}{image, p.Digest, p.Layers, known(p), p.Took.Milliseconds()})
	}
	took := p.Took.Round(time.Millisecond)
	if p.Took > time.Second {
		took = p.Took.Round(100 * time.Millisecond)
	}
	var err error
	switch {
	case p.Unknown != nil:
		_, err = fmt.Fprintf(w, "%s: there after %s\n", image, took)
	case p.Digest != "":
		_, err = fmt.Fprintf(w, "%s: %s fetched in %s, layers: %d, %s\n", image, byteSize(p.Bytes), took, p.Layers, p.Digest)
	case p.Bytes > 0:
		_, err = fmt.Fprintf(w, "%s: %s fetched in %s\n", image, byteSize(p.Bytes), took)
	default:
		_, err = fmt.Fprintf(w, "%s: it was there, looked up in %s\n", image, took)
	}
	return err
}

// known returns the bytes of a pull, or nil.
func known(p ctl.Pulled) *int64 {
	if p.Unknown != nil {
		return nil
	}
	return &p.Bytes
}
