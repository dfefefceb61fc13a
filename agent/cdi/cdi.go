// SPDX-License-Identifier: Apache-2.0
// Copyright The Cloister Authors.

// Package cdi gives containers the devices that the Container Device Interface describes, for instance GPUs: device
// nodes, mounts, environment and hooks, as specification files of the guest say.
//
// The host names the devices, in annotations of the container or by its environment. What comes with a device is read
// from the guest's own folders only, which its image or its drivers' programs fill, and is trusted: it is put into the
// spec after agent/oci has checked that.
//
// The format is that of https://github.com/cncf-tags/container-device-interface; annotations and the environment variable
// are used as Kata's agent does.
package cdi

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"slices"
	"strconv"
	"strings"
	"time"

	specs "github.com/opencontainers/runtime-spec/specs-go"
	"tags.cncf.io/container-device-interface/pkg/cdi"
	"tags.cncf.io/container-device-interface/pkg/parser"
)

const (
	// maxDevices bounds the devices that one container may name, maxName the length of a name.
	maxDevices, maxName = 256, 512
	// interval is how often the folders are read again while a device is missing.
	interval = 250 * time.Millisecond
)

// visible is the environment variable by which a container asks for devices itself.
const visible = "VISIBLE_CDI_DEVICES"

// DefaultDirs returns the folders that hold specification files, later ones having precedence.
func DefaultDirs() []string { return []string{"/etc/cdi", "/var/run/cdi"} }

// Inject puts the devices that annotations with the prefix cdi.k8s.io/ name into spec, see InjectNamed. Without any it
// reads nothing.
func Inject(ctx context.Context, spec *specs.Spec, annotations map[string]string, dirs []string, timeout time.Duration) error {
	names, err := Annotated(annotations)
	if err != nil {
		return err
	}
	return InjectNamed(ctx, spec, names, dirs, timeout)
}

// Annotated returns the devices that annotations with the prefix cdi.k8s.io/ name: each value is a list of qualified
// names ("vendor.com/class=device") with commas in between.
func Annotated(annotations map[string]string) ([]string, error) {
	_, names, err := cdi.ParseAnnotations(annotations)
	if err != nil {
		return nil, fmt.Errorf("CDI annotation: %w", err)
	}
	return unique(names)
}

// Visible returns the devices that an environment names by VISIBLE_CDI_DEVICES: a list with colons in between, each entry
// a kind and either "all" or numbers with commas in between, for instance "nvidia.com/gpu=0,1:nvidia.com/ib=all". An empty
// value, "none" and "void" name no device.
func Visible(env []string) ([]string, error) {
	for _, variable := range env {
		value, ok := strings.CutPrefix(variable, visible+"=")
		if !ok {
			continue
		}
		if value = strings.TrimSpace(value); value == "" || value == "none" || value == "void" {
			return nil, nil
		}
		var names []string
		for entry := range strings.SplitSeq(value, ":") {
			of, err := visibleEntry(strings.TrimSpace(entry))
			if err != nil {
				return nil, fmt.Errorf("environment variable %s: %w", visible, err)
			}
			names = append(names, of...)
		}
		return unique(names)
	}
	return nil, nil
}

// visibleEntry returns the devices of one entry.
func visibleEntry(entry string) ([]string, error) {
	kind, list, ok := strings.Cut(entry, "=")
	if !ok {
		return nil, fmt.Errorf("entry %.140q is not KIND=DEVICES", entry)
	}
	kind = strings.TrimSpace(kind)
	devices := strings.Split(list, ",")
	var names []string
	for _, device := range devices {
		device = strings.TrimSpace(device)
		if n, err := strconv.ParseUint(device, 10, 32); err == nil {
			device = strconv.FormatUint(n, 10)
		} else if device != "all" || len(devices) > 1 {
			return nil, fmt.Errorf("entry %.140q: devices are numbers, or all and nothing else", entry)
		}
		name := kind + "=" + device
		if !parser.IsQualifiedName(name) {
			return nil, fmt.Errorf("%.140q is not the name of a device", name)
		}
		names = append(names, name)
	}
	return names, nil
}

// unique returns the names in order, each once.
func unique(names []string) ([]string, error) {
	names = slices.Compact(slices.Sorted(slices.Values(names)))
	if len(names) > maxDevices {
		return nil, fmt.Errorf("%d CDI devices, at most %d are offered", len(names), maxDevices)
	}
	for _, name := range names {
		if len(name) > maxName {
			return nil, fmt.Errorf("the name of a CDI device is longer than %d bytes", maxName)
		}
	}
	return names, nil
}

// InjectNamed puts devices with these qualified names into spec, all or, on error, none. Until all of them are described
// in dirs, and what they are made of is there, it waits, for at most timeout: drivers may still be starting. A device of
// a kind that is described, but without this device, will not come and is an error at once.
//
// The mounts of spec may be in another order afterwards.
func InjectNamed(ctx context.Context, spec *specs.Spec, names, dirs []string, timeout time.Duration) error {
	names, err := unique(names)
	if err != nil || len(names) == 0 {
		return err
	}
	ctx, cancel := context.WithTimeout(ctx, timeout)
	defer cancel()
	cache, err := cdi.NewCache(cdi.WithAutoRefresh(false), cdi.WithSpecDirs(dirs...))
	if err != nil {
		return fmt.Errorf("read CDI specifications: %w", err)
	}
	ticker := time.NewTicker(interval)
	defer ticker.Stop()
	for {
		err := try(cache, spec, names)
		if err == nil {
			return nil
		}
		if missing := neverThere(cache.ListDevices(), names); len(missing) > 0 {
			return fmt.Errorf("CDI devices %s do not exist: their kind is described, without them: %w", strings.Join(missing, ", "), err)
		}
		select {
		case <-ctx.Done():
			return fmt.Errorf("wait for CDI devices: %w: %w", context.Cause(ctx), err)
		case <-ticker.C:
		}
		// A file that cannot be read concerns other devices, or is why one is missing: try says so.
		_ = cache.Refresh()
	}
}

// try puts the devices into spec, or leaves it as it is.
func try(cache *cdi.Cache, spec *specs.Spec, names []string) error {
	// The library changes a spec bit by bit and stops where it fails.
	data, err := json.Marshal(spec)
	if err != nil {
		return err
	}
	var changed specs.Spec
	if err := json.Unmarshal(data, &changed); err != nil {
		return err
	}
	if _, err := cache.InjectDevices(&changed, names...); err != nil {
		for _, unreadable := range cache.GetErrors() {
			err = errors.Join(append([]error{err}, unreadable...)...)
		}
		return err
	}
	*spec = changed
	return nil
}

// neverThere returns the names whose kind is there, but which are not.
func neverThere(there, names []string) []string {
	var missing []string
	for _, name := range names {
		kind, _, _ := strings.Cut(name, "=")
		if !slices.Contains(there, name) && slices.ContainsFunc(there, func(d string) bool { return strings.HasPrefix(d, kind+"=") }) {
			missing = append(missing, name)
		}
	}
	return missing
}
