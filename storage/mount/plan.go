// SPDX-License-Identifier: Apache-2.0
// Copyright The Cloister Authors.

package mount

import (
	"errors"
	"fmt"
	"strings"

	"golang.org/x/sys/unix"
)

// maxData is the size in bytes that the kernel copies of mount data: one page with a zero byte at its end. Pages are
// 4 KiB on every architecture that we support.
const maxData = 4095

// call is one mount(2).
type call struct {
	source, target, fstype string
	flags                  uintptr
	data                   string
}

// makes tells whether the call makes a mount, rather than changing one.
func (c call) makes() bool {
	return c.flags&(unix.MS_REMOUNT|unix.MS_PRIVATE|unix.MS_SHARED|unix.MS_SLAVE|unix.MS_UNBINDABLE) == 0
}

// flag is what an option does to the flags: it sets some after it has cleared some.
type flag struct{ set, clear uintptr }

// flagOf returns what mount(8)'s option does; false if it is no flag.
func flagOf(option string) (flag, bool) {
	const atime = unix.MS_NOATIME | unix.MS_RELATIME | unix.MS_STRICTATIME
	f, ok := map[string]flag{
		"defaults":      {0, 0},
		"ro":            {unix.MS_RDONLY, 0},
		"rw":            {0, unix.MS_RDONLY},
		"nosuid":        {unix.MS_NOSUID, 0},
		"suid":          {0, unix.MS_NOSUID},
		"nodev":         {unix.MS_NODEV, 0},
		"dev":           {0, unix.MS_NODEV},
		"noexec":        {unix.MS_NOEXEC, 0},
		"exec":          {0, unix.MS_NOEXEC},
		"nosymfollow":   {unix.MS_NOSYMFOLLOW, 0},
		"symfollow":     {0, unix.MS_NOSYMFOLLOW},
		"sync":          {unix.MS_SYNCHRONOUS, 0},
		"async":         {0, unix.MS_SYNCHRONOUS},
		"dirsync":       {unix.MS_DIRSYNC, 0},
		"lazytime":      {unix.MS_LAZYTIME, 0},
		"nolazytime":    {0, unix.MS_LAZYTIME},
		"noatime":       {unix.MS_NOATIME, atime},
		"atime":         {0, unix.MS_NOATIME},
		"relatime":      {unix.MS_RELATIME, atime},
		"norelatime":    {0, unix.MS_RELATIME},
		"strictatime":   {unix.MS_STRICTATIME, atime},
		"nostrictatime": {0, unix.MS_STRICTATIME},
		"nodiratime":    {unix.MS_NODIRATIME, 0},
		"diratime":      {0, unix.MS_NODIRATIME},
		"silent":        {unix.MS_SILENT, 0},
		"loud":          {0, unix.MS_SILENT},
		"remount":       {unix.MS_REMOUNT, 0},
		"bind":          {unix.MS_BIND, 0},
		"rbind":         {unix.MS_BIND | unix.MS_REC, 0},
	}[option]
	return f, ok
}

// propagationOf returns the propagation that an option names; false if it names none.
func propagationOf(option string) (uintptr, bool) {
	p, ok := map[string]uintptr{
		"private": unix.MS_PRIVATE, "rprivate": unix.MS_PRIVATE | unix.MS_REC,
		"shared": unix.MS_SHARED, "rshared": unix.MS_SHARED | unix.MS_REC,
		"slave": unix.MS_SLAVE, "rslave": unix.MS_SLAVE | unix.MS_REC,
		"unbindable": unix.MS_UNBINDABLE, "runbindable": unix.MS_UNBINDABLE | unix.MS_REC,
	}[option]
	return p, ok
}

// parsed is what a list of options comes to.
type parsed struct {
	flags       uintptr
	propagation []uintptr
	data        string
}

// parse sorts options into flags, propagation and data. A later option wins over an earlier one.
func parse(options []string) (parsed, error) {
	var p parsed
	var data []string
	for _, option := range options {
		if f, ok := flagOf(option); ok {
			p.flags = p.flags&^f.clear | f.set
			continue
		}
		if f, ok := propagationOf(option); ok {
			p.propagation = append(p.propagation, f)
			continue
		}
		if option == "" || strings.ContainsRune(option, 0) {
			return parsed{}, fmt.Errorf("mount option %q", option)
		}
		data = append(data, option)
	}
	p.data = strings.Join(data, ",")
	if len(p.data) > maxData {
		return parsed{}, fmt.Errorf("mount options have %d bytes, the kernel takes %d", len(p.data), maxData)
	}
	return p, nil
}

// plan lists the system calls for a mount.
func plan(source, target, fstype string, options []string) ([]call, error) {
	p, err := parse(options)
	if err != nil {
		return nil, err
	}
	if target == "" {
		return nil, errors.New("no target")
	}
	var calls []call
	const structure = unix.MS_BIND | unix.MS_REC
	switch attributes := p.flags &^ (structure | unix.MS_SILENT); {
	case p.flags&unix.MS_REMOUNT != 0:
		calls = append(calls, call{source, target, fstype, p.flags, p.data})
	case p.flags&unix.MS_BIND != 0:
		if p.data != "" {
			return nil, fmt.Errorf("a bind mount takes no data, got %q", p.data)
		}
		// The kernel ignores attributes in the call that makes a bind mount.
		calls = append(calls, call{source, target, "", p.flags & structure, ""})
		if attributes != 0 {
			calls = append(calls, call{"", target, "", attributes | unix.MS_BIND | unix.MS_REMOUNT, ""})
		}
	case fstype != "" || p.flags != 0 || p.data != "":
		if fstype == "" {
			return nil, errors.New("no file system type")
		}
		calls = append(calls, call{source, target, fstype, p.flags, p.data})
	case len(p.propagation) == 0:
		return nil, errors.New("neither a file system type, nor bind, remount or a propagation")
	}
	for _, f := range p.propagation {
		calls = append(calls, call{"", target, "", f, ""})
	}
	return calls, nil
}

// overlayData returns an overlay's mount data.
func overlayData(lower []string, upper, work string) (string, error) {
	if (upper == "") != (work == "") {
		return "", errors.New("upper and work folder belong together")
	}
	if len(lower) == 0 || upper == "" && len(lower) == 1 {
		return "", fmt.Errorf("%d lower layers are too few", len(lower))
	}
	escaped := make([]string, len(lower))
	for i, dir := range lower {
		if err := checkLayer(dir); err != nil {
			return "", err
		}
		escaped[i] = escape(dir, `\:,`)
	}
	data := "lowerdir=" + strings.Join(escaped, ":")
	if upper != "" {
		if err := errors.Join(checkLayer(upper), checkLayer(work)); err != nil {
			return "", err
		}
		data += ",upperdir=" + escape(upper, `\,`) + ",workdir=" + escape(work, `\,`)
	}
	if len(data) > maxData {
		return "", fmt.Errorf("paths of %d layers need %d bytes, the kernel takes %d: use shorter ones", len(lower), len(data), maxData)
	}
	return data, nil
}

func checkLayer(dir string) error {
	if !strings.HasPrefix(dir, "/") || strings.ContainsRune(dir, 0) {
		return fmt.Errorf("overlay layer %q is not an absolute path", dir)
	}
	return nil
}

// escape puts a backslash before each of the special characters, as overlayfs reads it.
func escape(s, special string) string {
	var b strings.Builder
	for _, r := range []byte(s) {
		if strings.IndexByte(special, r) >= 0 {
			b.WriteByte('\\')
		}
		b.WriteByte(r)
	}
	return b.String()
}
