// SPDX-License-Identifier: Apache-2.0
// Copyright The Cloister Authors.

package guestimage

import (
	"io/fs"
	"maps"
	"path"
	"slices"

	"github.com/cloister-cc/cloister/initramfs"
	"github.com/cloister-cc/cloister/initramfs/layout"
	"github.com/cloister-cc/cloister/keys"
)

// contents are the checked inputs of a build, in memory. wipe ends the life of the secrets among them.
type contents struct {
	kernel             []byte
	release            string
	agent, crun, pause []byte
	registryCA         []byte
	registryAuth       *keys.Secret
	imageKeys, secrets []resource
	image              *imageSettings
	modules            *initramfs.Closure
}

func (c *contents) wipe() {
	c.registryAuth.Wipe()
	for _, r := range slices.Concat(c.imageKeys, c.secrets) {
		r.data.Wipe()
	}
}

// load reads and checks all inputs but the root file system. On an error nothing has to be wiped.
func load(o *Options) (_ *contents, err error) {
	c := &contents{}
	defer func() {
		if err != nil {
			c.wipe()
		}
	}()
	if c.kernel, c.release, err = readKernel(o.Kernel, o.Arch); err != nil {
		return nil, err
	}
	if c.agent, err = readBinary("agent", o.Agent, o.Arch); err != nil {
		return nil, err
	}
	if c.crun, err = readBinary("crun", o.Crun, o.Arch); err != nil {
		return nil, err
	}
	if c.pause, err = readBinary("pause", o.Pause, o.Arch); err != nil {
		return nil, err
	}
	if c.modules, err = resolveModules(o, c.release); err != nil {
		return nil, err
	}
	if o.RegistryCA != "" {
		if c.registryCA, err = readCA(o.RegistryCA); err != nil {
			return nil, err
		}
	}
	if o.RegistryAuth != "" {
		if c.registryAuth, err = readAuth(o.RegistryAuth); err != nil {
			return nil, err
		}
	}
	for _, uri := range slices.Sorted(maps.Keys(o.ImageKeys)) {
		k, err := readImageKey(uri, o.ImageKeys[uri])
		if err != nil {
			return nil, err
		}
		c.imageKeys = append(c.imageKeys, k)
	}
	for _, uri := range slices.Sorted(maps.Keys(o.Secrets)) {
		r, err := readResource(uri, o.Secrets[uri])
		if err != nil {
			return nil, err
		}
		c.secrets = append(c.secrets, r)
	}
	if err := c.loadPrivateKeys(o); err != nil {
		return nil, err
	}
	if c.image, err = loadImageSettings(&o.Image, c.secrets); err != nil {
		return nil, err
	}
	if c.registryAuth != nil && c.image.CredentialsURI != "" {
		return nil, twice("registry-auth")
	}
	return c, nil
}

// loadPrivateKeys reads the private keys for image layers, which the guest finds where its image keys are.
func (c *contents) loadPrivateKeys(o *Options) error {
	for _, uri := range slices.Sorted(maps.Keys(o.Image.PrivateKeys)) {
		if _, twice := o.ImageKeys[uri]; twice {
			return badInput("image-private-key", "", "%s is the URI of an image key, too", uri)
		}
		k, err := readPrivateKey(uri, o.Image.PrivateKeys[uri])
		if err != nil {
			return err
		}
		c.imageKeys = append(c.imageKeys, k)
	}
	return nil
}

// bootConfig returns the agent's configuration.
func (c *contents) bootConfig(o *Options, root layout.Root) *layout.BootConfig {
	cfg := &layout.BootConfig{
		Version: layout.BootConfigVersion, CommandLine: CommandLine(o.Arch), Root: root, Policy: policyOf(o), LogLevel: o.LogLevel,
		LogPort: o.LogPort, DebugConsole: o.DebugConsole, Privileged: o.Privileged, GuestHookPath: o.GuestHookPath,
		ContainerPipeSize: o.ContainerPipeSize, Tracing: o.Tracing,
		Image: c.image.ImageSettings,
	}
	for _, m := range c.modules.Modules {
		cfg.Modules = append(cfg.Modules, layout.Module{File: m.File, Params: m.Params, Optional: m.Optional})
	}
	return cfg
}

func policyOf(o *Options) string {
	if o.Policy == "" {
		return layout.PolicyDenyAll
	}
	return o.Policy
}

// tree puts everything into place, see package layout. The tree keeps the secrets' own bytes, not copies of them.
func (c *contents) tree(config, header []byte, diskKey *keys.Secret) (*initramfs.Tree, error) {
	files := []initramfs.File{
		{Path: "/dev", Mode: fs.ModeDir | 0o755},
		{Path: "/dev/console", Mode: fs.ModeDevice | fs.ModeCharDevice | 0o600, Major: 5, Minor: 1},
		{Path: "/dev/null", Mode: fs.ModeDevice | fs.ModeCharDevice | 0o666, Major: 1, Minor: 3},
		{Path: "/proc", Mode: fs.ModeDir | 0o555},
		{Path: "/run", Mode: fs.ModeDir | 0o755},
		{Path: "/sys", Mode: fs.ModeDir | 0o555},
		{Path: layout.AgentPath, Mode: 0o755, Data: c.agent},
		{Path: layout.BootConfigPath, Mode: 0o644, Data: config},
		{Path: layout.RuntimePath, Mode: 0o755, Data: c.crun},
		{Path: path.Join(layout.PauseRootfs, layout.PausePath), Mode: 0o755, Data: c.pause},
		{Path: layout.ModulesDir, Mode: fs.ModeDir | 0o755},
		{Path: layout.DiskHeaderPath, Mode: 0o644, Data: header},
		{Path: layout.SecretsDir, Mode: fs.ModeDir | 0o700},
		{Path: layout.ImageKeysDir, Mode: fs.ModeDir | 0o700},
		{Path: layout.ResourcesDir, Mode: fs.ModeDir | 0o700},
		secretFile(layout.DiskKeyPath, diskKey),
	}
	for _, m := range c.modules.Modules {
		files = append(files, initramfs.File{Path: layout.ModulePath(m.File), Mode: 0o644, Data: m.Data})
	}
	if c.registryCA != nil {
		files = append(files, initramfs.File{Path: layout.RegistryCAPath, Mode: 0o644, Data: c.registryCA})
	}
	if c.registryAuth != nil {
		files = append(files, secretFile(layout.RegistryAuthPath, c.registryAuth))
	}
	for _, k := range c.imageKeys {
		files = append(files, k.file(layout.ImageKeysDir))
	}
	for _, r := range c.secrets {
		files = append(files, r.file(layout.ResourcesDir))
	}
	t := &initramfs.Tree{}
	for _, f := range files {
		if err := t.Add(f); err != nil {
			return nil, err
		}
	}
	return t, nil
}

// file places a resource below a folder, where keys/file looks for it.
func (r resource) file(dir string) initramfs.File {
	return secretFile(path.Join(dir, r.name.Repository, r.name.Type, r.name.Tag), r.data)
}

func secretFile(p string, s *keys.Secret) initramfs.File {
	return initramfs.File{Path: p, Mode: 0o600, Data: s.Bytes(), Secret: true}
}
