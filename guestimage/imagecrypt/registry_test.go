// SPDX-License-Identifier: Apache-2.0
// Copyright The Cloister Authors.

package imagecrypt

import (
	"bytes"
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/base64"
	"encoding/pem"
	"fmt"
	"io/fs"
	"math/big"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"golang.org/x/crypto/bcrypt"
	"golang.org/x/sys/unix"

	"github.com/cloister-cc/cloister/image"
	"github.com/cloister-cc/cloister/image/sign"
	"github.com/cloister-cc/cloister/initramfs"
	"github.com/cloister-cc/cloister/internal/testbed"
)

// realRegistry is Debian's docker-registry behind TLS with a password, on this machine.
type realRegistry struct {
	host string
	ca   *x509.CertPool
	auth []byte
}

// registryBinary finds Debian's docker-registry: installed, or in the test bed.
func registryBinary(t *testing.T) string {
	t.Helper()
	if binary, err := exec.LookPath("docker-registry"); err == nil {
		return binary
	}
	bed, err := testbed.Load(os.Getenv("CLOISTER_CACHE"), initramfs.ArchS390x)
	if err == nil {
		return bed.Registry
	}
	if os.Getenv("REQUIRE_QEMU") == "1" {
		t.Fatalf("no docker-registry, but REQUIRE_QEMU=1: %v", err)
	}
	t.Skipf("no docker-registry: %v", err)
	return ""
}

func startRegistry(t *testing.T) *realRegistry {
	t.Helper()
	binary := registryBinary(t)
	dir := t.TempDir()
	r := &realRegistry{host: freeAddress(t), ca: certificate(t, dir)}
	r.auth = []byte(fmt.Sprintf(`{"auths":{%q:{"auth":%q}}}`, r.host, base64.StdEncoding.EncodeToString([]byte("demo:some password"))))
	hash, err := bcrypt.GenerateFromPassword([]byte("some password"), bcrypt.MinCost)
	if err != nil {
		t.Fatal(err)
	}
	writeFile(t, dir, "htpasswd", append([]byte("demo:"), hash...))
	writeFile(t, dir, "config.yml", []byte(fmt.Sprintf(`version: 0.1
log: {level: error, accesslog: {disabled: true}}
storage: {filesystem: {rootdirectory: %[1]s/data}}
http: {addr: "%[2]s", secret: test, tls: {certificate: %[1]s/cert.pem, key: %[1]s/key.pem}}
auth: {htpasswd: {realm: test, path: %[1]s/htpasswd}}
`, dir, r.host)))
	cmd := exec.Command(binary, "serve", filepath.Join(dir, "config.yml"))
	var output bytes.Buffer
	cmd.Stdout, cmd.Stderr = &output, &output
	cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		_ = cmd.Process.Kill()
		_ = cmd.Wait()
		if t.Failed() {
			t.Logf("the registry said: %s", output.String())
		}
	})
	for start := time.Now(); ; time.Sleep(20 * time.Millisecond) {
		c, err := tls.Dial("tcp", r.host, &tls.Config{RootCAs: r.ca})
		if err == nil {
			_ = c.Close()
			return r
		}
		if time.Since(start) > time.Minute {
			t.Fatalf("the registry does not come up: %v", err)
		}
	}
}

func freeAddress(t *testing.T) string {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	return l.Addr().String()
}

func writeFile(t *testing.T, dir, name string, data []byte) {
	t.Helper()
	if err := os.WriteFile(filepath.Join(dir, name), data, 0o600); err != nil {
		t.Fatal(err)
	}
}

// certificate writes cert.pem and key.pem and returns the pool that trusts them.
func certificate(t *testing.T, dir string) *x509.CertPool {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	template := &x509.Certificate{
		SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: "test registry"},
		NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(time.Hour),
		IsCA: true, BasicConstraintsValid: true, IPAddresses: []net.IP{net.IPv4(127, 0, 0, 1)},
		KeyUsage: x509.KeyUsageDigitalSignature | x509.KeyUsageCertSign, ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth},
	}
	der, err := x509.CreateCertificate(rand.Reader, template, template, key.Public(), key)
	if err != nil {
		t.Fatal(err)
	}
	cert, err := x509.ParseCertificate(der)
	if err != nil {
		t.Fatal(err)
	}
	private, err := x509.MarshalPKCS8PrivateKey(key)
	if err != nil {
		t.Fatal(err)
	}
	writeFile(t, dir, "cert.pem", pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der}))
	writeFile(t, dir, "key.pem", pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: private}))
	pool := x509.NewCertPool()
	pool.AddCert(cert)
	return pool
}

// describe lists a tree: path, mode, owner, links, target or content of every file.
func describe(t *testing.T, dir string, owner bool) string {
	t.Helper()
	var b strings.Builder
	err := filepath.WalkDir(dir, func(path string, d fs.DirEntry, err error) error {
		if err != nil || path == dir {
			return err
		}
		info, err := d.Info()
		if err != nil {
			return err
		}
		st := info.Sys().(*syscall.Stat_t)
		fmt.Fprintf(&b, "%s %v", strings.TrimPrefix(path, dir), info.Mode())
		if owner {
			fmt.Fprintf(&b, " %d:%d", st.Uid, st.Gid)
		}
		switch {
		case info.Mode().IsRegular():
			data, err := os.ReadFile(path)
			if err != nil {
				return err
			}
			fmt.Fprintf(&b, " %d links %q", st.Nlink, data)
		case info.Mode()&fs.ModeSymlink != 0:
			target, err := os.Readlink(path)
			if err != nil {
				return err
			}
			b.WriteString(" -> " + target)
		}
		b.WriteByte('\n')
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	return b.String()
}

// scratch mounts a tmpfs, for an overlay's upper folder.
func scratch(t *testing.T) string {
	t.Helper()
	if os.Geteuid() != 0 {
		if os.Getenv("REQUIRE_QEMU") == "1" {
			t.Fatal("mounting needs the rights of root")
		}
		t.Skip("mounting needs the rights of root")
	}
	dir := t.TempDir()
	if err := unix.Mount("tmpfs", dir, "tmpfs", 0, "size=64m"); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := unix.Unmount(dir, unix.MNT_DETACH); err != nil {
			t.Error(err)
		}
	})
	return dir
}

// The whole way: a folder becomes an encrypted image, goes to a real registry, and comes back as a root file system.
func TestFromFolderToContainer(t *testing.T) {
	top := scratch(t)
	r := startRegistry(t)
	source := rootfs(t)
	for _, compression := range []string{Gzip, Zstd, None} {
		plain, _ := create(t, Options{Rootfs: source, Compression: compression})
		encrypted := filepath.Join(t.TempDir(), "encrypted")
		if _, err := Encrypt(t.Context(), between(plain, encrypted), demoRecipient()); err != nil {
			t.Fatal(err)
		}
		for name, layout := range map[string]string{"plain": plain, "encrypted": encrypted} {
			ref := r.host + "/demo/" + compression + ":" + name
			desc, err := Push(t.Context(), layout, ref, Access{CA: r.ca, Auth: r.auth})
			if err != nil {
				t.Fatal(err)
			}
			if again, err := Push(t.Context(), layout, ref, Access{CA: r.ca, Auth: r.auth}); err != nil || again != desc {
				t.Errorf("pushing again: %v, %v", again, err)
			}
			for _, ref := range []string{ref, r.host + "/demo/" + compression + "@" + desc.String()} {
				mountAndCompare(t, r, top, ref, source)
			}
		}
	}
}

func mountAndCompare(t *testing.T, r *realRegistry, top, ref, source string) {
	t.Helper()
	policy, err := sign.New(sign.Config{Policy: []byte(`{"default":[{"type":"insecureAcceptAnything"}]}`)})
	if err != nil {
		t.Fatal(err)
	}
	s, err := image.New(image.Config{
		Root: filepath.Join(top, "images"), CA: r.ca, Auth: r.auth, Arch: "s390x", Policy: policy,
		Keys: func(_ context.Context, uri string) ([]byte, error) {
			if uri != keyURI {
				return nil, image.ErrNoKey
			}
			return bytes.Clone(demoKey().Bytes()), nil
		},
	})
	if err != nil {
		t.Fatal(err)
	}
	defer s.Close()
	target := filepath.Join(top, "rootfs")
	if err := os.MkdirAll(target, 0o755); err != nil {
		t.Fatal(err)
	}
	if _, err := s.Mount(t.Context(), "c1", ref, target); err != nil {
		t.Fatalf("mount %s: %v", ref, err)
	}
	got, want := describe(t, target, false), describe(t, source, false)
	if got != want {
		t.Errorf("%s: the container has\n%.2000s\nthe source\n%.2000s", ref, got, want)
	}
	if owners := describe(t, target, true); strings.Count(owners, " 0:0") != strings.Count(owners, "\n") {
		t.Errorf("%s: not everything belongs to root:\n%.2000s", ref, owners)
	}
	if err := s.Unmount(t.Context(), "c1"); err != nil {
		t.Error(err)
	}
}

func TestPushErrors(t *testing.T) {
	r := startRegistry(t)
	layout, _ := create(t, Options{Rootfs: rootfs(t)})
	for name, tt := range map[string]struct {
		ref  string
		o    Access
		want string
	}{
		"no CA":          {r.host + "/a/b:c", Access{Auth: r.auth}, "certificate is not trusted"},
		"no credentials": {r.host + "/a/b:c", Access{CA: r.ca}, "credentials"},
		"short name":     {"busybox", Access{CA: r.ca, Auth: r.auth}, "does not name its registry"},
		"digest":         {r.host + "/a/b@sha256:" + strings.Repeat("0", 64), Access{CA: r.ca, Auth: r.auth}, "want a tag"},
	} {
		_, err := Push(t.Context(), layout, tt.ref, tt.o)
		if err == nil || !strings.Contains(err.Error(), tt.want) {
			t.Errorf("%s: %v, want %q", name, err, tt.want)
		}
	}
}
