// SPDX-License-Identifier: Apache-2.0
// Copyright The Cloister Authors.

package registry

import (
	"sync"
	"time"
)

// Limits on what registries and their token services say.
const (
	// maxGrants is how many grants are kept. With a token in each they have less than 5 MiB.
	maxGrants = 64
	// maxToken bounds a token, maxTokenAnswer the answer that it is in, and maxChallenge what a challenge asks for, in bytes.
	maxToken       = 64 << 10
	maxTokenAnswer = 256 << 10
	maxChallenge   = 8 << 10
)

// Limits on the time for which a token is kept. One that does not say is valid for 60 s, see "Token Authentication
// Specification" of the distribution project.
const (
	defaultLifetime = time.Minute
	maxLifetime     = 24 * time.Hour
)

// lifetime returns how long a token is kept of which its service says that many seconds.
func lifetime(seconds int) time.Duration {
	switch {
	case seconds <= 0:
		return defaultLifetime
	case seconds > int(maxLifetime/time.Second):
		return maxLifetime
	}
	return time.Duration(seconds) * time.Second
}

// grantKey tells apart what may not be used for one another: registries, repositories, of which each may have other
// credentials, and what is done with those.
type grantKey struct{ host, repository, scopes string }

// grant is what a registry wants to see with a request, and the token that was last given for that.
type grant struct {
	basic                 bool
	realm, service, scope string
	token                 string // empty: none yet
	expires               time.Time
}

// grants keeps grants, and of too many those that were used last. No error is kept. The zero value is ready.
type grants struct {
	mu    sync.Mutex
	byKey map[grantKey]*keptGrant
	clock uint64 // counts uses
}

type keptGrant struct {
	grant
	used uint64
}

func (s *grants) get(k grantKey) (grant, bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	kept, ok := s.byKey[k]
	if !ok {
		return grant{}, false
	}
	s.clock++
	kept.used = s.clock
	return kept.grant, true
}

func (s *grants) put(k grantKey, g grant) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.byKey == nil {
		s.byKey = make(map[grantKey]*keptGrant)
	}
	s.clock++
	s.byKey[k] = &keptGrant{g, s.clock}
	if len(s.byKey) <= maxGrants {
		return
	}
	oldest := k
	for other, kept := range s.byKey {
		if kept.used < s.byKey[oldest].used {
			oldest = other
		}
	}
	delete(s.byKey, oldest)
}

func (s *grants) drop(k grantKey) {
	s.mu.Lock()
	defer s.mu.Unlock()
	delete(s.byKey, k)
}
