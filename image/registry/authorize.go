// SPDX-License-Identifier: Apache-2.0
// Copyright The Cloister Authors.

package registry

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"strings"
	"time"

	"github.com/containerd/containerd/v2/core/remotes"
	"github.com/containerd/containerd/v2/core/remotes/docker"
	"github.com/containerd/containerd/v2/core/remotes/docker/auth"
	remoteserrors "github.com/containerd/containerd/v2/core/remotes/errors"
	"github.com/containerd/errdefs"
)

// oauthClient is the client_id of requests for tokens. It has no meaning to the token services that are known.
const oauthClient = "cloister"

// resolver returns what talks to the registry of a reference, with the credentials of its repository.
func (c *Client) resolver(ref Reference) remotes.Resolver {
	a := c.authorizer(ref)
	hosts := func(string) ([]docker.RegistryHost, error) {
		return []docker.RegistryHost{{
			Client:       c.http,
			Authorizer:   a,
			Host:         a.host,
			Scheme:       "https",
			Path:         "/v2",
			Capabilities: docker.HostCapabilityPull | docker.HostCapabilityResolve | docker.HostCapabilityPush,
		}}, nil
	}
	return docker.NewResolver(docker.ResolverOptions{Hosts: hosts, Headers: c.header})
}

func (c *Client) authorizer(ref Reference) authorizer {
	host := ref.Host
	if host == "docker.io" {
		host = dockerHubHost
	}
	_, credential := c.auth.lookup(ref)
	return authorizer{c: c, id: grantKey{host: host, repository: ref.Repository}, host: host, credential: credential}
}

// authorizer answers the challenges of a registry's host with the credentials of a repository. These go to the host
// itself, and to where it says that tokens are to be had; never for a challenge from elsewhere, to which the registry has
// redirected. It is used instead of containerd's, which keeps errors and tokens without a time limit, of any size, and
// lets one caller wait for the request of another: each caller fetches its own token here if there is none.
type authorizer struct {
	c          *Client
	id         grantKey // without scopes
	host       string
	credential credential
}

// grant returns the key of what is kept for requests of ctx, which has their scopes.
func (a authorizer) grant(ctx context.Context) grantKey {
	id := a.id
	id.scopes = strings.Join(docker.GetTokenScopes(ctx, nil), " ")
	return id
}

// Authorize implements docker.Authorizer.
func (a authorizer) Authorize(ctx context.Context, req *http.Request) error {
	if req.URL.Host != a.host {
		return nil
	}
	id := a.grant(ctx)
	g, ok := a.c.grants.get(id)
	if !ok {
		return nil
	}
	if g.basic {
		req.SetBasicAuth(a.credential.user, a.credential.password)
		return nil
	}
	if g.token == "" || !time.Now().Before(g.expires) {
		if err := a.renew(ctx, &g); err != nil {
			a.c.grants.drop(id) // the next attempt asks the registry again where tokens are to be had
			return fmt.Errorf("asking for a token: %w", err)
		}
		a.c.grants.put(id, g)
	}
	req.Header.Set("Authorization", "Bearer "+g.token)
	return nil
}

// AddResponses implements docker.Authorizer: it makes what it can of the last response, which is a 401. What the request
// had is of no use any more. The second refusal in a row is final.
func (a authorizer) AddResponses(ctx context.Context, responses []*http.Response) error {
	last := responses[len(responses)-1]
	if last.Request.URL.Host != a.host {
		return fmt.Errorf("%w: asked for by %.100q, to which the registry redirects", docker.ErrInvalidAuthorization, last.Request.URL.Host)
	}
	id := a.grant(ctx)
	a.c.grants.drop(id)
	refused := 0
	for _, r := range responses {
		if r.StatusCode == http.StatusUnauthorized {
			refused++
		}
	}
	if refused > 1 && last.Request.Header.Get("Authorization") != "" {
		return docker.ErrInvalidAuthorization
	}
	for _, c := range auth.ParseAuthHeader(last.Header) {
		switch c.Scheme {
		case auth.BearerAuth:
			g, err := bearer(ctx, c)
			if err != nil {
				return err
			}
			a.c.grants.put(id, g)
			return nil
		case auth.BasicAuth:
			if a.credential == (credential{}) {
				return fmt.Errorf("%w: there are none", docker.ErrInvalidAuthorization)
			}
			a.c.grants.put(id, grant{basic: true})
			return nil
		case auth.DigestAuth: // no registry has it alone
		}
	}
	return fmt.Errorf("registry asks for no credentials of a known kind: %w", errdefs.ErrNotImplemented)
}

// bearer returns what a challenge asks for, as strings that do not keep the whole header in memory.
func bearer(ctx context.Context, c auth.Challenge) (grant, error) {
	to, err := auth.GenerateTokenOptions(ctx, "", "", "", c)
	if err != nil {
		return grant{}, err
	}
	g := grant{realm: strings.Clone(to.Realm), service: strings.Clone(to.Service), scope: strings.Clone(strings.Join(to.Scopes, " "))}
	if len(g.realm)+len(g.service)+len(g.scope) > maxChallenge {
		return grant{}, fmt.Errorf("registry's challenge is larger than %d bytes", maxChallenge)
	}
	return g, nil
}

// renew gets a new token.
func (a authorizer) renew(ctx context.Context, g *grant) error {
	to := auth.TokenOptions{Realm: g.realm, Service: g.service, Username: a.credential.user, Secret: a.credential.password}
	to.Scopes = docker.GetTokenScopes(ctx, strings.Fields(g.scope))
	token, seconds, err := a.fetch(withLimit(ctx, maxTokenAnswer), to)
	if err != nil {
		return err
	}
	if len(token) > maxToken {
		return fmt.Errorf("token is larger than %d bytes", maxToken)
	}
	if strings.ContainsFunc(token, func(r rune) bool { return r <= ' ' || r > '~' }) {
		return errors.New("token is an invalid header field value") // net/http would say so at every request that it is kept for
	}
	g.token, g.expires = token, time.Now().Add(lifetime(seconds))
	return nil
}

// fetch asks for a token, with POST if there is a password, and with GET where that is not known.
func (a authorizer) fetch(ctx context.Context, to auth.TokenOptions) (token string, seconds int, err error) {
	if to.Secret != "" {
		resp, err := auth.FetchTokenWithOAuth(ctx, a.c.http, a.c.header, oauthClient, to)
		if err == nil {
			return resp.AccessToken, resp.ExpiresInSeconds, nil
		}
		s, ok := errors.AsType[remoteserrors.ErrUnexpectedStatus](err)
		if !ok || !noPost(s.StatusCode) {
			return "", 0, err
		}
	}
	resp, err := auth.FetchToken(ctx, a.c.http, a.c.header, to)
	if err != nil {
		return "", 0, err
	}
	return resp.Token, resp.ExpiresInSeconds, nil
}

// noPost tells whether a status is one that token services without POST are known to answer.
func noPost(status int) bool {
	switch status {
	case http.StatusBadRequest, http.StatusUnauthorized, http.StatusNotFound, http.StatusMethodNotAllowed:
		return true
	}
	return false
}
