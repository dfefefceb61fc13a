// SPDX-License-Identifier: Apache-2.0
// Copyright The Cloister Authors.

package initramfs

import (
	"debug/elf"
	"errors"
	"fmt"
	"slices"
	"strings"
)

// maxModules bounds the number of modules of one closure.
const maxModules = 1024

// Want is a kernel module that a guest is to load.
type Want struct {
	// Name is the module's name, with - or _.
	Name string
	// Params are its parameters, as on modprobe's command line.
	Params string
	// Optional modules are left out where the kernel does not have them, and may find no hardware when loaded.
	Optional bool
}

// Module is one kernel module of a closure.
type Module struct {
	// Name is the module's name, with _ for -.
	Name string
	// File is the file name of the uncompressed module, for instance "dm-crypt.ko".
	File string
	// Data is the module, uncompressed, with the signature that is appended to it.
	Data []byte
	// Params are the parameters that the Want asked for.
	Params string
	// Optional says that no module which is required depends on it.
	Optional bool
	// Info is what the module says about itself.
	Info ModInfo
}

// Closure is the answer of Resolve.
type Closure struct {
	// Modules are the modules in the order in which they have to be loaded.
	Modules []Module
	// Builtin are wanted modules that are part of the kernel itself, sorted.
	Builtin []string
	// Missing are optional modules that the kernel does not have, sorted.
	Missing []string
	// MissingSoft are soft dependencies that are no modules of the kernel, sorted: often aliases of algorithms, for
	// instance "crc32c", which are not resolved.
	MissingSoft []string
}

// MissingModuleError says that a kernel lacks a module that is required.
type MissingModuleError struct {
	// Name is the module, NeededBy the module that depends on it ("" where it was asked for), Dir the folder.
	Name, NeededBy, Dir string
}

// Error implements error.
func (e *MissingModuleError) Error() string {
	if e.NeededBy != "" {
		return fmt.Sprintf("kernel module %s, which %s depends on, is not in %s", e.Name, e.NeededBy, e.Dir)
	}
	return fmt.Sprintf("kernel module %s is not in %s", e.Name, e.Dir)
}

// Resolve returns the wanted modules of a lib/modules/VERSION folder (which needs modules.order and modules.builtin,
// but no modules.dep) and all that they depend on, as their .modinfo sections say. Soft dependencies are added where
// the kernel has them. All modules must be of one kernel; a cycle of dependencies is an error, and so is, as a
// *MissingModuleError, a module that the kernel does not have and that is not optional.
func Resolve(dir string, want []Want) (*Closure, error) {
	d, err := openModuleDir(dir)
	if err != nil {
		return nil, err
	}
	defer d.root.Close() //nolint:errcheck // read only
	r := &resolver{dir: d, nodes: make(map[string]*node), notes: make(map[string]note)}
	for _, w := range want {
		if err := r.want(w); err != nil {
			return nil, fmt.Errorf("resolve kernel modules: %w", err)
		}
	}
	return r.closure()
}

// note says why a name that was asked for is not among the modules.
type note int

const (
	noteBuiltin note = iota + 1
	noteMissing
	noteMissingSoft
)

// node is a module that has been read, with its place in the walk.
type node struct {
	Module

	visiting bool // its dependencies are being visited
	done     bool // it is in the load order
	complete bool // all that it depends on exists
	checking bool
}

type resolver struct {
	dir   *moduleDir
	nodes map[string]*node
	order []*node
	notes map[string]note
}

func (r *resolver) want(w Want) error {
	name := ModuleName(w.Name)
	if r.dir.builtin[name] {
		r.notes[name] = noteBuiltin
		return nil
	}
	var missing *MissingModuleError
	err := r.check(name, nil)
	if w.Optional && errors.As(err, &missing) {
		r.notes[name] = noteMissing
		return nil
	}
	if err != nil {
		return err
	}
	if err := r.visit(name, nil); err != nil {
		return err
	}
	if !w.Optional {
		r.require(name)
	}
	n := r.nodes[name]
	if w.Params != "" && n.Params != "" && w.Params != n.Params {
		return fmt.Errorf("module %s is wanted with parameters %q and %q", name, n.Params, w.Params)
	}
	if w.Params != "" {
		n.Params = w.Params
	}
	return nil
}

// load reads a module, or returns it where it was read before.
func (r *resolver) load(name string) (*node, error) {
	if n, ok := r.nodes[name]; ok {
		return n, nil
	}
	p, ok := r.dir.index[name]
	if !ok {
		return nil, &MissingModuleError{Name: name, Dir: r.dir.path}
	}
	if len(r.nodes) == maxModules {
		return nil, fmt.Errorf("more than %d modules", maxModules)
	}
	file, data, err := r.dir.read(p)
	if err != nil {
		return nil, err
	}
	info, err := ParseModInfo(data)
	if err != nil {
		return nil, fmt.Errorf("%s: %w", p, err)
	}
	if info.Name != "" && info.Name != name {
		return nil, fmt.Errorf("%s says that its name is %q", p, info.Name)
	}
	n := &node{Module: Module{Name: name, File: file, Data: data, Optional: true, Info: *info}}
	r.nodes[name] = n
	return n, nil
}

// hard returns the modules that n depends on and that are not built in.
func (r *resolver) hard(n *node) []string {
	return slices.DeleteFunc(slices.Clone(n.Info.Depends), func(dep string) bool { return r.dir.builtin[dep] })
}

// check makes sure that a module and all that it depends on exist, and that the dependencies have no cycle. chain is
// the way to the module.
func (r *resolver) check(name string, chain []string) error {
	n, err := r.load(name)
	var missing *MissingModuleError
	if errors.As(err, &missing) && len(chain) > 0 {
		missing.NeededBy = chain[len(chain)-1]
	}
	if err != nil {
		return err
	}
	if n.complete {
		return nil
	}
	chain = append(slices.Clip(chain), name)
	if n.checking {
		return fmt.Errorf("cycle of module dependencies: %s", strings.Join(chain, " -> "))
	}
	n.checking = true
	defer func() { n.checking = false }()
	for _, dep := range r.hard(n) {
		if err := r.check(dep, chain); err != nil {
			return err
		}
	}
	n.complete = true
	return nil
}

// visit puts a module whose dependencies are known to exist into the load order, after what it depends on and what it
// likes to have before, and before what it likes to have after it.
func (r *resolver) visit(name string, chain []string) error {
	n := r.nodes[name]
	if n.done {
		return nil
	}
	chain = append(slices.Clip(chain), name)
	if n.visiting {
		return fmt.Errorf("cycle of module dependencies: %s", strings.Join(chain, " -> "))
	}
	n.visiting = true
	for _, dep := range r.hard(n) {
		if err := r.visit(dep, chain); err != nil {
			return err
		}
	}
	for _, soft := range n.Info.SoftPre {
		if err := r.soft(soft, chain); err != nil {
			return err
		}
	}
	n.visiting, n.done = false, true
	r.order = append(r.order, n)
	for _, soft := range n.Info.SoftPost {
		if s, ok := r.nodes[soft]; ok && s.visiting {
			continue // it is about to be loaded after n anyway
		}
		if err := r.soft(soft, chain); err != nil {
			return err
		}
	}
	return nil
}

// soft visits a soft dependency unless the kernel does not have it.
func (r *resolver) soft(name string, chain []string) error {
	if r.dir.builtin[name] {
		return nil
	}
	err := r.check(name, nil)
	if _, ok := errors.AsType[*MissingModuleError](err); ok {
		if r.notes[name] == 0 {
			r.notes[name] = noteMissingSoft
		}
		return nil
	}
	if err != nil {
		return err
	}
	return r.visit(name, chain)
}

// require marks a module and what it depends on as not optional.
func (r *resolver) require(name string) {
	n := r.nodes[name]
	if !n.Optional {
		return
	}
	n.Optional = false
	for _, dep := range r.hard(n) {
		r.require(dep)
	}
}

// closure checks that all modules are of one kernel and returns them.
func (r *resolver) closure() (*Closure, error) {
	c := &Closure{}
	files := make(map[string]string)
	for _, n := range r.order {
		first := r.order[0]
		if n.Info.Vermagic != first.Info.Vermagic || n.Info.Machine != first.Info.Machine {
			return nil, fmt.Errorf("resolve kernel modules: %s (%v, %q) and %s (%v, %q) in %s are of different kernels",
				first.File, first.Info.Machine, first.Info.Vermagic, n.File, n.Info.Machine, n.Info.Vermagic, r.dir.path)
		}
		if other, ok := files[n.File]; ok {
			return nil, fmt.Errorf("resolve kernel modules: %s and %s have one file name, %s", other, n.Name, n.File)
		}
		files[n.File] = n.Name
		c.Modules = append(c.Modules, n.Module)
	}
	for name, why := range r.notes {
		switch why {
		case noteBuiltin:
			c.Builtin = append(c.Builtin, name)
		case noteMissing:
			c.Missing = append(c.Missing, name)
		case noteMissingSoft:
			c.MissingSoft = append(c.MissingSoft, name)
		}
	}
	slices.Sort(c.Builtin)
	slices.Sort(c.Missing)
	slices.Sort(c.MissingSoft)
	return c, nil
}

// Release returns the release of the kernel that the closure's modules were built for (the first word of their
// vermagic) and their machine. A closure without modules has "" and elf.EM_NONE.
func (c *Closure) Release() (string, elf.Machine) {
	if len(c.Modules) == 0 {
		return "", elf.EM_NONE
	}
	info := c.Modules[0].Info
	release, _, _ := strings.Cut(info.Vermagic, " ")
	return release, info.Machine
}
