// SPDX-License-Identifier: Apache-2.0
// Copyright The Cloister Authors.

package guestimage

import (
	"debug/elf"
	"encoding/pem"
	"errors"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/cloister-cc/cloister/initramfs"
	"github.com/cloister-cc/cloister/internal/elftest"
)

// write overwrites one of the input files.
func write(file string, data []byte) func(*testing.T, *Options) {
	return func(t *testing.T, o *Options) {
		t.Helper()
		path := map[string]string{
			"kernel": o.Kernel, "agent": o.Agent, "crun": o.Crun, "pause": o.Pause, "registry-ca": o.RegistryCA,
			"registry-auth": o.RegistryAuth, "image-key": o.ImageKeys["kbs:///default/image-key/demo"],
			"secret": o.Secrets["kbs:///default/secret/demo"],
			"dm-mod": filepath.Join(o.ModulesDir, "kernel/dm-mod.ko"),
		}[file]
		must(t, os.WriteFile(path, data, 0o600))
	}
}

func set(change func(*Options)) func(*testing.T, *Options) {
	return func(_ *testing.T, o *Options) { change(o) }
}

func TestBuildRefusesInputs(t *testing.T) {
	t.Parallel()
	exe := func(f elftest.File) []byte {
		if f.Type == elf.ET_NONE {
			f.Type = elf.ET_EXEC
		}
		return f.Build(t)
	}
	noRelease := kernelS390x("x")
	slices.Reverse(noRelease[s390VersionAt : s390VersionAt+8])
	cert := certificate(t)
	badCert := pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: []byte("no certificate")})
	key := pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: []byte("oops")})
	for name, tc := range map[string]struct {
		change func(*testing.T, *Options)
		input  string
		want   string
	}{
		"arch":              {set(func(o *Options) { o.Arch = "riscv64" }), "arch", "neither s390x nor amd64"},
		"no rootfs":         {set(func(o *Options) { o.Rootfs = "" }), "rootfs", "not given"},
		"no kernel":         {set(func(o *Options) { o.Kernel = "" }), "kernel", "not given"},
		"no modules":        {set(func(o *Options) { o.ModulesDir = "" }), "modules", "not given"},
		"no agent":          {set(func(o *Options) { o.Agent = "" }), "agent", "not given"},
		"no crun":           {set(func(o *Options) { o.Crun = "" }), "crun", "not given"},
		"no pause":          {set(func(o *Options) { o.Pause = "" }), "pause", "not given"},
		"no output":         {set(func(o *Options) { o.Output = "" }), "output", "not given"},
		"policy":            {set(func(o *Options) { o.Policy = "allow" }), "policy", "neither deny-all nor allow-all"},
		"log level":         {set(func(o *Options) { o.LogLevel = "trace" }), "log-level", "none of"},
		"compression":       {set(func(o *Options) { o.Compression = "lzma" }), "compression", "neither none nor zstd"},
		"rootfs missing":    {set(func(o *Options) { o.Rootfs += "x" }), "rootfs", "no such file"},
		"rootfs device":     {set(func(o *Options) { o.Rootfs = os.DevNull }), "rootfs", "neither a folder nor a tar"},
		"modules missing":   {set(func(o *Options) { o.ModulesDir += "x" }), "modules", "no such file"},
		"modules a file":    {set(func(o *Options) { o.ModulesDir = o.Kernel }), "modules", "is not a folder"},
		"modules elsewhere": {set(func(o *Options) { o.ModulesDir = o.Rootfs }), "modules", "is not the modules folder of a kernel"},
		"extra module":      {set(func(o *Options) { o.ExtraModules = []string{"zfs"} }), "modules", "kernel module zfs is not in"},
		"output nowhere":    {set(func(o *Options) { o.Output = filepath.Join(o.Rootfs, "a/b") }), "output", "no such file"},
		"output in a file":  {set(func(o *Options) { o.Output = filepath.Join(o.Kernel, "b") }), "output", "is not a folder"},

		"kernel empty":              {write("kernel", nil), "kernel", "not a bootable s390x kernel"},
		"kernel for x86":            {write("kernel", kernelAMD64("6.12-test")), "kernel", "not a bootable s390x kernel"},
		"kernel cut":                {write("kernel", kernelS390x("6.12-test")[:0x10700]), "kernel", "ends before its version"},
		"kernel of another release": {write("kernel", kernelS390x("6.13-test")), "modules", "is of kernel 6.12-test, but"},
		"kernel folder":             {set(func(o *Options) { o.Kernel = o.Rootfs }), "kernel", "not a regular file"},
		"kernel lies":               {write("kernel", noRelease), "kernel", "ends before its version"},

		"agent script":      {write("agent", []byte("#!/bin/sh\nexec something\n")), "agent", "not an ELF executable"},
		"agent for x86":     {write("agent", exe(elftest.File{Machine: elf.EM_X86_64})), "agent", "another machine (EM_X86_64"},
		"crun object":       {write("crun", elftest.Module(t, "crun")), "crun", "not an executable, but ET_REL"},
		"crun dynamic":      {write("crun", exe(elftest.File{Type: elf.ET_DYN, Interpreter: "/lib/ld64.so.1"})), "crun", "names an interpreter"},
		"crun with library": {write("crun", exe(elftest.File{Needed: "libc.so.6"})), "crun", "needs libc.so.6"},
		"pause empty":       {write("pause", nil), "pause", "not an ELF executable"},
		"pause not loaded":  {write("pause", exe(elftest.File{NoLoad: true})), "pause", "nothing to load"},
		"pause missing":     {set(func(o *Options) { o.Pause += "x" }), "pause", "no such file"},

		"module of another machine": {write("dm-mod", elftest.File{Machine: elf.EM_X86_64, ModInfo: []string{"vermagic=6.12-test SMP"}}.Build(t)), "modules", "different kernels"},

		"CA empty":    {write("registry-ca", nil), "registry-ca", "holds no PEM certificate"},
		"CA text":     {write("registry-ca", []byte("hello")), "registry-ca", "not PEM"},
		"CA and text": {write("registry-ca", append(slices.Clone(cert), "hello"...)), "registry-ca", "after certificate 1 that is not PEM"},
		"CA key":      {write("registry-ca", append(slices.Clone(cert), key...)), "registry-ca", `PEM block "PRIVATE KEY"`},
		"CA broken":   {write("registry-ca", append(slices.Clone(cert), badCert...)), "registry-ca", "certificate 2 of"},
		"CA huge":     {write("registry-ca", make([]byte, maxConfigSize+1)), "registry-ca", "more than"},

		"key short":       {write("image-key", make([]byte, 31)), "image-key", "has 31 bytes, an image key has 32"},
		"key in hex":      {write("image-key", []byte(strings.Repeat("0", 64))), "image-key", "has 64 bytes"},
		"key missing":     {set(func(o *Options) { o.ImageKeys["kbs:///a/b/c"] = o.Kernel + "x" }), "image-key", "no such file"},
		"secret empty":    {write("secret", nil), "secret", "is empty"},
		"secret long":     {write("secret", make([]byte, 64<<10+1)), "secret", "more than 65536"},
		"secret missing":  {set(func(o *Options) { o.Secrets["kbs:///a/b/c"] = o.Kernel + "x" }), "secret", "no such file"},
		"secret URI":      {set(func(o *Options) { o.Secrets["kbs:///a/b"] = o.Kernel }), "secret", "is not kbs:///repository/type/tag"},
		"URI scheme":      {set(func(o *Options) { o.ImageKeys["kms:///a/b/c"] = o.Kernel }), "image-key", "does not start with kbs:///"},
		"URI with a host": {set(func(o *Options) { o.ImageKeys["kbs://host/a/b/c"] = o.Kernel }), "image-key", "does not start with kbs:///"},
		"URI two parts":   {set(func(o *Options) { o.ImageKeys["kbs:///a/b"] = o.Kernel }), "image-key", "is not kbs:///repository/type/tag"},
		"URI leaves":      {set(func(o *Options) { o.ImageKeys["kbs:///a/../disk.key"] = o.Kernel }), "image-key", `part ".."`},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			o := inputs(t)
			tc.change(t, &o)
			_, err := testBuilder(o).build(t.Context())
			var input *InputError
			if !errors.As(err, &input) || input.Input != tc.input || !strings.Contains(err.Error(), tc.want) {
				t.Errorf("error %v, want one of input %s with %q", err, tc.input, tc.want)
			}
			if left, _ := filepath.Glob(o.Output + "*"); o.Output != "" && len(left) != 0 {
				t.Errorf("left behind: %v", left)
			}
		})
	}
}

// TestCheckAuth: what the guest would refuse when it boots is refused when it is built.
func TestCheckAuth(t *testing.T) {
	t.Parallel()
	const secret = "hunter2"
	for name, tc := range map[string]struct{ text, want string }{
		"good":           {goodAuth, ""},
		"other settings": {`{"auths": {"r": {"auth": "dTpw"}}, "detachKeys": "ctrl-q"}`, ""},
		"empty":          {``, "no entry"},
		"no auths":       {`{"hunter2": {}}`, "no entry"},
		"empty auths":    {`{"auths": {}}`, "no entry"},
		"cut":            {`{"auths": {"r": {"auth": "hunter2`, "not JSON"},
		"user, password": {`{"auths": {"r": {"username": "u", "password": "hunter2"}}}`, ""},
		"user alone":     {`{"auths": {"r": {"username": "u"}}}`, "credentials of r"},
		"with a path":    {`{"auths": {"r/team": {"auth": "dTpodW50ZXIy"}}}`, ""},
		"with a tag":     {`{"auths": {"r/team:1": {"auth": "dTpodW50ZXIy"}}}`, "neither a registry's host nor"},
		"dockercfg":      {`{"r": {"auth": "dTpodW50ZXIy"}}`, "form of a .dockercfg"},
		"not base64":     {`{"auths": {"r": {"auth": "u:hunter2"}}}`, "credentials of r"},
		"helper":         {`{"auths": {"r": {"auth": "dTpw"}}, "credsStore": "desktop"}`, "credential helper"},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			err := checkAuth([]byte(tc.text))
			if tc.want == "" {
				must(t, err)
				return
			}
			if err == nil || !strings.Contains(err.Error(), tc.want) {
				t.Fatalf("error %v, want one with %q", err, tc.want)
			}
			if strings.Contains(err.Error(), secret) {
				t.Errorf("the error shows the password: %v", err)
			}
		})
	}
}

func TestKernelRelease(t *testing.T) {
	t.Parallel()
	for name, tc := range map[string]struct {
		arch   string
		kernel []byte
		want   string
	}{
		"s390x":             {initramfs.ArchS390x, kernelS390x("6.12.107+deb13-s390x"), "6.12.107+deb13-s390x"},
		"amd64":             {initramfs.ArchAMD64, kernelAMD64("6.1.0-42-cloud-amd64"), "6.1.0-42-cloud-amd64"},
		"amd64 without one": {initramfs.ArchAMD64, func() []byte { k := kernelAMD64("x"); k[x86VersionAt+1] = 0; return k }(), ""},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			got, err := platformOf(tc.arch).release(tc.kernel)
			if err != nil || got != tc.want {
				t.Errorf("release %q, error %v; want %q", got, err, tc.want)
			}
		})
	}
	if _, err := releaseAMD64(kernelS390x("6.12")); err == nil {
		t.Error("an s390x kernel passes for an x86 one")
	}
}

func TestCommandLine(t *testing.T) {
	t.Parallel()
	for arch, want := range map[string]string{
		initramfs.ArchS390x: "console=ttysclp0 panic=-1 init_on_free=1 lockdown=confidentiality module.sig_enforce=1",
		initramfs.ArchAMD64: "console=ttyS0 panic=-1 init_on_free=1 lockdown=confidentiality module.sig_enforce=1",
	} {
		if got := CommandLine(arch); got != want {
			t.Errorf("command line of %s is %q", arch, got)
		}
	}
}
