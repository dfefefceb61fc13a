// SPDX-License-Identifier: Apache-2.0
// Copyright The Cloister Authors.

package keys

import (
	"bytes"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"log/slog"
	"strings"
	"testing"
)

// secretText never appears in anything that is printed; neither do its hexadecimal digits or byte values.
const secretText = "correct horse battery"

func shows(out string) bool {
	return strings.Contains(out, secretText) ||
		strings.Contains(strings.ToLower(out), hex.EncodeToString([]byte(secretText))) ||
		strings.Contains(out, "99 111 114 114") || strings.Contains(out, "0x63, 0x6f")
}

func TestSecretCannotBePrinted(t *testing.T) {
	s := NewSecret([]byte(secretText))
	holder := struct {
		Name string
		Key  *Secret
	}{"name", s}
	for _, verb := range []string{"%v", "%+v", "%#v", "%s", "%q", "%x", "%X", "%# x", "%d", "%t", "%c", "%U", "%T", "%p"} {
		for _, v := range []any{s, holder, &holder, []*Secret{s}, map[string]*Secret{"k": s}} {
			if out := fmt.Sprintf(verb, v); shows(out) {
				t.Errorf("verb %s of %T shows the secret: %s", verb, v, out)
			}
		}
	}
	if out := fmt.Sprint(s) + fmt.Sprintln(holder) + s.String() + s.GoString(); shows(out) {
		t.Errorf("printing shows the secret: %s", out)
	}
	if out := fmt.Errorf("wrapped: %v", s).Error(); shows(out) {
		t.Errorf("an error shows the secret: %s", out)
	}
}

func TestSecretCannotBeLogged(t *testing.T) {
	s := NewSecret([]byte(secretText))
	var out bytes.Buffer
	for _, h := range []slog.Handler{slog.NewTextHandler(&out, nil), slog.NewJSONHandler(&out, nil)} {
		slog.New(h).Info("message", "key", s, "keys", []*Secret{s}, slog.Group("group", "key", s))
	}
	if shows(out.String()) {
		t.Errorf("slog shows the secret: %s", out.String())
	}
	if n := strings.Count(out.String(), redacted); n < 4 {
		t.Errorf("slog shows %q %d times, want at least 4: %s", redacted, n, out.String())
	}
}

func TestSecretCannotBeMarshalled(t *testing.T) {
	s := NewSecret([]byte(secretText))
	for _, v := range []any{s, []*Secret{s}, map[string]*Secret{"k": s}, struct{ Key *Secret }{s}} {
		out, err := json.Marshal(v)
		if err != nil {
			t.Errorf("marshal %T: %v", v, err)
		}
		if shows(string(out)) || !bytes.Contains(out, []byte(redacted)) {
			t.Errorf("json of %T is %s", v, out)
		}
	}
}

func TestSecretWipe(t *testing.T) {
	raw := []byte(secretText)
	s := NewSecret(raw)
	c := s.Clone()
	s.Wipe()
	if !bytes.Equal(raw, make([]byte, len(secretText))) {
		t.Errorf("after Wipe the bytes are %q", raw)
	}
	if len(s.Bytes()) != 0 {
		t.Errorf("after Wipe there are still %d bytes", len(s.Bytes()))
	}
	if string(c.Bytes()) != secretText {
		t.Error("wiping a secret changed its clone")
	}
	s.Wipe()
	var none *Secret
	none.Wipe()
	if none.Bytes() != nil || len(none.Clone().Bytes()) != 0 {
		t.Error("a nil secret has bytes")
	}
}
