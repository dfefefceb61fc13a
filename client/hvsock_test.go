// SPDX-License-Identifier: Apache-2.0
// Copyright The Cloister Authors.

package client

import (
	"bytes"
	"io"
	"strings"
	"testing"
)

// answer is a connection that reads as given and takes what is written.
type answer struct {
	io.Reader
	sent bytes.Buffer
}

func (a *answer) Write(p []byte) (int, error) { return a.sent.Write(p) }

func TestConnect(t *testing.T) {
	t.Parallel()
	for in, want := range map[string]string{
		"OK 1073741824\nrest":             "",
		"OK 0\n":                          "",
		"":                                "nothing in the guest listens",
		"OK 1":                            "nothing in the guest listens",
		"OK\n":                            "instead of OK",
		"OK x\n":                          "no port",
		"OK 4294967296\n":                 "no port",
		"OK -1\n":                         "no port",
		"ERROR\n":                         "instead of OK",
		"\n":                              "instead of OK",
		"OK " + strings.Repeat("1", 1000): "more than 32 bytes",
	} {
		a := &answer{Reader: strings.NewReader(in)}
		err := connect(a, 1024)
		if (want == "") != (err == nil) || (err != nil && !strings.Contains(err.Error(), want)) {
			t.Errorf("%q: %v, want %q", in, err, want)
		}
		if a.sent.String() != "CONNECT 1024\n" {
			t.Errorf("sent %q", a.sent.String())
		}
		if rest, _ := io.ReadAll(a); err == nil && strings.HasSuffix(in, "rest") && string(rest) != "rest" {
			t.Errorf("left %q of the connection's own bytes", rest)
		}
	}
}

// FuzzConnect: whatever answers the handshake, no more than the bounded line is read, and OK is taken only as it should be.
func FuzzConnect(f *testing.F) {
	for _, s := range []string{"OK 1024\n", "OK 1024\nrest", "OK", "\n\n", "OK \n", "ERR", strings.Repeat("O", 100)} {
		f.Add([]byte(s))
	}
	f.Fuzz(func(t *testing.T, in []byte) {
		r := bytes.NewReader(in)
		err := connect(&answer{Reader: r}, 1)
		read := len(in) - r.Len()
		if read > maxAnswer {
			t.Errorf("read %d bytes", read)
		}
		if err == nil && (!bytes.HasPrefix(in, []byte("OK ")) || in[read-1] != '\n' || bytes.IndexByte(in, '\n') != read-1) {
			t.Errorf("took %q for OK after %d bytes", in, read)
		}
	})
}
