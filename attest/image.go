// SPDX-License-Identifier: Apache-2.0
// Copyright The Cloister Authors.

package attest

import (
	"fmt"
	"regexp"
	"strings"
)

// What the event of a pull is called, see the package comment.
const (
	domain    = "github.com/confidential-containers"
	pullImage = "PullImage"
)

// digestPattern is a digest of OCI, of the algorithms that images have.
var digestPattern = regexp.MustCompile(`^(sha256:[0-9a-f]{64}|sha384:[0-9a-f]{96}|sha512:[0-9a-f]{128})$`)

// PullImage returns the event that an image is used: what its reference, in its canonical form, stands for. The content is
//
//	{"image":"registry.example/demo:1","digest":"sha256:…"}
//
// The error is ErrEvent.
func PullImage(reference, digest string) (Event, error) {
	if !digestPattern.MatchString(digest) {
		return Event{}, fmt.Errorf("%w: not a digest: %.150q", ErrEvent, digest)
	}
	if reference == "" || strings.ContainsAny(reference, `"\`) { // what JSON would have in another spelling
		return Event{}, fmt.Errorf("%w: not a reference: %.100q", ErrEvent, reference)
	}
	e := Event{Domain: domain, Operation: pullImage, Content: `{"image":"` + reference + `","digest":"` + digest + `"}`}
	return e, e.check()
}
