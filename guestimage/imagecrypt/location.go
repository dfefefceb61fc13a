// SPDX-License-Identifier: Apache-2.0
// Copyright The Cloister Authors.

package imagecrypt

import (
	"errors"
	"fmt"
	"strings"
)

// Transports of a Location, by the names that skopeo gives them.
const (
	// Docker is a registry.
	Docker = "docker"
	// OCI is a folder with an OCI image layout.
	OCI = "oci"
	// OCIArchive is a tar of an OCI image layout.
	OCIArchive = "oci-archive"
	// DockerArchive is a tar as "docker save" writes it. It has no place for what an encrypted layer needs.
	DockerArchive = "docker-archive"
)

// Location is where an image is, or shall be.
type Location struct {
	// Transport is one of Docker, OCI, OCIArchive, DockerArchive.
	Transport string
	// Path is a folder or file; with Docker it is the reference host[:port]/repository[:tag][@digest].
	Path string
	// Name is the image's name in a layout or archive, empty for the only one there is.
	Name string
}

// locationError is a location that cannot be understood.
type locationError struct{ err error }

func (e *locationError) Error() string { return e.err.Error() }
func (e *locationError) Unwrap() error { return e.err }

// Hint lists the transports.
func (e *locationError) Hint() string {
	return "write docker://HOST/REPOSITORY:TAG, oci:DIR[:TAG], oci-archive:FILE[:TAG] or docker-archive:FILE[:NAME:TAG]"
}

// ParseLocation reads docker://REFERENCE, oci:DIR[:TAG], oci-archive:FILE[:TAG] or docker-archive:FILE[:NAME:TAG]. A path
// ends at its first colon. Its errors have a method Hint.
func ParseLocation(s string) (Location, error) {
	transport, rest, ok := strings.Cut(s, ":")
	switch {
	case !ok:
		return Location{}, &locationError{fmt.Errorf("image %.200q does not name its transport", s)}
	case transport == Docker:
		if rest, ok = strings.CutPrefix(rest, "//"); !ok || rest == "" {
			return Location{}, &locationError{fmt.Errorf("image %.200q is not docker://HOST/REPOSITORY:TAG", s)}
		}
		return Location{Transport: Docker, Path: rest}, nil
	case transport != OCI && transport != OCIArchive && transport != DockerArchive:
		return Location{}, &locationError{fmt.Errorf("transport %.40q of image %.200q is not known", transport, s)}
	}
	path, name, named := strings.Cut(rest, ":")
	if path == "" {
		return Location{}, &locationError{fmt.Errorf("image %.200q has no path", s)}
	}
	if named && name == "" {
		return Location{}, &locationError{fmt.Errorf("image %.200q has an empty name after its path", s)}
	}
	return Location{Transport: transport, Path: path, Name: name}, nil
}

// String returns the location as ParseLocation reads it.
func (l Location) String() string {
	switch {
	case l.Transport == Docker:
		return Docker + "://" + l.Path
	case l.Name == "":
		return l.Transport + ":" + l.Path
	default:
		return l.Transport + ":" + l.Path + ":" + l.Name
	}
}

// errNoPlaceForKeys says why an encrypted image cannot be stored as "docker save" does it.
var errNoPlaceForKeys = errors.New("a docker-archive has no place for the keys of encrypted layers: use oci-archive")
