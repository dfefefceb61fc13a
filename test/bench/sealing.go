// SPDX-License-Identifier: Apache-2.0
// Copyright The Cloister Authors.

package main

import (
	"bytes"
	"context"
	"crypto/rand"
	"crypto/sha512"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"runtime"
	"sync"
	"time"

	"github.com/cloister-cc/cloister/internal/testbed"
	"github.com/cloister-cc/cloister/se"
	"github.com/cloister-cc/cloister/se/hostkey/hostkeytest"
	"github.com/cloister-cc/cloister/se/xts"
	"github.com/cloister-cc/cloister/test/story"
)

// sealedSize is the size of the initramfs that is sealed, in bytes.
const sealedSize = 512 << 20

// sealing measures 'cloister se' as a user runs it, on the build host, against the same cryptography without anything
// around it, and XTS against OpenSSL's.
func (t *table) sealing(ctx context.Context, bed *testbed.Bed, runs int) (err error) {
	dir, err := os.MkdirTemp("", "cloister-bench-se-")
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, os.RemoveAll(dir)) }()
	cloister, err := sealInputs(ctx, dir)
	if err != nil {
		return err
	}
	image := filepath.Join(dir, "se.img")
	for range runs {
		took, peak, err := timed(ctx, cloister, "se", "create", "--kernel", bed.Kernel, "--ramdisk", filepath.Join(dir, "ramdisk"), "--no-verify",
			"--host-key-document", filepath.Join(dir, "HKD.crt"), "--bootloader-dir", bed.Bootloader, "--overwrite", "--output", image)
		if err != nil {
			return err
		}
		bare, err := bareSealing()
		if err != nil {
			return err
		}
		t.add("seal 512 MiB", "ms", took.Milliseconds())
		t.add("the same XTS and SHA-512 alone", "ms", bare.Milliseconds())
		t.add("ratio of the two", "%", took.Milliseconds()*100/max(bare.Milliseconds(), 1))
		t.add("peak memory of sealing", "KiB", peak)
		if took, _, err = timed(ctx, cloister, "se", "info", image); err != nil {
			return err
		}
		t.add("se info", "ms", took.Milliseconds())
		if err := t.xtsRates(ctx); err != nil {
			return err
		}
	}
	return nil
}

// sealInputs builds cloister and makes an initramfs and a host key.
func sealInputs(ctx context.Context, dir string) (cloister string, err error) {
	cloister = filepath.Join(dir, "cloister")
	if err := story.GoBuild(ctx, "", cloister, "github.com/cloister-cc/cloister/cmd/cloister"); err != nil {
		return "", err
	}
	a, err := hostkeytest.New(time.Now(), nil)
	if err != nil {
		return "", err
	}
	if _, err := a.WriteFiles(dir); err != nil {
		return "", err
	}
	block := make([]byte, 1<<20)
	_, _ = rand.Read(block) // never fails
	f, err := os.Create(filepath.Join(dir, "ramdisk"))
	if err != nil {
		return "", err
	}
	for n := 0; n < sealedSize && err == nil; n += len(block) {
		_, err = f.Write(block)
	}
	return cloister, errors.Join(err, f.Close())
}

// timed runs a command and returns how long it took and its peak memory in KiB. What the kernel accounts for a child in
// the end counts its parent before the exec as well, so that the peak is asked for while it runs.
func timed(ctx context.Context, name string, args ...string) (took time.Duration, peak int64, err error) {
	cmd := exec.CommandContext(ctx, name, args...)
	var out bytes.Buffer
	cmd.Stdout, cmd.Stderr = &out, &out
	start := time.Now()
	if err := cmd.Start(); err != nil {
		return 0, 0, err
	}
	done := make(chan error, 1)
	go func() { done <- cmd.Wait() }()
	for {
		select {
		case err := <-done:
			if err != nil {
				return 0, 0, fmt.Errorf("%s: %w\n%s", filepath.Base(name), err, out.Bytes())
			}
			return time.Since(start), peak, nil
		case <-time.After(5 * time.Millisecond):
			status, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", cmd.Process.Pid))
			if m := peakMemory.FindSubmatch(status); err == nil && m != nil {
				peak = max(peak, number(string(m[1])))
			}
		}
	}
}

var peakMemory = regexp.MustCompile(`VmHWM:\s+([0-9]+) kB`)

// bareSealing encrypts as much on all cores, and hashes as much at the same time.
func bareSealing() (time.Duration, error) {
	cipher, err := xts.New(testKey())
	if err != nil {
		return 0, err
	}
	workers := runtime.GOMAXPROCS(0)
	errs := make([]error, workers)
	start := time.Now()
	var wg sync.WaitGroup
	for w := range workers {
		wg.Go(func() {
			chunk := make([]byte, 1<<20)
			for n := 0; n < sealedSize/workers && errs[w] == nil; n += len(chunk) {
				errs[w] = se.Component{}.Encrypt(cipher, chunk, uint64(n))
			}
		})
	}
	wg.Go(func() {
		h, chunk := sha512.New(), make([]byte, 1<<20)
		for n := 0; n < sealedSize; n += len(chunk) {
			h.Write(chunk)
		}
	})
	wg.Wait()
	return time.Since(start), errors.Join(errs...)
}

func testKey() []byte {
	key := bytes.Repeat([]byte{1}, xts.KeySize)
	key[0] = 2
	return key
}

var opensslRate = regexp.MustCompile(`AES-256-XTS +([0-9]+)\.[0-9]+k`)

// xtsRates measures one core's XTS over pages for a second each.
func (t *table) xtsRates(ctx context.Context) error {
	cipher, err := xts.New(testKey())
	if err != nil {
		return err
	}
	page := make([]byte, se.PageSize)
	pages := 0
	start := time.Now()
	for time.Since(start) < time.Second {
		for range 100 {
			if err := cipher.Encrypt(page, page, xts.Tweak{}); err != nil {
				return err
			}
		}
		pages += 100
	}
	t.add("XTS, one core", "MB/s", int64(float64(pages*len(page))/time.Since(start).Seconds()/1e6))
	if _, err := exec.LookPath("openssl"); err != nil {
		fmt.Fprintln(os.Stderr, "its XTS is not measured:", err)
		return nil
	}
	out, err := exec.CommandContext(ctx, "openssl", "speed", "-evp", "aes-256-xts", "-bytes", "4096", "-seconds", "1").CombinedOutput()
	if err != nil {
		return fmt.Errorf("openssl speed: %w\n%s", err, out)
	}
	m := opensslRate.FindSubmatch(out)
	if m == nil {
		return fmt.Errorf("openssl speed printed %q", out)
	}
	t.add("XTS of OpenSSL, one core", "MB/s", number(string(m[1]))/1000)
	return nil
}
