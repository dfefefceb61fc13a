// SPDX-License-Identifier: Apache-2.0
// Copyright The Cloister Authors.

package ctl

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path"
	"path/filepath"
	"syscall"

	"golang.org/x/sys/unix"

	"github.com/cloister-cc/cloister/rpc/pb"
)

const (
	// sharedDir is the folder of the guest that CopyFile writes to.
	sharedDir = runDir + "/shared/containers"
	// pieceSize is how much of a file the shim sends in one request, in bytes.
	pieceSize = 1 << 20
	// folderMode are the permissions that the shim gives to folders that have to be made on the way to a file.
	folderMode = 0o750
)

// Copied is what Copy has copied.
type Copied struct {
	// Path is where it lies in the guest.
	Path string `json:"path"`
	// Files, Folders and Links are how many there were, and Bytes is the size of the files.
	Files   int   `json:"files"`
	Folders int   `json:"folders"`
	Links   int   `json:"links"`
	Bytes   int64 `json:"bytes"`
}

// GuestPath returns where in the guest Copy puts what it copies under a name: one or more path elements.
func GuestPath(name string) (string, error) {
	if !filepath.IsLocal(name) || path.Clean(name) != name || name == "." {
		return "", fmt.Errorf("%q is no name for a file in the guest: it must not be absolute and not have .. in it", name)
	}
	return path.Join(sharedDir, name), nil
}

// Copy copies a file, or a folder with all that is in it, from the host to the guest. Permissions, owners and symbolic
// links are kept as they are, as numbers and texts; source itself may be a link to what is meant. What is neither file,
// folder nor link is an error.
func (s *Session) Copy(ctx context.Context, source, name string) (Copied, error) {
	target, err := GuestPath(name)
	if err != nil {
		return Copied{}, err
	}
	root, err := filepath.EvalSymlinks(source)
	if err != nil {
		return Copied{}, fmt.Errorf("copy: %w", err)
	}
	done := Copied{Path: target}
	err = filepath.WalkDir(root, func(file string, _ fs.DirEntry, err error) error {
		if err != nil {
			return fmt.Errorf("copy: %w", err)
		}
		rel, err := filepath.Rel(root, file)
		if err != nil {
			return fmt.Errorf("copy: %w", err)
		}
		return s.step("CopyFile("+path.Join(name, filepath.ToSlash(rel))+")", func() error {
			return s.copyOne(ctx, file, path.Join(target, filepath.ToSlash(rel)), &done)
		})
	})
	return done, err
}

func (s *Session) copyOne(ctx context.Context, file, target string, done *Copied) error {
	info, err := os.Lstat(file)
	if err != nil {
		return err
	}
	st, ok := info.Sys().(*syscall.Stat_t)
	if !ok {
		return errors.New("this system does not tell the owner of a file")
	}
	r := &pb.CopyFileRequest{Path: target, FileMode: st.Mode, DirMode: folderMode, Uid: int32(st.Uid), Gid: int32(st.Gid)}
	switch {
	case info.Mode().IsRegular():
		done.Files++
		return s.copyRegular(ctx, file, r, done)
	case info.IsDir():
		done.Folders++
	case info.Mode()&fs.ModeSymlink != 0:
		text, err := os.Readlink(file)
		if err != nil {
			return err
		}
		r.Data = []byte(text)
		done.Links++
	default:
		return fmt.Errorf("%s is neither file, folder nor link", file)
	}
	_, err = s.agent.CopyFile(ctx, r)
	return err
}

// copyRegular sends a file of the size that it has when it is opened, in pieces; an empty one as an empty piece.
func (s *Session) copyRegular(ctx context.Context, file string, r *pb.CopyFileRequest, done *Copied) error {
	f, err := os.OpenFile(file, os.O_RDONLY|unix.O_NOFOLLOW|unix.O_NONBLOCK, 0) // it may be another one meanwhile
	if err != nil {
		return err
	}
	defer f.Close()
	info, err := f.Stat()
	if err != nil {
		return err
	}
	if !info.Mode().IsRegular() {
		return fmt.Errorf("%s is no file any more", file)
	}
	r.FileSize = info.Size()
	buf := make([]byte, min(r.FileSize, pieceSize))
	for {
		r.Data = buf[:min(r.FileSize-r.Offset, pieceSize)]
		if _, err := io.ReadFull(f, r.Data); err != nil {
			return fmt.Errorf("read %s, which had %d bytes: %w", file, r.FileSize, err)
		}
		if _, err := s.agent.CopyFile(ctx, r); err != nil {
			return err
		}
		done.Bytes += int64(len(r.Data))
		if r.Offset += int64(len(r.Data)); r.Offset == r.FileSize {
			return nil
		}
	}
}
