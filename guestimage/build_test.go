// SPDX-License-Identifier: Apache-2.0
// Copyright The Cloister Authors.

package guestimage

import (
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/cloister-cc/cloister/guestimage/rootdisk"
	"github.com/cloister-cc/cloister/initramfs"
	"github.com/cloister-cc/cloister/initramfs/layout"
)

// filesOf returns the contents of an initramfs by path; folders and devices have none.
func filesOf(tb testing.TB, file string) map[string][]byte {
	tb.Helper()
	f, err := os.Open(file)
	must(tb, err)
	defer f.Close()
	r, closer, err := initramfs.NewImageReader(f)
	must(tb, err)
	defer closer.Close()
	out := make(map[string][]byte)
	for {
		e, err := r.Next()
		if errors.Is(err, io.EOF) {
			return out
		}
		must(tb, err)
		out[e.Path], err = io.ReadAll(r)
		must(tb, err)
	}
}

func TestBuild(t *testing.T) {
	t.Parallel()
	o := inputs(t)
	var steps []string
	o.Progress = func(s Step) { steps = append(steps, s.Name) }
	res, err := Build(t.Context(), o)
	if err != nil {
		t.Fatal(err)
	}
	checkFolder(t, o.Output, res.Guest)
	if diff := cmp.Diff([]string{"kernel modules", "root disk", "initramfs"}, steps); diff != "" {
		t.Error(diff)
	}
	got := filesOf(t, res.Initramfs)
	for path, source := range map[string]string{
		"/init": o.Agent, "/cloister/bin/crun": o.Crun, "/cloister/pause/rootfs/pause": o.Pause,
		"/cloister/registry/ca.pem": o.RegistryCA, "/cloister/secrets/registry-auth.json": o.RegistryAuth,
		"/cloister/secrets/image-keys/default/image-key/demo": o.ImageKeys["kbs:///default/image-key/demo"],
		"/cloister/secrets/resources/default/secret/demo":     o.Secrets["kbs:///default/secret/demo"],
		"/cloister/modules/dm-crypt.ko":                       filepath.Join(o.ModulesDir, "kernel/dm-crypt.ko"),
	} {
		want, err := os.ReadFile(source)
		must(t, err)
		if !bytes.Equal(got[path], want) {
			t.Errorf("%s in the initramfs is not %s", path, source)
		}
	}
	for _, path := range []string{"/dev/console", "/dev/null", "/proc", "/sys", "/run"} {
		if _, ok := got[path]; !ok {
			t.Errorf("no %s in the initramfs", path)
		}
	}
	checkBootConfig(t, o, res, got)
}

// checkFolder compares an output folder with its guest.json.
func checkFolder(t *testing.T, dir string, guest *Guest) {
	t.Helper()
	loaded, err := Load(dir)
	must(t, err)
	if diff := cmp.Diff(guest, loaded); diff != "" {
		t.Error(diff)
	}
	entries, err := os.ReadDir(dir)
	must(t, err)
	if len(entries) != 4 {
		t.Errorf("the folder holds %v", entries)
	}
	for _, f := range []FileInfo{guest.Files.Kernel, guest.Files.Initramfs, guest.Files.Disk} {
		data, err := os.ReadFile(filepath.Join(dir, f.Name))
		must(t, err)
		if sum := sha256.Sum256(data); int64(len(data)) != f.Size || hex.EncodeToString(sum[:]) != f.SHA256 {
			t.Errorf("%s has %d bytes and hash %x, not %d and %s", f.Name, len(data), sum, f.Size, f.SHA256)
		}
	}
	st, err := os.Stat(filepath.Join(dir, InitramfsFile))
	must(t, err)
	if st.Mode().Perm() != 0o600 {
		t.Errorf("the initramfs, which holds the disk key, has mode %v", st.Mode())
	}
	beside, err := os.ReadDir(filepath.Dir(dir))
	must(t, err)
	if len(beside) != 1 {
		t.Errorf("beside the folder lies something: %v", beside)
	}
}

func checkBootConfig(t *testing.T, o Options, res *Result, got map[string][]byte) {
	t.Helper()
	cfg, err := layout.ParseBootConfig(bytes.NewReader(got[layout.BootConfigPath]))
	must(t, err)
	if cfg.Policy != o.Policy || cfg.LogLevel != o.LogLevel {
		t.Errorf("boot config %+v", cfg)
	}
	for _, m := range cfg.Modules {
		if len(got[layout.ModulePath(m.File)]) == 0 {
			t.Errorf("the boot config names %s, which is not in the initramfs", m.File)
		}
	}
	disk, err := os.ReadFile(res.Disk)
	must(t, err)
	header := got[layout.DiskHeaderPath]
	if int64(len(header)) != cfg.Root.HeaderSize || !bytes.HasPrefix(disk, header) {
		t.Error("the disk does not start with the pinned header")
	}
	if int64(len(disk)) != cfg.Root.PayloadOffset+cfg.Root.PayloadSize {
		t.Errorf("the disk has %d bytes, the boot config says %+v", len(disk), cfg.Root)
	}
	var manifest initramfs.Manifest
	must(t, json.Unmarshal(got[layout.ManifestPath], &manifest))
	if diff := cmp.Diff(res.Guest.Initramfs, manifest.Entries); diff != "" {
		t.Error(diff)
	}
	f, err := os.Open(res.Initramfs)
	must(t, err)
	defer f.Close()
	found, err := initramfs.Inspect(f, func(p string) bool { return strings.HasPrefix(p, layout.SecretsDir+"/") })
	must(t, err)
	found.Entries = slices.DeleteFunc(found.Entries, func(e initramfs.ManifestEntry) bool { return e.Path == layout.ManifestPath })
	if diff := cmp.Diff(manifest.Entries, found.Entries); diff != "" {
		t.Errorf("the manifest is not what the initramfs holds: %s", diff)
	}
}

// TestSecretsStayInside: nothing of the secrets may show in any file but the initramfs, nor a hash of one anywhere.
func TestSecretsStayInside(t *testing.T) {
	t.Parallel()
	o := inputs(t)
	res := testBuilder(o).mustBuild(t)
	key := make([]byte, layout.DiskKeySize)
	_, err := io.ReadFull(testRand(), key)
	must(t, err)
	imageKey, err := os.ReadFile(o.ImageKeys["kbs:///default/image-key/demo"])
	must(t, err)
	for name, secret := range map[string][]byte{"disk key": key, "image key": imageKey, "credentials": []byte(goodAuth), "secret": []byte("a secret of the demo")} {
		sum := sha256.Sum256(secret)
		for _, file := range []string{res.Kernel, res.Disk, res.Manifest, res.Initramfs} {
			data, err := os.ReadFile(file)
			must(t, err)
			if has := bytes.Contains(data, secret); has != (file == res.Initramfs) {
				t.Errorf("%s in %s: %v", name, file, has)
			}
			if bytes.Contains(data, sum[:]) || bytes.Contains(data, []byte(hex.EncodeToString(sum[:]))) {
				t.Errorf("%s holds the hash of the %s", file, name)
			}
		}
	}
}

func TestBuildIsReproducible(t *testing.T) {
	t.Parallel()
	o := inputs(t)
	first := testBuilder(o).mustBuild(t)
	o.Output = filepath.Join(t.TempDir(), "again")
	if diff := cmp.Diff(first.Guest, testBuilder(o).mustBuild(t).Guest); diff != "" {
		t.Errorf("the same inputs and key made different guests: %s", diff)
	}
}

func TestEachBuildHasItsOwnKey(t *testing.T) {
	t.Parallel()
	o := inputs(t)
	var keys [2][]byte
	for i := range keys {
		res, err := Build(t.Context(), o) // the second one replaces the first
		must(t, err)
		keys[i] = filesOf(t, res.Initramfs)[layout.DiskKeyPath]
		if len(keys[i]) != layout.DiskKeySize || bytes.Equal(keys[i], make([]byte, layout.DiskKeySize)) {
			t.Errorf("disk key of %d bytes, or zeros", len(keys[i]))
		}
	}
	if bytes.Equal(keys[0], keys[1]) {
		t.Error("two builds have the same disk key")
	}
}

func TestBuildDefaults(t *testing.T) {
	t.Parallel()
	o := inputs(t)
	o.Policy, o.LogLevel, o.RegistryCA, o.RegistryAuth, o.ImageKeys, o.Secrets = "", "", "", "", nil, nil
	res := testBuilder(o).mustBuild(t)
	got := filesOf(t, res.Initramfs)
	cfg, err := layout.ParseBootConfig(bytes.NewReader(got[layout.BootConfigPath]))
	must(t, err)
	if cfg.Policy != layout.PolicyDenyAll || res.Guest.Policy != layout.PolicyDenyAll {
		t.Errorf("policy %q without one being chosen", cfg.Policy)
	}
	for path := range got {
		if strings.HasPrefix(path, layout.SecretsDir+"/") && path != layout.DiskKeyPath && path != layout.ImageKeysDir && path != layout.ResourcesDir {
			t.Errorf("%s in a guest without credentials", path)
		}
	}
}

func TestWarnings(t *testing.T) {
	t.Parallel()
	for name, tc := range map[string]struct {
		o    Options
		want []string
	}{
		"deny":  {Options{RegistryCA: "ca.pem"}, []string{"in the clear", "no image policy"}},
		"allow": {Options{RegistryCA: "ca.pem", Policy: layout.PolicyAllowAll}, []string{"in the clear", "every request of the host passes", "no image policy"}},
		"no CA": {Options{}, []string{"in the clear", "no registry CA", "no image policy"}},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			got := warnings(&tc.o, &imageSettings{})
			if len(got) != len(tc.want) {
				t.Fatalf("warnings %q", got)
			}
			for i := range got {
				if !strings.Contains(got[i], tc.want[i]) {
					t.Errorf("warning %q, want one with %q", got[i], tc.want[i])
				}
			}
		})
	}
	settings := &imageSettings{ImageSettings: layout.ImageSettings{ExtraRootCertificates: []string{"x"}}}
	if got := warnings(&Options{}, settings); slices.ContainsFunc(got, func(w string) bool { return strings.Contains(w, "no registry CA") }) {
		t.Errorf("warnings %q although there are certificates", got)
	}
}

// TestFailedBuildLeavesNothing fails at each stage, with and without a guest that is there already.
func TestFailedBuildLeavesNothing(t *testing.T) {
	t.Parallel()
	errDisk := errors.New("disk full")
	for name, change := range map[string]func(*builder, context.CancelFunc){
		"no randomness": func(b *builder, _ context.CancelFunc) { b.random = strings.NewReader("short") },
		"bad input":     func(b *builder, _ context.CancelFunc) { b.o.Agent = b.o.Kernel },
		"disk": func(b *builder, _ context.CancelFunc) {
			b.writeDisk = func(context.Context, rootdisk.Options) (*rootdisk.Result, error) { return nil, errDisk }
		},
		"disk with a wrong header": func(b *builder, _ context.CancelFunc) {
			b.writeDisk = func(ctx context.Context, o rootdisk.Options) (*rootdisk.Result, error) {
				res, err := rootdisk.Write(ctx, o)
				if err == nil {
					res.Header = res.Header[1:]
				}
				return res, err
			}
		},
		"disk that the boot config refuses": func(b *builder, _ context.CancelFunc) {
			b.writeDisk = func(ctx context.Context, o rootdisk.Options) (*rootdisk.Result, error) {
				res, err := rootdisk.Write(ctx, o)
				if err == nil {
					res.Root.SectorSize = 1
				}
				return res, err
			}
		},
		"interrupted": func(b *builder, cancel context.CancelFunc) {
			b.o.Progress = func(s Step) {
				if s.Name == "initramfs" {
					cancel()
				}
			}
		},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			o := inputs(t)
			for _, before := range []bool{false, true} {
				var old *Guest
				if before {
					old = testBuilder(o).mustBuild(t).Guest
				}
				ctx, cancel := context.WithCancel(t.Context())
				defer cancel()
				b := testBuilder(o)
				change(b, cancel)
				if _, err := b.build(ctx); err == nil {
					t.Fatal("no error")
				}
				if before {
					checkFolder(t, o.Output, old)
				} else if left, err := os.ReadDir(filepath.Dir(o.Output)); err != nil || len(left) != 0 {
					t.Errorf("left behind: %v, error %v", left, err)
				}
			}
		})
	}
}

func TestOutput(t *testing.T) {
	t.Parallel()
	for name, tc := range map[string]struct {
		before func(t *testing.T, o Options)
		want   string // "" means that the build works
	}{
		"nothing":      {func(*testing.T, Options) {}, ""},
		"empty folder": {func(t *testing.T, o Options) { t.Helper(); must(t, os.Mkdir(o.Output, 0o700)) }, ""},
		"a guest":      {func(t *testing.T, o Options) { t.Helper(); testBuilder(o).mustBuild(t) }, ""},
		"a file":       {func(t *testing.T, o Options) { t.Helper(); put(t, o.Output, nil) }, "is not a folder"},
		"other folder": {func(t *testing.T, o Options) { t.Helper(); put(t, filepath.Join(o.Output, "thesis.tex"), nil) }, "something else than a guest"},
		"other marker": {func(t *testing.T, o Options) { t.Helper(); put(t, filepath.Join(o.Output, GuestFile), []byte("{}")) }, "something else than a guest"},
		"guest and more": {func(t *testing.T, o Options) {
			t.Helper()
			testBuilder(o).mustBuild(t)
			put(t, filepath.Join(o.Output, "thesis.tex"), nil)
		}, "holds thesis.tex"},
		"a link": {func(t *testing.T, o Options) { t.Helper(); must(t, os.Symlink(t.TempDir(), o.Output)) }, "is not a folder"},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			o := inputs(t)
			tc.before(t, o)
			res, err := testBuilder(o).build(t.Context())
			if tc.want == "" {
				must(t, err)
				checkFolder(t, o.Output, res.Guest)
				return
			}
			var input *InputError
			if !errors.As(err, &input) || input.Input != "output" || input.Hint() == "" || !strings.Contains(err.Error(), tc.want) {
				t.Errorf("error %v, want one about the output with %q and a hint", err, tc.want)
			}
			if left, _ := filepath.Glob(o.Output + ".*"); len(left) != 0 {
				t.Errorf("left behind: %v", left)
			}
		})
	}
}

func TestPublishInTwoSteps(t *testing.T) {
	t.Parallel()
	o := inputs(t)
	testBuilder(o).mustBuild(t)
	out := &output{final: o.Output, dir: o.Output + ".tmp-x"}
	put(t, filepath.Join(out.dir, "new"), nil)
	must(t, out.publishInTwoSteps(true))
	if _, err := os.Stat(filepath.Join(o.Output, "new")); err != nil {
		t.Error(err)
	}
	if _, err := Load(out.dir); err != nil { // for discard to remove
		t.Error(err)
	}
	out.discard()
	if left, err := os.ReadDir(filepath.Dir(o.Output)); err != nil || len(left) != 1 {
		t.Errorf("left behind: %v, error %v", left, err)
	}
}

func TestLoadRefuses(t *testing.T) {
	t.Parallel()
	res := testBuilder(inputs(t)).mustBuild(t)
	good, err := os.ReadFile(res.Manifest)
	must(t, err)
	for name, tc := range map[string]struct{ old, new, want string }{
		"other format":  {`"cloister-guest"`, `"other"`, "not the description"},
		"other version": {`"version": 1,` + "\n" + `  "builder"`, `"version": 2,` + "\n" + `  "builder"`, "version 2"},
		"file outside":  {`"name": "kernel"`, `"name": "../kernel"`, "file name"},
		"file empty":    {`"name": "root.img"`, `"name": ""`, "file name"},
		"file folder":   {`"name": "root.img"`, `"name": ".."`, "file name"},
		"not JSON":      {`{`, ``, "load guest"},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			bad := strings.Replace(string(good), tc.old, tc.new, 1)
			if bad == string(good) {
				t.Fatal("the test changes nothing")
			}
			dir := t.TempDir()
			put(t, filepath.Join(dir, GuestFile), []byte(bad))
			if _, err := Load(dir); err == nil || !strings.Contains(err.Error(), tc.want) {
				t.Errorf("error %v, want one with %q", err, tc.want)
			}
		})
	}
	if _, err := Load(t.TempDir()); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("error %v, want ErrNotExist", err)
	}
}
