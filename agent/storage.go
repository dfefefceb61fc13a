// SPDX-License-Identifier: Apache-2.0
// Copyright The Cloister Authors.

package agent

import (
	"encoding/json"
	"fmt"
	"regexp"
	"strings"
)

// maxDriverOption bounds the JSON of the image_guest_pull driver, in bytes.
const maxDriverOption = 64 << 10

// pull says which root file system a container gets.
type pull struct {
	pause     bool
	reference string
}

// Metadata by which containerd and CRI-O mark a pod's pause container.
var pauseMarks = [...]string{"io.kubernetes.cri.container-type", "io.kubernetes.cri-o.ContainerType"}

// parsePull finds the root file system among a container's storages.
func parsePull(storages []Storage) (pull, error) {
	var found []pull
	for _, s := range storages {
		if s.Driver != DriverImageGuestPull {
			return pull{}, fmt.Errorf("storage driver %q: %w", s.Driver, ErrUnsupported)
		}
		pause, err := marksPause(s.DriverOptions)
		if err != nil {
			return pull{}, err
		}
		if !pause && s.Source == "" {
			return pull{}, fmt.Errorf("%w: storage %s names no image", ErrInvalidArgument, s.Driver)
		}
		found = append(found, pull{pause: pause, reference: s.Source})
	}
	if len(found) != 1 {
		return pull{}, fmt.Errorf("%w: %d storages of driver %s, where a container has exactly one as its root file system",
			ErrInvalidArgument, len(found), DriverImageGuestPull)
	}
	return found[0], nil
}

// marksPause reads the driver options of an image_guest_pull storage: "image_guest_pull={JSON}", where the JSON is
// Kata's ImagePullVolume.
func marksPause(options []string) (bool, error) {
	pause := false
	for _, option := range options {
		value, ok := strings.CutPrefix(option, DriverImageGuestPull+"=")
		if !ok {
			return false, fmt.Errorf("driver option %.100q of %s: %w", option, DriverImageGuestPull, ErrUnsupported)
		}
		if len(value) > maxDriverOption {
			return false, fmt.Errorf("%w: driver option of %s is longer than %d bytes", ErrInvalidArgument, DriverImageGuestPull, maxDriverOption)
		}
		var volume struct {
			Metadata map[string]string `json:"metadata"`
		}
		if err := json.Unmarshal([]byte(value), &volume); err != nil {
			return false, fmt.Errorf("%w: driver option of %s: %w", ErrInvalidArgument, DriverImageGuestPull, err)
		}
		for _, mark := range pauseMarks {
			pause = pause || volume.Metadata[mark] == "sandbox"
		}
	}
	return pause, nil
}

// driverEphemeral is the storage driver of a file system in memory.
const driverEphemeral = "ephemeral"

var shmSize = regexp.MustCompile(`^[1-9][0-9]{0,15}[kmgKMG]?$`)

// shmOptions returns the data of the tmpfs on shmDir, the shared memory of the sandbox's containers, which the shim
// describes by an ephemeral storage. It is the only storage that a sandbox has.
func shmOptions(storages []Storage, shmDir string) (string, error) {
	size := "64m" // what container engines have as their default
	for _, s := range storages {
		if s.Driver != driverEphemeral || s.FSType != "tmpfs" || s.MountPoint != shmDir {
			return "", fmt.Errorf("storage driver %q (%s on %q) for a sandbox: %w", s.Driver, s.FSType, s.MountPoint, ErrUnsupported)
		}
		for _, option := range s.Options {
			value, ok := strings.CutPrefix(option, "size=")
			if ok && !shmSize.MatchString(value) {
				return "", fmt.Errorf("%w: size %q of shared memory", ErrInvalidArgument, value)
			}
			if ok {
				size = value
			}
		}
	}
	return "mode=1777,size=" + size, nil
}
