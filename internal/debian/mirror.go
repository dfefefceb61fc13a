// SPDX-License-Identifier: Apache-2.0
// Copyright The Cloister Authors.

package debian

import (
	"context"
	"errors"
	"fmt"
	"net/url"
	"os"
	"strings"
	"time"
)

// MirrorEnv names the environment variable that overrides the mirror found in the machine's own apt sources.
const MirrorEnv = "CLOISTER_DEBIAN_MIRROR"

// Mirror returns the URI of the Debian mirror to use: the value of MirrorEnv, or else the first Debian archive among
// the machine's own apt sources. On a machine whose package lists are empty it refreshes them when it may (root).
func Mirror(ctx context.Context) (string, error) {
	if m := os.Getenv(MirrorEnv); m != "" {
		return checkMirror(m)
	}
	m, err := mirrorFromLists(ctx)
	if err != nil || m != "" {
		return m, err
	}
	if os.Geteuid() != 0 {
		return "", fmt.Errorf("find Debian mirror: the package lists of this machine name none: run 'apt-get update' as root, or set %s to the URI of a Debian mirror", MirrorEnv)
	}
	if _, err := run(ctx, 10*time.Minute, "", "apt-get", "-q", "update"); err != nil {
		return "", fmt.Errorf("refresh package lists of this machine: %w", err)
	}
	if m, err = mirrorFromLists(ctx); err != nil || m != "" {
		return m, err
	}
	return "", fmt.Errorf("find Debian mirror: no apt source of this machine is Debian: set %s to the URI of a Debian mirror", MirrorEnv)
}

func mirrorFromLists(ctx context.Context) (string, error) {
	out, err := run(ctx, time.Minute, "", "apt-get", "indextargets", "--format", "$(ORIGIN) $(LABEL) $(REPO_URI)", "Created-By: Packages")
	if err != nil {
		return "", fmt.Errorf("find Debian mirror: %w", err)
	}
	m := firstDebian(out)
	if m == "" {
		return "", nil
	}
	return checkMirror(m)
}

// firstDebian picks the URI of the first line "Debian Debian URI"; a line "Debian Debian-Security URI" is another
// archive, which does not hold whole suites.
func firstDebian(out string) string {
	for line := range strings.Lines(out) {
		f := strings.Fields(line)
		if len(f) == 3 && f[0] == "Debian" && f[1] == "Debian" {
			return f[2]
		}
	}
	return ""
}

func checkMirror(m string) (string, error) {
	if strings.ContainsAny(m, " \t\r\n[]#") {
		return "", fmt.Errorf("find Debian mirror: %q is not a URI", m)
	}
	u, err := url.Parse(m)
	if err != nil {
		return "", fmt.Errorf("find Debian mirror: %w", err)
	}
	if u.Scheme == "" || u.Host == "" && u.Path == "" && u.Opaque == "" {
		return "", errors.New("find Debian mirror: URI without scheme or host")
	}
	return m, nil
}
