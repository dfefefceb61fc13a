// SPDX-License-Identifier: Apache-2.0
// Copyright The Cloister Authors.

package registry

import (
	"bytes"
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"slices"
	"strings"
)

// Limits on credentials.
const (
	// MaxAuthSize is the size of an auth.json in bytes.
	MaxAuthSize = 256 << 10
	// maxAuths is the number of keys in it.
	maxAuths = 256
)

// Auth holds the credentials of registries and of parts of them. It cannot be printed. A nil Auth has none.
type Auth struct {
	// byName has a key host or host/path for each, see ParseAuth.
	byName map[string]credential
}

type credential struct{ user, password string }

// authEntry is an entry of auths. RawMessages, unlike strings, can be wiped.
type authEntry struct {
	Auth          json.RawMessage `json:"auth"`
	Username      string          `json:"username"`
	Password      json.RawMessage `json:"password"`
	IdentityToken string          `json:"identitytoken"`
	RegistryToken string          `json:"registrytoken"`
}

// ParseAuth reads the auths object of Docker's config.json, {"auths":{"host":{"auth":"base64 of user:password"}}}, as
// containers-auth.json(5) describes it; username and password beside or instead of auth, as a dockerconfigjson of
// Kubernetes has them, must say the same. An empty file holds no credentials. Credential helpers, identity tokens,
// patterns as keys, and the older form without auths are refused: they would be ignored silently otherwise.
//
// A key is host[:port] or host[:port]/namespace[/repository], and the longest one that a repository's name begins with
// counts. Docker's older spellings are read as Docker and podman do: with https:// or http:// a key stands for its host
// whatever path follows, as it does with /v1/ or /v2/ at its end, and index.docker.io and registry-1.docker.io stand for
// docker.io, and a host with port 443 for the host. Where several spellings of a key differ, the plain one counts; where
// that does not decide, it is an error.
func ParseAuth(data []byte) (*Auth, error) {
	if len(data) > MaxAuthSize {
		return nil, fmt.Errorf("registry credentials are larger than %d bytes", MaxAuthSize)
	}
	a := &Auth{byName: make(map[string]credential)}
	if len(bytes.TrimSpace(data)) == 0 {
		return a, nil
	}
	var file struct {
		Auths       map[string]json.RawMessage `json:"auths"`
		CredHelpers map[string]string          `json:"credHelpers"`
		CredsStore  string                     `json:"credsStore"`
	}
	if json.Unmarshal(data, &file) != nil {
		return nil, errAuthForm
	}
	defer func() {
		for _, raw := range file.Auths {
			clear(raw)
		}
	}()
	if len(file.CredHelpers) != 0 || file.CredsStore != "" {
		return nil, errors.New("registry credentials name a credential helper, and there is none in a guest")
	}
	if file.Auths == nil && isDockercfg(data) {
		return nil, errors.New("registry credentials are in the form of a .dockercfg; wrap them as {\"auths\":{...}}")
	}
	if len(file.Auths) > maxAuths {
		return nil, fmt.Errorf("registry credentials for more than %d names", maxAuths)
	}
	names, err := sortAuthNames(file.Auths)
	if err != nil {
		return nil, err
	}
	from := make(map[string]authName)
	for _, name := range names {
		c, err := parseEntry(file.Auths[name.written])
		if err != nil {
			return nil, fmt.Errorf("registry credentials of %s: %w", name.key, err)
		}
		first, twice := from[name.key]
		if !twice {
			from[name.key], a.byName[name.key] = name, c
		} else if first.plain == name.plain && c != a.byName[name.key] {
			return nil, fmt.Errorf("registry credentials of %s are there twice, as %.100q and %.100q, and differ", name.key, first.written, name.written)
		}
	}
	return a, nil
}

// errAuthForm stands for JSON's own error, which could quote a password.
var errAuthForm = errors.New("registry credentials are not JSON of the form {\"auths\":{\"host\":{\"auth\":\"...\"}}}")

// isDockercfg tells whether a JSON object is what auths holds.
func isDockercfg(data []byte) bool {
	var file map[string]json.RawMessage
	if json.Unmarshal(data, &file) != nil {
		return false
	}
	for _, raw := range file {
		var entry authEntry
		if json.Unmarshal(raw, &entry) == nil && (entry.Auth != nil || entry.Password != nil) {
			return true
		}
	}
	return false
}

// authName is a key of auths.
type authName struct {
	written string
	key     string // as repositories' names begin
	plain   bool   // written as it is meant to be
}

// sortAuthNames returns the keys of auths, plain ones first.
func sortAuthNames(auths map[string]json.RawMessage) ([]authName, error) {
	names := make([]authName, 0, len(auths))
	for written := range auths {
		key, err := authKey(written)
		if err != nil {
			return nil, fmt.Errorf("registry credentials: %.100q: %w", written, err)
		}
		names = append(names, authName{written, key, written == key || written == dockerHubKey})
	}
	slices.SortFunc(names, func(x, y authName) int {
		if x.plain != y.plain {
			if x.plain {
				return -1
			}
			return 1
		}
		return strings.Compare(x.written, y.written)
	})
	return names, nil
}

// dockerHubKey is what docker login writes for its own registry.
const dockerHubKey = "https://index.docker.io/v1/"

// authKey turns a key of auths into what the names of repositories begin with.
func authKey(written string) (string, error) {
	if len(written) > MaxReferenceSize {
		return "", errors.New("the name is too long")
	}
	rest := strings.TrimPrefix(strings.TrimPrefix(written, "http://"), "https://")
	host, path, _ := strings.Cut(rest, "/")
	if rest != written || path == "v1/" || path == "v2/" {
		path = "" // an address of the registry's API
	}
	host, err := canonicalHost(strings.ToLower(host))
	if err != nil {
		return "", err
	}
	host = hubName(host)
	if path == "" {
		return host, nil
	}
	path = strings.TrimSuffix(path, "/")
	if ref, err := ParseReference("x.example/" + path); err != nil || ref.Repository != path {
		return "", errors.New("the name is neither a registry's host nor a repository's name or its beginning")
	}
	return host + "/" + path, nil
}

// hubName returns docker.io for any name of that registry.
func hubName(host string) string {
	if host == dockerHubHost || host == "index.docker.io" {
		return "docker.io"
	}
	return host
}

func parseEntry(raw json.RawMessage) (credential, error) {
	var e authEntry
	if json.Unmarshal(raw, &e) != nil {
		return credential{}, errAuthForm
	}
	defer clear(e.Auth)
	defer clear(e.Password)
	if e.IdentityToken != "" || e.RegistryToken != "" {
		return credential{}, errors.New("identity tokens are not supported")
	}
	encoded, ok1 := unquote(e.Auth)
	password, ok2 := unquote(e.Password)
	if !ok1 || !ok2 {
		return credential{}, errAuthForm
	}
	if len(encoded) == 0 && e.Username != "" && len(password) != 0 {
		return credential{e.Username, string(password)}, nil
	}
	c, err := decodeCredential(encoded)
	if err == nil && (e.Username != "" && e.Username != c.user || len(password) != 0 && string(password) != c.password) {
		err = errors.New("username and password are not those in auth")
	}
	return c, err
}

// unquote returns what a JSON string holds, as a part of raw where that is possible: it is wiped with it.
func unquote(raw json.RawMessage) ([]byte, bool) {
	if n := len(raw); n >= 2 && raw[0] == '"' && bytes.IndexByte(raw, '\\') < 0 {
		return raw[1 : n-1], true
	}
	var s string
	ok := len(raw) == 0 || json.Unmarshal(raw, &s) == nil
	return []byte(s), ok
}

func decodeCredential(auth []byte) (credential, error) {
	encoding := base64.StdEncoding
	if len(auth)%4 != 0 && !bytes.HasSuffix(auth, []byte("=")) {
		encoding = base64.RawStdEncoding // Kubernetes takes it
	}
	data := make([]byte, encoding.DecodedLen(len(auth)))
	defer clear(data)
	n, err := encoding.Decode(data, auth)
	if err != nil {
		return credential{}, errors.New("auth is not base64")
	}
	user, password, ok := bytes.Cut(data[:n], []byte(":"))
	password = bytes.TrimRight(password, "\x00\n")
	if !ok || len(user) == 0 || len(password) == 0 {
		return credential{}, errors.New("auth is not base64 of user:password")
	}
	return credential{string(user), string(password)}, nil
}

// lookup returns the credentials for a repository, and the key that they are of. Both are empty if there are none.
func (a *Auth) lookup(ref Reference) (key string, c credential) {
	if a == nil {
		return "", credential{}
	}
	for key = hubName(ref.Host) + "/" + ref.Repository; ; {
		if c, ok := a.byName[key]; ok {
			return key, c
		}
		slash := strings.LastIndexByte(key, '/')
		if slash < 0 {
			return "", credential{}
		}
		key = key[:slash]
	}
}

// Len returns the number of registries, namespaces and repositories that there are credentials of.
func (a *Auth) Len() int {
	if a == nil {
		return 0
	}
	return len(a.byName)
}

// String shows the number of registries.
func (a *Auth) String() string { return fmt.Sprintf("[credentials of %d registries]", a.Len()) }

// GoString is String.
func (a *Auth) GoString() string { return a.String() }

// Format makes every verb show String.
func (a *Auth) Format(f fmt.State, _ rune) { _, _ = f.Write([]byte(a.String())) }

// LogValue implements slog.LogValuer.
func (a *Auth) LogValue() slog.Value { return slog.StringValue(a.String()) }
