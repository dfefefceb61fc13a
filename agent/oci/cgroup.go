// SPDX-License-Identifier: Apache-2.0
// Copyright The Cloister Authors.

package oci

import (
	"errors"
	"fmt"
	"path"
	"regexp"
	"strings"
)

// defaultCgroup is the parent of containers that come without a cgroup path.
const defaultCgroup = "/containers"

var cgroupComponent = regexp.MustCompile(`^[a-zA-Z0-9_][a-zA-Z0-9_.@-]{0,254}$`)

// cgroupPath turns a cgroup path of the shim, also in systemd's form "slice:prefix:name", into an absolute one that
// is not the root. An empty one becomes a path made of the container's id.
func cgroupPath(p, id string) (string, error) {
	parts := strings.FieldsFunc(p, func(r rune) bool { return r == '/' || r == ':' })
	if len(parts) == 0 {
		return path.Join(defaultCgroup, id), nil
	}
	if len(p) > 4095 || len(parts) > 32 {
		return "", errors.New("container spec: cgroup path is too long")
	}
	for _, part := range parts {
		if !cgroupComponent.MatchString(part) {
			return "", fmt.Errorf("container spec: cgroup path %q has the malformed part %q", p, part)
		}
	}
	return "/" + strings.Join(parts, "/"), nil
}

// CgroupsOverlap reports whether one of two cgroup paths of converted specs is or contains the other.
// Containers must not overlap: to remove the one would kill the other.
func CgroupsOverlap(a, b string) bool {
	return strings.HasPrefix(a+"/", b+"/") || strings.HasPrefix(b+"/", a+"/")
}
