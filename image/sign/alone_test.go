// SPDX-License-Identifier: Apache-2.0
// Copyright The Cloister Authors.

//go:build containers_image_openpgp

package sign

import (
	"errors"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"

	"golang.org/x/sys/unix"
)

// aloneMarker is set in the process of TestNothingElseIsRead that has hostile folders.
const aloneMarker = "CLOISTER_TEST_ALONE"

// Threat: files and variables that containers/image programs read by default decide about an image: policies, registry
// configuration, keyrings, certificates. All of them allow everything here, in the environment's folders and in /etc.
// Observable: verdicts are those of the given policy, no such file is opened, and there is no network to be used.
func TestNothingElseIsRead(t *testing.T) {
	if os.Getenv(aloneMarker) == "" {
		runAlone(t)
		return
	}
	evil, evilPublic := gpgKey(t, nil)
	key, public := gpgKey(t, nil)
	if err := unix.Mount("none", "/", "", unix.MS_PRIVATE|unix.MS_REC, ""); err != nil {
		t.Fatal(err)
	}
	if err := unix.Mount("tmpfs", "/etc", "tmpfs", 0, ""); err != nil {
		t.Fatal(err)
	}
	watch, err := unix.InotifyInit1(unix.IN_NONBLOCK | unix.IN_CLOEXEC)
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = unix.Close(watch) }()
	for _, folder := range []string{os.Getenv("HOME"), "/etc"} {
		plant(t, folder, evilPublic, watch)
	}
	src := newSource()
	src.keep(simpleSign(t, evil, testRef, testDigest()))
	p := load(t, signedBy, map[string][]byte{"/key": public})
	check(t, p, src, "reject: ")
	src.keep(simpleSign(t, key, testRef, testDigest()))
	check(t, p, src, "")
	ec, ecPublic := ecKey(t)
	src.attach(t, testDigest(), cosign(t, ec, testRef, testDigest()))
	check(t, load(t, policyOf(kindSigstore, `,"keyData":`+b64(ecPublic)), nil), src, "")
	_, other := ecKey(t)
	check(t, load(t, policyOf(kindSigstore, `,"keyData":`+b64(other)), nil), src, "reject: ")
	events := make([]byte, 4096)
	if n, err := unix.Read(watch, events); !errors.Is(err, unix.EAGAIN) {
		t.Errorf("files were opened: %d bytes of events (%v): %q", n, err, events[:max(n, 0)])
	}
	if _, err := os.ReadFile("/etc/containers/policy.json"); err != nil {
		t.Fatal(err)
	}
	if _, err := unix.Read(watch, events); err != nil {
		t.Errorf("the watch sees nothing: %v", err)
	}
}

// plant writes files that allow everything, and watches them.
func plant(t *testing.T, folder string, key []byte, watch int) {
	t.Helper()
	for name, content := range map[string]string{
		"containers/policy.json":                 `{"default":` + accept + `}`,
		".config/containers/policy.json":         `{"default":` + accept + `}`,
		"containers/registries.d/x.yaml":         "default-docker: {lookaside: 'http://evil.example'}",
		".config/containers/registries.d/x.yaml": "default-docker: {lookaside: 'http://evil.example'}",
		"containers/registries.conf":             "unqualified-search-registries = ['evil.example']",
		".docker/config.json":                    `{"auths":{}}`,
		".gnupg/pubring.gpg":                     string(key),
		"ssl/cert.pem":                           string(key),
	} {
		path := filepath.Join(folder, name)
		if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(path, []byte(content), 0o600); err != nil {
			t.Fatal(err)
		}
		if _, err := unix.InotifyAddWatch(watch, filepath.Dir(path), unix.IN_OPEN); err != nil {
			t.Fatal(err)
		}
	}
	// What was planted after a watch began has been seen by it.
	for events := make([]byte, 4096); ; {
		if _, err := unix.Read(watch, events); errors.Is(err, unix.EAGAIN) {
			return
		} else if err != nil {
			t.Fatal(err)
		}
	}
}

// runAlone runs TestNothingElseIsRead in a process with a hostile environment and namespaces of its own: without
// network, and with mounts that nobody else sees.
func runAlone(t *testing.T) {
	t.Helper()
	home := t.TempDir()
	cmd := exec.CommandContext(t.Context(), "/proc/self/exe", "-test.run=^TestNothingElseIsRead$", "-test.v")
	cmd.Env = append(os.Environ(), aloneMarker+"=1", "HOME="+home,
		"XDG_CONFIG_HOME="+home+"/.config", "XDG_DATA_HOME="+home, "XDG_RUNTIME_DIR="+home, "GNUPGHOME="+home+"/.gnupg",
		"CONTAINERS_POLICY_JSON="+home+"/containers/policy.json", "CONTAINERS_REGISTRIES_CONF="+home+"/containers/registries.conf",
		"DOCKER_CONFIG="+home+"/.docker", "SSL_CERT_FILE="+home+"/ssl/cert.pem", "SSL_CERT_DIR="+home+"/ssl", "COSIGN_PASSWORD=x")
	cmd.SysProcAttr = &syscall.SysProcAttr{Cloneflags: syscall.CLONE_NEWNS | syscall.CLONE_NEWNET}
	if os.Geteuid() != 0 {
		cmd.SysProcAttr.Cloneflags |= syscall.CLONE_NEWUSER
		cmd.SysProcAttr.UidMappings = []syscall.SysProcIDMap{{ContainerID: 0, HostID: os.Getuid(), Size: 1}}
		cmd.SysProcAttr.GidMappings = []syscall.SysProcIDMap{{ContainerID: 0, HostID: os.Getgid(), Size: 1}}
	}
	out, err := cmd.CombinedOutput()
	if errors.Is(err, unix.EPERM) && os.Getenv("CLOISTER_GUEST") != "1" {
		t.Skip("this machine allows no namespaces")
	}
	if err != nil || !strings.Contains(string(out), "--- PASS: TestNothingElseIsRead ") {
		t.Errorf("alone: %v\n%s", err, out)
	}
}
