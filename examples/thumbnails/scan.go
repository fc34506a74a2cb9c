package main

import (
	"cmp"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"unicode/utf8"
)

// picture is an image file.
type picture struct {
	name string // below the folder, with slashes
	path string
	hash string // of its content, "" until asked for
}

// thumbnail is where the thumbnail of the picture's content belongs.
func (p picture) thumbnail(out string) string { return filepath.Join(out, p.hash+".png") }

// find lists the image files below folder, but not below out, ordered by file
// name. What it may not read it tells to skipped.
func find(ctx context.Context, folder, out string, skipped func(path string, err error)) ([]picture, error) {
	var found []picture
	err := filepath.WalkDir(folder, func(path string, entry fs.DirEntry, err error) error {
		switch {
		case ctx.Err() != nil:
			return context.Cause(ctx)
		case err != nil && path == folder:
			return err
		case err != nil:
			skipped(path, err)
			return nil
		case entry.IsDir() && path == out:
			return filepath.SkipDir
		case !entry.Type().IsRegular() || !isImage(path):
			return nil
		case !utf8.ValidString(path):
			skipped(path, errors.New("its name is not UTF-8, which a payload in JSON must be"))
			return nil
		}
		name, err := filepath.Rel(folder, path)
		if err != nil {
			return err
		}
		found = append(found, picture{name: filepath.ToSlash(name), path: path})
		return nil
	})
	slices.SortFunc(found, func(a, b picture) int {
		return cmp.Or(cmp.Compare(filepath.Base(a.path), filepath.Base(b.path)), cmp.Compare(a.path, b.path))
	})
	return found, err
}

func isImage(path string) bool {
	switch strings.ToLower(filepath.Ext(path)) {
	case ".png", ".jpg", ".jpeg", ".gif":
		return true
	}
	return false
}

// hashed finds the pictures and reads each to the end. It warns of those that
// cannot be read.
func hashed(ctx context.Context, c *config, stdout io.Writer) ([]picture, error) {
	skipped := func(path string, err error) { fmt.Fprintf(stdout, "Left out %q: %v\n", path, err) }
	found, err := find(ctx, c.folder, c.out, skipped)
	if err != nil {
		return nil, err
	}
	var readable []picture
	for _, p := range found {
		if ctx.Err() != nil {
			return nil, context.Cause(ctx)
		}
		if p.hash, err = hash(p.path); err != nil {
			skipped(p.path, err)
			continue
		}
		readable = append(readable, p)
	}
	return readable, nil
}

// hash is the SHA-256 of a file's content, in hexadecimal.
func hash(path string) (string, error) {
	h := sha256.New()
	err := withFile(path, func(f *os.File) error {
		_, err := io.Copy(h, f)
		return err
	})
	return hex.EncodeToString(h.Sum(nil)), err
}

// withFile opens a file for read and closes it.
func withFile(path string, read func(*os.File) error) (err error) {
	f, err := os.Open(path)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, f.Close()) }()
	return read(f)
}
