// SPDX-License-Identifier: Apache-2.0
// Copyright The Cloister Authors.

package replay

import (
	"bytes"
	"embed"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"maps"
	"path"
	"slices"
	"strings"
)

//go:embed testdata
var testdata embed.FS

// Where a sequence can run.
const (
	// Process is an agent that is a plain process of the build host.
	Process = "process"
	// Guest is an agent in a virtual machine, with control groups of its own.
	Guest = "guest"
)

// Sequence is one story that the shim and the agent go through.
type Sequence struct {
	// Name is the file's, without its ending.
	Name string `json:"-"`
	// Why says what the story is about.
	Why string `json:"why"`
	// Where maps each place where it runs (Process, Guest) to the reason.
	Where map[string]string `json:"where"`
	// Sandbox names how its sandbox begins and ends. A guest, which has one sandbox for all, takes "pod" instead.
	Sandbox string `json:"sandbox"`
	// Ends says that the sequence destroys the sandbox by itself.
	Ends bool `json:"ends"`
	// Steps are in order.
	Steps []Step `json:"steps"`
}

// Step is one request of the shim, or one thing to wait for. Exactly one of the fields that say what to do is set.
type Step struct {
	// Why says what the step shows, or what the shim does it for.
	Why string `json:"why"`
	// Only leaves the step out elsewhere.
	Only string `json:"only"`

	// Call sends one request; with As, in the background.
	Call string `json:"call"`
	// Read calls ReadStdout or ReadStderr in the background until the end of the stream.
	Read string `json:"read"`
	// Repeat calls in the background until an error, every EveryMS milliseconds or at once after the answer.
	Repeat string `json:"repeat"`
	// Await waits for a background call or loop to end, or for Until to appear in what it got.
	Await string `json:"await"`
	// Blocked names background calls and loops that have not ended.
	Blocked []string `json:"blocked"`
	// Stop ends a loop that would not end by itself.
	Stop string `json:"stop"`
	// Do takes the steps of a part.
	Do string `json:"do"`

	As      string `json:"as"`
	From    string `json:"from"`
	Request any    `json:"request"`
	EveryMS int    `json:"every_ms"`
	Until   string `json:"until"`
	// Set changes variables for the step, or the steps of a part.
	Set  map[string]string `json:"set"`
	Want Want              `json:"want"`

	// label is the step's number, as 3 or, in a part, 3.1.
	label string
	// vars is Set, of the part that it belongs to if it does.
	vars map[string]string
}

// Want is what a call, or the end of a loop, must have come to. The zero value is success, whatever the answer.
type Want struct {
	// Code is the name of the status code, as NOT_FOUND; empty is OK.
	Code string `json:"code"`
	// Text is part of the error's.
	Text string `json:"text"`
	// Response holds fields of the answer.
	Response any `json:"response"`
	// Output is all that a stream gave, Contains are parts of it.
	Output   *string  `json:"output"`
	Contains []string `json:"contains"`
	// Bytes and SHA256 describe an output that is too long to be written down.
	Bytes  *int   `json:"bytes"`
	SHA256 string `json:"sha256"`
	// AtLeast is how many answers a loop must have got.
	AtLeast int `json:"at_least"`
}

// Sandbox is how the sandbox of sequences begins and ends.
type Sandbox struct {
	Begin, End *Sequence
}

// Library holds sequences and what they are made of.
type Library struct {
	files fs.FS
	bases map[string]any
}

// Load reads the project's sequences and checks them all.
func Load() (*Library, []*Sequence, error) {
	files, err := fs.Sub(testdata, "testdata")
	if err != nil {
		return nil, nil, err
	}
	l, err := NewLibrary(files)
	if err != nil {
		return nil, nil, err
	}
	sequences, err := l.sequences()
	return l, sequences, err
}

// NewLibrary makes a library of a tree like testdata; only the folder base is read.
func NewLibrary(files fs.FS) (*Library, error) {
	l := &Library{files: files, bases: make(map[string]any)}
	names, err := fs.Glob(files, "base/*.json")
	if err != nil {
		return nil, err
	}
	for _, name := range names {
		var base any
		if err := l.read(name, &base); err != nil {
			return nil, err
		}
		l.bases[stem(name)] = base
	}
	return l, nil
}

func stem(name string) string { return strings.TrimSuffix(path.Base(name), ".json") }

func (l *Library) read(name string, v any) error {
	data, err := fs.ReadFile(l.files, name)
	if err != nil {
		return err
	}
	if err := decode(data, v); err != nil {
		return fmt.Errorf("%s: %w", name, err)
	}
	return nil
}

// decode reads one JSON value in which every field is known.
func decode(data []byte, v any) error {
	d := json.NewDecoder(bytes.NewReader(data))
	d.DisallowUnknownFields()
	d.UseNumber()
	if err := d.Decode(v); err != nil {
		return err
	}
	if _, err := d.Token(); !errors.Is(err, io.EOF) {
		return errors.New("there is more behind the value")
	}
	return nil
}

func (l *Library) sequences() ([]*Sequence, error) {
	names, err := fs.Glob(l.files, "sequence/*.json")
	if err != nil {
		return nil, err
	}
	var all []*Sequence
	for _, name := range names {
		data, err := fs.ReadFile(l.files, name)
		if err != nil {
			return nil, err
		}
		s, err := l.Parse(stem(name), data)
		if err != nil {
			return nil, err
		}
		if _, err := l.Sandbox(s.Sandbox); err != nil {
			return nil, fmt.Errorf("%s: sandbox: %w", s.Name, err)
		}
		all = append(all, s)
	}
	if len(all) == 0 {
		return nil, errors.New("there are no sequences")
	}
	return all, nil
}

// Parse reads a sequence and checks everything of it that does not depend on an agent.
func (l *Library) Parse(name string, data []byte) (*Sequence, error) {
	s := &Sequence{}
	if err := decode(data, s); err != nil {
		return nil, fmt.Errorf("%s: %w", name, err)
	}
	s.Name = name
	if s.Why == "" || len(s.Where) == 0 {
		return nil, fmt.Errorf("%s: it does not say why, or where it runs", name)
	}
	for where, reason := range s.Where {
		if (where != Process && where != Guest) || reason == "" {
			return nil, fmt.Errorf("%s: it runs in %q for the reason %q", name, where, reason)
		}
	}
	if err := l.complete(s); err != nil {
		return nil, err
	}
	return s, checkNames(s)
}

// Sandbox returns how a kind of sandbox begins and ends.
func (l *Library) Sandbox(name string) (*Sandbox, error) {
	var file struct {
		Why   string `json:"why"`
		Begin []Step `json:"begin"`
		End   []Step `json:"end"`
	}
	if err := l.read("sandbox/"+name+".json", &file); err != nil {
		return nil, err
	}
	s := &Sandbox{
		Begin: &Sequence{Name: "begin of " + name, Why: file.Why, Steps: file.Begin},
		End:   &Sequence{Name: "end of " + name, Why: file.Why, Steps: file.End},
	}
	return s, errors.Join(l.complete(s.Begin), l.complete(s.End))
}

// complete puts parts and bases into a sequence and checks its steps.
func (l *Library) complete(s *Sequence) error {
	var steps []Step
	for i, step := range s.Steps {
		step.label = fmt.Sprint(i + 1)
		if step.Do == "" {
			step.vars = step.Set
			steps = append(steps, step)
			continue
		}
		var part struct {
			Why   string `json:"why"`
			Steps []Step `json:"steps"`
		}
		if err := l.read("part/"+step.Do+".json", &part); err != nil {
			return fmt.Errorf("%s: step %s: %w", s.Name, step.label, err)
		}
		for j, inner := range part.Steps {
			inner.label = fmt.Sprintf("%s.%d", step.label, j+1)
			inner.vars = step.Set
			if inner.Only == "" {
				inner.Only = step.Only
			}
			steps = append(steps, inner)
		}
	}
	for i := range steps {
		if err := l.completeStep(&steps[i]); err != nil {
			return fmt.Errorf("%s: step %s: %w", s.Name, steps[i].label, err)
		}
	}
	s.Steps = steps
	return nil
}

func (l *Library) completeStep(s *Step) error {
	if s.From != "" {
		base, ok := l.bases[s.From]
		if !ok {
			return fmt.Errorf("there is no base %q", s.From)
		}
		request, err := merge(base, s.Request)
		if err != nil {
			return err
		}
		s.Request = request
	}
	actions := 0
	for _, set := range []bool{s.Call != "", s.Read != "", s.Repeat != "", s.Await != "", len(s.Blocked) > 0, s.Stop != ""} {
		if set {
			actions++
		}
	}
	background := s.Read != "" || s.Repeat != ""
	switch {
	case actions != 1:
		return fmt.Errorf("%d things to do, want 1", actions)
	case background && s.As == "":
		return errors.New("a loop without a name")
	case s.As != "" && (s.Call == "" && !background):
		return errors.New("a name for what is not in the background")
	case s.Until != "" && s.Await == "":
		return errors.New("until belongs to await")
	case s.Only != "" && s.Only != Process && s.Only != Guest:
		return fmt.Errorf("only in %q", s.Only)
	case s.Read != "" && s.Read != "ReadStdout" && s.Read != "ReadStderr":
		return fmt.Errorf("%s reads no stream", s.Read)
	}
	if _, err := parseCode(s.Want.Code); err != nil {
		return err
	}
	if name := s.rpc(); name != "" {
		if _, err := messageOf(name); err != nil {
			return err
		}
	}
	return nil
}

// rpc is the method that the step calls, if it calls one.
func (s *Step) rpc() string { return s.Call + s.Read + s.Repeat }

// what names the step in an error.
func (s *Step) what() string {
	switch {
	case s.rpc() != "":
		return s.rpc()
	case s.Await != "":
		return "await " + s.Await
	case s.Stop != "":
		return "stop " + s.Stop
	}
	return "blocked " + strings.Join(s.Blocked, ", ")
}

// checkNames reports what a sequence starts in the background and never waits for: its outcome would not be looked at.
func checkNames(s *Sequence) error {
	open := make(map[string]string)
	for _, step := range s.Steps {
		names := map[string]string{}
		for key, value := range step.vars {
			names["${"+key+"}"] = value
		}
		of := func(name string) string {
			for key, value := range names {
				name = strings.ReplaceAll(name, key, value)
			}
			return name
		}
		if step.As != "" {
			open[of(step.As)] = step.label
		}
		if step.Until == "" {
			delete(open, of(step.Await))
			delete(open, of(step.Stop))
		}
	}
	if names := slices.Sorted(maps.Keys(open)); len(names) > 0 {
		return fmt.Errorf("%s: step %s: nothing waits for the end of %q", s.Name, open[names[0]], names[0])
	}
	return nil
}
