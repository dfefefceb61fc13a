// SPDX-License-Identifier: Apache-2.0
// Copyright The Cloister Authors.

package config

import (
	"errors"
	"fmt"
	"io"
	"io/fs"
	"maps"
	"os"
	"slices"
	"strings"

	"golang.org/x/sys/unix"
)

const (
	// maxFile bounds the configuration file, in bytes.
	maxFile = 1 << 20
	// MaxCommandLine bounds the kernel command line, in bytes. No kernel takes as much.
	MaxCommandLine = 64 << 10
	// maxWarnings bounds the warnings about one source.
	maxWarnings = 100
	// maxShown bounds what a message quotes of a name or value, in bytes: the host may have written it.
	maxShown = 100

	fileParam = "agent.config_file"
)

// Options are the sources of settings.
type Options struct {
	// CommandLine is the text of /proc/cmdline, at most MaxCommandLine bytes. If File is set, only what decides on images
	// is looked at.
	CommandLine string
	// File is the path of a configuration file, as the option -c has it; empty means none.
	File string
	// Env looks up an environment variable, as os.LookupEnv does; nil means that there are none.
	Env func(name string) (string, bool)
	// Open opens the configuration file; nil opens regular files of this machine.
	Open func(path string) (io.ReadCloser, error)
}

// Warning tells an operator of a setting that was not taken as it stands. Its texts are bounded, and free of control
// characters.
type Warning struct {
	// Source is where the setting stands: "kernel command line", "configuration file" or "environment".
	Source string
	// Setting is its name there.
	Setting string
	// Text says what happens instead.
	Text string
}

// String is the warning as one line.
func (w Warning) String() string { return w.Source + ": " + w.Setting + ": " + w.Text }

// Load gathers the settings with the precedence of Kata's agent:
//
//   - File, then the environment over it;
//   - else, if the command line names a file with agent.config_file, that file alone;
//   - else the command line, then the environment over it.
//
// What the command line says about images counts in any case, and below the file.
//
// A malformed value is an error that names it, except where Kata goes on with another one: that is done here as well,
// with a warning, unless it would turn a protection off. With an error come the warnings
// up to it.
func Load(o Options) (*Config, []Warning, error) {
	c := defaults()
	l := &loader{Options: o}
	l.settings = settings(&c, &l.cgroupNoV1)
	if err := l.load(); err != nil {
		return nil, l.warnings, err
	}
	c.UnifiedCgroupHierarchy = c.UnifiedCgroupHierarchy || l.cgroupNoV1
	return &c, l.warnings, nil
}

type loader struct {
	Options

	settings   []setting
	cgroupNoV1 bool
	warnings   []Warning

	source string
	// warned holds the settings of the source that need no second warning.
	warned map[string]bool
}

// from starts a source.
func (l *loader) from(source string) { l.source, l.warned = source, make(map[string]bool) }

// warn adds a warning, one a setting and text, and not without end.
func (l *loader) warn(name, text string) {
	if l.warned[name+"\x00"+text] || len(l.warned) > maxWarnings {
		return
	}
	l.warned[name+"\x00"+text] = true
	if len(l.warned) > maxWarnings {
		name, text = "more settings", "their warnings are left out"
	}
	l.warnings = append(l.warnings, Warning{Source: l.source, Setting: name, Text: text})
}

func (l *loader) load() error {
	if len(l.CommandLine) > MaxCommandLine {
		return fmt.Errorf("kernel command line: it is longer than %d bytes", MaxCommandLine)
	}
	if err := l.readAlways(); err != nil {
		return err
	}
	if l.File != "" {
		if err := l.readFile(l.File); err != nil {
			return err
		}
		return l.readEnv()
	}
	for p := range parameters(l.CommandLine) {
		if p.name == fileParam && p.valued {
			if p.value == "" {
				return fmt.Errorf(`kernel command line: %s is "", want the path of a file`, fileParam)
			}
			l.warnShadowed()
			return l.readFile(p.value)
		}
	}
	l.from("kernel command line")
	for p := range parameters(l.CommandLine) {
		if err := l.parameter(p); err != nil {
			return err
		}
	}
	return l.readEnv()
}

// find returns the setting of a kernel parameter.
func (l *loader) find(param string) (setting, bool) {
	at := slices.IndexFunc(l.settings, func(s setting) bool { return s.param != "" && s.param == param })
	if at < 0 {
		return setting{}, false
	}
	return l.settings[at], true
}

// readAlways reads the parameters that count beside a file.
func (l *loader) readAlways() error {
	for p := range parameters(l.CommandLine) {
		s, ok := l.find(p.name)
		if !ok || !s.always {
			continue
		}
		if v := s.value.fromText(p.value); !p.valued || v.refused || v.note != "" {
			return fmt.Errorf("kernel command line: %s is %q, want %s", p.name, shorten(p.value), s.value.want())
		}
	}
	return nil
}

// warnShadowed warns of what a file that the command line names makes void.
func (l *loader) warnShadowed() {
	const text = "it has no effect, as " + fileParam + " is given: the file alone counts"
	l.from("kernel command line")
	for p := range parameters(l.CommandLine) {
		if s, _ := l.find(p.name); strings.HasPrefix(p.name, "agent.") && p.name != fileParam && !s.always {
			l.warn(shorten(p.name), text)
		}
	}
	l.from("environment")
	for _, s := range l.settings {
		if _, ok := l.env(s.env); ok {
			l.warn(s.env, text)
		}
	}
}

func (l *loader) parameter(p parameter) error {
	s, ok := l.find(p.name)
	if !ok {
		switch {
		case p.name == fileParam:
			l.warn(fileParam, "it needs a value, so it has no effect")
		case strings.HasPrefix(p.name, "agent."):
			l.warn(shorten(p.name), "the agent does not know it, so it has no effect")
		}
		return nil
	}
	if s.always { // readAlways has read it
		return nil
	}
	if p.valued || s.value == nil {
		return l.text(s, p.name, p.value)
	}
	switch v := s.value.(type) {
	case flagValue:
		*v.to = true
	case boolValue:
		if !v.bare {
			l.warn(p.name, "it needs a value, so it has no effect")
			return nil
		}
		*v.to = true
	default:
		l.warn(p.name, "it needs a value, so it has no effect")
	}
	return nil
}

// text applies the text of a kernel parameter or an environment variable.
func (l *loader) text(s setting, name, text string) error {
	if s.value == nil {
		l.ignored(s, name, text)
		return nil
	}
	return l.judge(s, name, text, s.value.fromText(text))
}

func (l *loader) ignored(s setting, name, text string) {
	if s.harmless == "" || text != s.harmless {
		l.warn(name, "it is accepted and has no effect: "+s.instead)
	}
}

// judge makes a warning or an error of a verdict.
func (l *loader) judge(s setting, name string, given any, v verdict) error {
	shown := fmt.Sprintf("%q", shorten(fmt.Sprint(given)))
	if _, secret := s.value.(proxyValue); secret {
		shown = "set to text that is not shown, as it may hold a password"
	}
	switch {
	case v.refused:
		return fmt.Errorf("%s: %s is %s, want %s", l.source, name, shown, s.value.want())
	case v.note != "":
		l.warn(name, "it is "+shown+": "+v.note)
	}
	return nil
}

// env looks a variable up; an empty name is none.
func (l *loader) env(name string) (string, bool) {
	if name == "" || l.Env == nil {
		return "", false
	}
	return l.Env(name)
}

func (l *loader) readEnv() error {
	l.from("environment")
	for _, s := range l.settings {
		text, ok := l.env(s.env)
		if !ok {
			continue
		}
		err := l.text(s, s.env, text)
		if _, isLevel := s.value.(levelValue); isLevel && err != nil {
			// Kata keeps the level that was set before.
			l.warn(s.env, fmt.Sprintf("it is %q, so it has no effect: want %s", shorten(text), s.value.want()))
			continue
		}
		if err != nil {
			return err
		}
	}
	return nil
}

func (l *loader) readFile(path string) error {
	l.from("configuration file")
	open := l.Open
	if open == nil {
		open = openRegular
	}
	values, err := decodeFile(open, path)
	if where, ok := errors.AsType[*fs.PathError](err); ok {
		err = where.Err // it quotes the path once more, at any length
	}
	if err != nil {
		return fmt.Errorf("configuration file %q: %w", shorten(path), err)
	}
	for _, key := range slices.Sorted(maps.Keys(values)) {
		at := slices.IndexFunc(l.settings, func(s setting) bool { return s.key != "" && s.key == key })
		if at < 0 {
			l.warn(shorten(key), "the agent does not know it, so it has no effect")
			continue
		}
		s := l.settings[at]
		if s.value == nil {
			l.ignored(s, key, fmt.Sprint(values[key]))
			continue
		}
		if err := l.judge(s, key, values[key], s.value.fromTOML(values[key])); err != nil {
			return err
		}
	}
	return nil
}

// openRegular opens a regular file; a FIFO or a terminal could block the agent for ever.
func openRegular(path string) (io.ReadCloser, error) {
	f, err := os.OpenFile(path, os.O_RDONLY|unix.O_NONBLOCK, 0)
	if err != nil {
		return nil, err
	}
	info, err := f.Stat()
	if err == nil && !info.Mode().IsRegular() {
		err = errors.New("it is not a regular file")
	}
	if err != nil {
		f.Close()
		return nil, err
	}
	return f, nil
}

// shorten bounds a text of a source and makes its control characters visible.
func shorten(s string) string {
	if len(s) > maxShown {
		s = s[:maxShown] + "…"
	}
	return strings.Map(func(r rune) rune {
		if r < ' ' || r >= 0x7f && r < 0xa0 {
			return '�'
		}
		return r
	}, s)
}
