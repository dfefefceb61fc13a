// SPDX-License-Identifier: Apache-2.0
// Copyright The Cloister Authors.

// Command cloister-agent is the guest agent: PID 1 of a confidential guest, init of another, or a plain process. It holds
// wiring only, and is the one place that knows every concrete type of the guest.
package main

import (
	"errors"
	"fmt"
	"io/fs"
	"os"

	"github.com/cloister-cc/cloister/agent/boot"
	"github.com/cloister-cc/cloister/initramfs/layout"
	"github.com/cloister-cc/cloister/internal/version"
)

const usage = `cloister-agent is the guest agent of confidential containers; it serves the Kata agent API.

As PID 1 of a guest that "cloister build" made, it unlocks the root disk first, and nothing but the sealed boot config
decides what it does. Anywhere else (init of a Kata guest image, under systemd, plain process) it works like Kata's agent:

  cloister-agent [-c FILE]

Options:
  -c, --config FILE    settings as TOML, with Kata's keys; without it, agent.* of the kernel command line. Either way, the
                       environment counts more: KATA_AGENT_SERVER_ADDR, KATA_AGENT_LOG_LEVEL, KATA_AGENT_TRACING. If the
                       command line has agent.config_file=FILE, that file alone counts
  --cdh-config FILE    which images are used and where they come from: the [image] table of a cdh.toml
  --resources FOLDER   what kbs:///REPOSITORY/TYPE/TAG names, as files REPOSITORY/TYPE/TAG: keys of images, policies
  --runtime PROGRAM    crun (default: the one in PATH)
  -v, --version        print the version
  -h, --help           print this text

  KATA_AGENT_SERVER_ADDR=unix:///run/agent.sock cloister-agent     # vsock://-1:1024 is the default

A plain process needs root; it makes a mount namespace of its own, so that what it mounts stays there. Every request is
allowed, and every image unless a policy is given: a machine that is not sealed cannot be protected from its host. To build
a guest that is: cloister build --help
`

func main() {
	if os.Args[0] == layout.PausePath {
		pause()
		return
	}
	if os.Getpid() == 1 && isSealed(layout.Dir) {
		runPID1(sealedGuest)
		return
	}
	if len(os.Args) == 3 && os.Args[1] == unlockCommand {
		path, err := boot.UnlockDisk(os.Args[2], unlock)
		if err != nil {
			fail(1, err)
		}
		fmt.Println(path)
		return
	}
	a, err := parseArguments(os.Args[1:])
	switch {
	case err != nil:
		fmt.Fprint(os.Stderr, usage, "\n")
		fail(2, err)
	case a.help:
		fmt.Print(usage)
	case a.version:
		fmt.Println("cloister-agent", version.String())
	case os.Getpid() == 1:
		runPID1(a.guestImage)
	default:
		if err := a.plainProcess(); err != nil {
			fail(1, err)
		}
	}
}

// isSealed tells whether this is the root of an initramfs of ours, by the folder that holds all of it. One that lacks its
// boot config, or cannot be looked at, is sealed, too: its boot then fails, where an agent that took it for somebody
// else's would let every request pass, with the secrets of the initramfs at hand.
func isSealed(dir string) bool {
	_, err := os.Lstat(dir)
	return !errors.Is(err, fs.ErrNotExist)
}

func fail(code int, err error) {
	fmt.Fprintln(os.Stderr, "cloister-agent:", err)
	os.Exit(code)
}

// arguments are those of a guest that is not sealed.
type arguments struct {
	help, version   bool
	config, runtime string
	// cdhConfig is a file, resources a folder.
	cdhConfig, resources string
}

// parseArguments reads a command line. "init" is taken as Kata's agent takes it, and has no meaning here: the OCI
// runtime starts containers.
func parseArguments(args []string) (a arguments, err error) {
	for len(args) > 0 {
		name := args[0]
		args = args[1:]
		switch name {
		case "-h", "--help":
			a.help = true
		case "-v", "--version":
			a.version = true
		case "init":
			if os.Getpid() != 1 {
				return a, errors.New("init is what the kernel starts: this is not PID 1")
			}
		case "-c", "--config", "--runtime", "--cdh-config", "--resources":
			if len(args) == 0 || args[0] == "" {
				return a, fmt.Errorf("%s needs a path", name)
			}
			*a.path(name) = args[0]
			args = args[1:]
		default:
			if os.Getpid() == 1 { // the kernel hands on what it does not know of its command line
				continue
			}
			return a, fmt.Errorf("%.100q is no option", name)
		}
	}
	return a, nil
}

// path returns where the value of an option goes.
func (a *arguments) path(option string) *string {
	switch option {
	case "--runtime":
		return &a.runtime
	case "--cdh-config":
		return &a.cdhConfig
	case "--resources":
		return &a.resources
	default:
		return &a.config
	}
}
