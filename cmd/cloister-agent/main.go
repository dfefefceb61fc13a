// SPDX-License-Identifier: Apache-2.0
// Copyright The Cloister Authors.

// Command cloister-agent is the guest's only program: the sealed initramfs starts it as PID 1, and it serves the Kata
// agent API until the sandbox is destroyed. This folder is the only place that knows every concrete type.
package main

import (
	"fmt"
	"os"

	"github.com/cloister-cc/cloister/agent/boot"
	"github.com/cloister-cc/cloister/internal/version"
)

const usage = `cloister-agent is the guest agent of confidential containers. It runs as PID 1 of a guest:
the kernel starts it from an initramfs that "cloister build" made. To build and start one:

  cloister build --help
  cloister run --help

Options:
  --version   print the version
  --help      print this text
`

func main() {
	if os.Getpid() == 1 {
		runPID1()
		return
	}
	switch {
	case len(os.Args) == 3 && os.Args[1] == unlockCommand:
		path, err := boot.UnlockDisk(os.Args[2], unlock)
		if err != nil {
			fmt.Fprintln(os.Stderr, err)
			os.Exit(1)
		}
		fmt.Println(path)
	case len(os.Args) == 2 && (os.Args[1] == "--version" || os.Args[1] == "-v"):
		fmt.Println("cloister-agent", version.String())
	case len(os.Args) == 2 && (os.Args[1] == "--help" || os.Args[1] == "-h"):
		fmt.Print(usage)
	default:
		fmt.Fprint(os.Stderr, "cloister-agent: not started as PID 1; nothing done\n\n", usage)
		os.Exit(2)
	}
}
