// SPDX-License-Identifier: Apache-2.0
// Copyright The Cloister Authors.

package registry

import (
	"github.com/containerd/containerd/v2/core/remotes"
	"github.com/containerd/containerd/v2/core/remotes/docker"
)

// maxAuthorizers bounds the authorizers that are kept, each with the tokens of a registry. All are dropped when there are
// more: tokens can be had again.
const maxAuthorizers = 64

// resolver returns what talks to the registry of a reference, with the credentials of its repository.
func (c *Client) resolver(ref Reference) remotes.Resolver {
	host := ref.Host
	if host == "docker.io" {
		host = dockerHubHost
	}
	hosts := func(string) ([]docker.RegistryHost, error) {
		return []docker.RegistryHost{{
			Client:       c.http,
			Authorizer:   c.authorizer(ref, host),
			Host:         host,
			Scheme:       "https",
			Path:         "/v2",
			Capabilities: docker.HostCapabilityPull | docker.HostCapabilityResolve | docker.HostCapabilityPush,
		}}, nil
	}
	return docker.NewResolver(docker.ResolverOptions{Hosts: hosts, Headers: c.header})
}

// authorizer returns what answers the challenges of a registry's host. Repositories share it, with what it keeps of the
// registry's answers, only where they have the same credentials. These go to the host itself, and to where it says that
// tokens are to be had; never for a challenge from elsewhere, to which the registry has redirected.
func (c *Client) authorizer(ref Reference, host string) docker.Authorizer {
	key, credential := c.auth.lookup(ref)
	id := host + " " + key
	c.mu.Lock()
	defer c.mu.Unlock()
	if a, ok := c.authorizers[id]; ok {
		return a
	}
	if c.authorizers == nil || len(c.authorizers) >= maxAuthorizers {
		c.authorizers = make(map[string]docker.Authorizer)
	}
	a := docker.NewDockerAuthorizer(
		docker.WithAuthClient(c.http),
		docker.WithAuthHeader(c.header),
		docker.WithAuthCreds(func(asking string) (string, string, error) {
			if asking != host {
				return "", "", nil
			}
			return credential.user, credential.password, nil
		}))
	c.authorizers[id] = a
	return a
}
