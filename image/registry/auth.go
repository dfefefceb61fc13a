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
	"strings"
)

// Limits on credentials.
const (
	// MaxAuthSize is the size of an auth.json in bytes.
	MaxAuthSize = 256 << 10
	// maxAuths is the number of registries in it.
	maxAuths = 256
)

// Auth holds the credentials of registries. It cannot be printed. A nil Auth has none.
type Auth struct {
	byHost map[string]credential
}

type credential struct{ user, password string }

// ParseAuth reads the auths object of Docker's config.json, {"auths":{"host":{"auth":"base64 of user:password"}}}, as
// containers-auth.json(5) describes it. An empty file holds no credentials. Credential helpers and identity tokens are
// refused: they would be ignored silently otherwise. Keys are registry hosts; a path after the host is refused too.
func ParseAuth(data []byte) (*Auth, error) {
	if len(data) > MaxAuthSize {
		return nil, fmt.Errorf("registry credentials are larger than %d bytes", MaxAuthSize)
	}
	a := &Auth{byHost: make(map[string]credential)}
	if len(bytes.TrimSpace(data)) == 0 {
		return a, nil
	}
	var file struct {
		Auths map[string]struct {
			Auth          string `json:"auth"`
			IdentityToken string `json:"identitytoken"`
		} `json:"auths"`
		CredHelpers map[string]string `json:"credHelpers"`
		CredsStore  string            `json:"credsStore"`
	}
	if json.Unmarshal(data, &file) != nil {
		// JSON's own error could quote a password.
		return nil, errors.New("registry credentials are not JSON of the form {\"auths\":{\"host\":{\"auth\":\"...\"}}}")
	}
	if len(file.CredHelpers) != 0 || file.CredsStore != "" {
		return nil, errors.New("registry credentials name a credential helper, and there is none in a guest")
	}
	if len(file.Auths) > maxAuths {
		return nil, fmt.Errorf("registry credentials for more than %d hosts", maxAuths)
	}
	for name, entry := range file.Auths {
		host, err := authHost(name)
		if err != nil {
			return nil, err
		}
		if entry.IdentityToken != "" {
			return nil, fmt.Errorf("registry credentials of %s: identity tokens are not supported", host)
		}
		c, err := decodeCredential(entry.Auth)
		if err != nil {
			return nil, fmt.Errorf("registry credentials of %s: %w", host, err)
		}
		if _, twice := a.byHost[host]; twice {
			return nil, fmt.Errorf("registry credentials of %s are there twice", host)
		}
		a.byHost[host] = c
	}
	return a, nil
}

// authHost turns a key of auths into the host that a reference names. Docker writes its own registry as a URL.
func authHost(name string) (string, error) {
	if name == "https://index.docker.io/v1/" {
		return "docker.io", nil
	}
	host := strings.TrimSuffix(strings.TrimPrefix(name, "https://"), "/")
	if host == "" || len(host) > 255 || strings.ContainsAny(host, "/@ \t\r\n") {
		return "", fmt.Errorf("registry credentials: %.100q is not a registry host", name)
	}
	return host, nil
}

func decodeCredential(auth string) (credential, error) {
	data, err := base64.StdEncoding.DecodeString(auth)
	if err != nil {
		return credential{}, errors.New("auth is not base64")
	}
	user, password, ok := strings.Cut(string(data), ":")
	clear(data)
	password = strings.TrimRight(password, "\x00\n")
	if !ok || user == "" || password == "" {
		return credential{}, errors.New("auth is not base64 of user:password")
	}
	return credential{user, password}, nil
}

// lookup returns the credentials of a registry host, empty strings if there are none.
func (a *Auth) lookup(host string) (user, password string) {
	if a == nil {
		return "", ""
	}
	if host == dockerHubHost {
		host = "docker.io"
	}
	c := a.byHost[host]
	return c.user, c.password
}

// Len returns the number of registries that there are credentials of.
func (a *Auth) Len() int {
	if a == nil {
		return 0
	}
	return len(a.byHost)
}

// String shows the number of registries.
func (a *Auth) String() string { return fmt.Sprintf("[credentials of %d registries]", a.Len()) }

// GoString is String.
func (a *Auth) GoString() string { return a.String() }

// Format makes every verb show String.
func (a *Auth) Format(f fmt.State, _ rune) { _, _ = f.Write([]byte(a.String())) }

// LogValue implements slog.LogValuer.
func (a *Auth) LogValue() slog.Value { return slog.StringValue(a.String()) }
