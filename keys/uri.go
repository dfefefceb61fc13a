// SPDX-License-Identifier: Apache-2.0
// Copyright The Cloister Authors.

package keys

import (
	"fmt"
	"strings"
)

// URIPrefix starts every key URI that this project accepts: a resource of the guest's own key broker. A URI that names
// another broker's host is refused, because nothing in a guest decides by it.
const URIPrefix = "kbs:///"

// MaxURISize bounds a key URI, in bytes.
const MaxURISize = 1024

// Resource is a parsed key URI.
type Resource struct {
	Repository, Type, Tag string
}

// ParseURI reads kbs:///repository/type/tag. Each part is letters, digits, "_" and "-", and "." but not at the start,
// as in Trustee's resource paths; nothing may follow. There is one spelling of each URI: no escapes, no query.
func ParseURI(uri string) (Resource, error) {
	if len(uri) > MaxURISize {
		return Resource{}, fmt.Errorf("key URI is longer than %d bytes", MaxURISize)
	}
	rest, ok := strings.CutPrefix(uri, URIPrefix)
	if !ok {
		return Resource{}, fmt.Errorf("key URI %q does not start with %s", uri, URIPrefix)
	}
	parts := strings.Split(rest, "/")
	if len(parts) != 3 {
		return Resource{}, fmt.Errorf("key URI %q is not %srepository/type/tag", uri, URIPrefix)
	}
	for _, p := range parts {
		if !validPart(p) {
			return Resource{}, fmt.Errorf("key URI %q: part %q is not a resource name", uri, p)
		}
	}
	return Resource{Repository: parts[0], Type: parts[1], Tag: parts[2]}, nil
}

// String returns the URI that ParseURI reads.
func (r Resource) String() string {
	return URIPrefix + r.Repository + "/" + r.Type + "/" + r.Tag
}

func validPart(s string) bool {
	for i := range len(s) {
		switch c := s[i]; {
		case c >= 'a' && c <= 'z', c >= 'A' && c <= 'Z', c >= '0' && c <= '9', c == '_', c == '-':
		case c == '.' && i > 0:
		default:
			return false
		}
	}
	return s != ""
}
