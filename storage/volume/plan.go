// SPDX-License-Identifier: Apache-2.0
// Copyright The Cloister Authors.

package volume

import (
	"fmt"
	"math"
	"path"
	"regexp"
	"slices"
	"strconv"
	"strings"
)

// Bounds of what a storage may say.
const (
	maxMountPoint = 4095
	maxOptions    = 64
	maxOption     = 1024
)

const (
	fsTmp  = "tmpfs"
	fsHuge = "hugetlbfs"
)

// plan is what a storage comes to after all checks.
type plan struct {
	driver, rel, fstype string
	flags, data         []string // mount options by kind
	gid                 *uint32
	mode                *uint32 // of a folder
	pageSize, size      uint64  // of a hugetlbfs
	group               *FSGroup
}

// The places of volumes below the run folder. [^/]+ is one name.
var (
	shmPlace       = regexp.MustCompile(`^sandbox/shm$`)
	ephemeralPlace = regexp.MustCompile(`^sandbox/ephemeral/[^/]+$`)
	// The shim leaves "rootfs" out if the container's root file system is a block device.
	localPlace = regexp.MustCompile(`^shared/containers/[a-zA-Z0-9][a-zA-Z0-9_.-]+/(rootfs/)?local/[^/]+$`)
)

// The forms of options' values.
var (
	sizeForm   = regexp.MustCompile(`^[0-9]{1,18}[kKmMgG]?$|^[0-9]{1,3}%$`)
	countForm  = regexp.MustCompile(`^[0-9]{1,18}[kKmMgG]?$`)
	octalForm  = regexp.MustCompile(`^0?[0-7]{1,4}$`)
	numberForm = regexp.MustCompile(`^[0-9]{1,10}$`)
	bytesForm  = regexp.MustCompile(`^[0-9]{1,18}$`)
)

// formsOf returns the form of the value of each option with a value that a file system (or "local") takes.
func formsOf(fstype string) map[string]*regexp.Regexp {
	switch fstype {
	case fsTmp:
		return map[string]*regexp.Regexp{"size": sizeForm, "nr_inodes": countForm, "mode": octalForm, "uid": numberForm, "gid": numberForm}
	case fsHuge:
		return map[string]*regexp.Regexp{"size": bytesForm, "pagesize": bytesForm, "mode": octalForm, "uid": numberForm, "gid": numberForm}
	default:
		return map[string]*regexp.Regexp{"mode": octalForm}
	}
}

// flags are the options without a value that a mounted volume may have.
func isFlag(option string) bool {
	return slices.Contains([]string{
		"ro", "rw", "nosuid", "suid", "nodev", "dev", "noexec", "exec", "noatime", "relatime", "strictatime", "nodiratime",
	}, option)
}

// newPlan checks a storage.
func newPlan(runDir string, s Storage) (plan, error) {
	p := plan{driver: s.Driver, fstype: s.FSType}
	var places []*regexp.Regexp
	switch s.Driver {
	case DriverEphemeral:
		if s.FSType != fsTmp && s.FSType != fsHuge {
			return plan{}, fmt.Errorf("%w: file system %.100q for driver %s", ErrInvalid, s.FSType, s.Driver)
		}
		places = []*regexp.Regexp{shmPlace, ephemeralPlace}
	case DriverLocal:
		p.fstype = "" // the shim says "local"
		places = []*regexp.Regexp{localPlace}
	default:
		return plan{}, fmt.Errorf("%w: %.100q", ErrUnsupported, s.Driver)
	}
	var err error
	if p.rel, err = relative(runDir, s.MountPoint, places); err != nil {
		return plan{}, err
	}
	if s.Group != nil {
		if s.Group.ID == math.MaxUint32 { // chown(2) takes it for "unchanged"
			return plan{}, fmt.Errorf("%w: group %d", ErrInvalid, s.Group.ID)
		}
		p.group = new(*s.Group)
	}
	if err := p.setOptions(s.Options); err != nil {
		return plan{}, err
	}
	if p.fstype == fsHuge && (p.pageSize == 0 || p.size/p.pageSize == 0 || p.pageSize%1024 != 0) {
		return plan{}, fmt.Errorf("%w: %d bytes in pages of %d bytes", ErrInvalid, p.size, p.pageSize)
	}
	return p, nil
}

// newUpdate checks a storage that changes an existing tmpfs.
func newUpdate(runDir string, s Storage) (plan, error) {
	if s.FSType != fsTmp {
		return plan{}, fmt.Errorf("%w: file system %.100q cannot be updated", ErrInvalid, s.FSType)
	}
	// The shim's options include "remount", which every update is.
	s.Options = slices.DeleteFunc(slices.Clone(s.Options), func(o string) bool { return o == "remount" })
	return newPlan(runDir, s)
}

// relative checks a mount point and returns it without the run folder.
func relative(runDir, mountPoint string, places []*regexp.Regexp) (string, error) {
	rel, ok := strings.CutPrefix(mountPoint, runDir+"/")
	// A clean path has no element "." or "..".
	if !ok || len(mountPoint) > maxMountPoint || path.Clean(mountPoint) != mountPoint || strings.ContainsRune(rel, 0) ||
		!slices.ContainsFunc(places, func(place *regexp.Regexp) bool { return place.MatchString(rel) }) {
		return "", fmt.Errorf("%w: no place for such a volume", ErrInvalid)
	}
	for part := range strings.SplitSeq(rel, "/") {
		if len(part) > 255 {
			return "", fmt.Errorf("%w: a name of %d bytes", ErrInvalid, len(part))
		}
	}
	return rel, nil
}

// setOptions sorts options.
func (p *plan) setOptions(options []string) error {
	var all []string
	for _, option := range options {
		if len(option) > maxOption || len(all) > maxOptions {
			return fmt.Errorf("%w: too many or too long options", ErrInvalid)
		}
		all = append(all, strings.Split(option, ",")...)
	}
	if len(all) > maxOptions {
		return fmt.Errorf("%w: %d options", ErrInvalid, len(all))
	}
	forms := formsOf(p.fstype)
	for _, option := range all {
		key, value, hasValue := strings.Cut(option, "=")
		form := forms[key]
		switch {
		case key == "fsgid" && hasValue:
			gid, err := strconv.ParseUint(value, 10, 32)
			if err != nil || gid == math.MaxUint32 {
				return fmt.Errorf("%w: option %.100q", ErrInvalid, option)
			}
			p.gid = new(uint32(gid))
		case !hasValue && p.fstype != "" && isFlag(option):
			p.flags = append(p.flags, option)
		case form == nil || !hasValue || !form.MatchString(value):
			return fmt.Errorf("%w: option %.100q", ErrInvalid, option)
		default:
			if err := p.setValue(key, value); err != nil {
				return fmt.Errorf("%w: option %.100q", err, option)
			}
			p.data = append(p.data, option)
		}
	}
	return nil
}

// setValue notes the values that are needed beside the mount. Their form has been checked.
func (p *plan) setValue(key, value string) error {
	switch {
	case key == "uid" || key == "gid":
		if id, err := strconv.ParseUint(value, 10, 32); err != nil || id == math.MaxUint32 {
			return ErrInvalid
		}
	case key == "mode":
		mode, err := strconv.ParseUint(value, 8, 32)
		if err != nil || mode > 0o7777 {
			return ErrInvalid
		}
		p.mode = new(uint32(mode))
	case p.fstype == fsHuge:
		n, err := strconv.ParseUint(value, 10, 64)
		if err != nil {
			return ErrInvalid
		}
		if key == "pagesize" {
			p.pageSize = n
		} else {
			p.size = n
		}
	}
	return nil
}

// compact drops earlier repetitions of flags, so that updates do not make the list grow.
func compact(flags []string) []string {
	var out []string
	for i, f := range flags {
		if !slices.Contains(flags[i+1:], f) {
			out = append(out, f)
		}
	}
	return out
}
