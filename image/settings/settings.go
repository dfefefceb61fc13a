// SPDX-License-Identifier: Apache-2.0
// Copyright The Cloister Authors.

// Package settings reads the table [image] of a cdh.toml, by which guests of Confidential Containers are told where images
// come from, and which. It knows the names there and those of our own; what they mean is up to package image and to who
// makes its configuration. Its input may come from a host: it is bounded, and what is not known is an error.
package settings

import (
	"bytes"
	"errors"
	"fmt"
	"slices"
	"strings"

	"github.com/pelletier/go-toml/v2"

	"github.com/cloister-cc/cloister/initramfs/layout"
)

// MaxSize bounds a cdh.toml, in bytes.
const MaxSize = 1 << 20

// file is a cdh.toml as confidential-data-hub's example.config.toml has it. What is any is for other parts of a guest.
type file struct {
	Socket           any   `toml:"socket"`
	AA               any   `toml:"aa"`
	KBC              any   `toml:"kbc"`
	Credentials      any   `toml:"credentials"`
	Log              any   `toml:"log"`
	SkipVerification any   `toml:"skip_sealed_secret_verification"`
	Image            table `toml:"image"`
}

// table is [image]; the fields of its own have no meaning here.
type table struct {
	layout.ImageSettings
	WorkDir         any   `toml:"work_dir"`
	DefaultSnapshot any   `toml:"default_snapshot"`
	Proxy           proxy `toml:"image_pull_proxy"`
}

type proxy struct {
	layout.ImageProxy
	HTTPProxy any `toml:"http_proxy"`
}

// Parse reads a cdh.toml. Settings that have no effect in this guest are returned by name: those of other parts, the work
// folder, and the proxy for registries without TLS. A name that is not known in [image] or at the top is an error.
func Parse(data []byte) (image layout.ImageSettings, ignored []string, err error) {
	if len(data) > MaxSize {
		return layout.ImageSettings{}, nil, fmt.Errorf("image settings are larger than %d bytes", MaxSize)
	}
	if err := checkNames(data); err != nil {
		return layout.ImageSettings{}, nil, err
	}
	var f file
	dec := toml.NewDecoder(bytes.NewReader(data))
	dec.DisallowUnknownFields()
	if err := dec.Decode(&f); err != nil {
		return layout.ImageSettings{}, nil, fmt.Errorf("image settings: %w", explain(err))
	}
	image = f.Image.ImageSettings
	image.Proxy = f.Image.Proxy.ImageProxy
	if err := image.Validate(); err != nil {
		return layout.ImageSettings{}, nil, err
	}
	for name, value := range map[string]any{
		"socket": f.Socket, "aa": f.AA, "kbc": f.KBC, "credentials": f.Credentials, "log": f.Log,
		"skip_sealed_secret_verification":   f.SkipVerification,
		"image.work_dir":                    f.Image.WorkDir,
		"image.default_snapshot":            f.Image.DefaultSnapshot,
		"image.image_pull_proxy.http_proxy": f.Image.Proxy.HTTPProxy,
	} {
		if value != nil {
			ignored = append(ignored, name)
		}
	}
	if image.Proxy.HTTPSProxy == "" && image.Proxy.NoProxy != "" {
		image.Proxy.NoProxy = ""
		ignored = append(ignored, "image.image_pull_proxy.no_proxy")
	}
	slices.Sort(ignored)
	return image, ignored, nil
}

// checkNames refuses names in another spelling, which the decoder would take for those that it knows.
func checkNames(data []byte) error {
	var all map[string]any
	if err := toml.Unmarshal(data, &all); err != nil {
		return fmt.Errorf("image settings: %w", explain(err))
	}
	image, _ := all["image"].(map[string]any)
	proxy, _ := image["image_pull_proxy"].(map[string]any)
	limits, _ := image["limits"].(map[string]any)
	for _, table := range []map[string]any{all, image, proxy, limits} {
		for name := range table {
			if name != strings.ToLower(name) {
				return fmt.Errorf("image settings: unknown setting %.100q", name)
			}
		}
	}
	return nil
}

// explain names what is wrong, without the lines around it: they may hold a proxy's password.
func explain(err error) error {
	if strict, ok := errors.AsType[*toml.StrictMissingError](err); ok && len(strict.Errors) > 0 {
		row, _ := strict.Errors[0].Position()
		return fmt.Errorf("line %d: unknown setting %.100q", row, fmt.Sprint(strict.Errors[0].Key()))
	}
	if decode, ok := errors.AsType[*toml.DecodeError](err); ok {
		row, column := decode.Position()
		return fmt.Errorf("line %d, column %d: %s", row, column, decode.Error())
	}
	return err
}
