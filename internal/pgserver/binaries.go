package pgserver

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"slices"
	"strconv"
	"strings"
)

// usualBinDirs are the install folders of the common packages: Debian and
// Ubuntu, Red Hat, Homebrew on ARM and Intel, Postgres.app, Alpine, EnterpriseDB.
var usualBinDirs = []string{
	"/usr/lib/postgresql/*/bin",
	"/usr/pgsql-*/bin",
	"/opt/homebrew/opt/postgresql*/bin",
	"/usr/local/opt/postgresql*/bin",
	"/Applications/Postgres.app/Contents/Versions/*/bin",
	"/usr/libexec/postgresql*",
	"/Library/PostgreSQL/*/bin",
	`C:\Program Files\PostgreSQL\*\bin`,
}

// startBinaries runs the server programs installed on this machine.
func startBinaries(ctx context.Context, o Options) (*Server, error) {
	if o.BinDir != "" {
		if !hasServer(o.BinDir) {
			return nil, &bindingError{fmt.Errorf("the folder %q (%s) holds no postgres and initdb: name the bin folder of a PostgreSQL server installation", o.BinDir, binDirVariable)}
		}
		s, err := startCluster(ctx, o.BinDir, o)
		if err != nil {
			return nil, &bindingError{err}
		}
		return s, nil
	}
	dirs := o.installed()
	if len(dirs) == 0 {
		return nil, errors.New("no postgres and initdb on PATH, through pg_config or in the usual folders")
	}
	var failures []error
	for _, dir := range dirs {
		s, err := startCluster(ctx, dir, o)
		if err == nil {
			return s, nil
		}
		failures = append(failures, err)
		if ctx.Err() != nil {
			break
		}
	}
	return nil, errors.Join(failures...)
}

// installedBinDirs returns the folders with server programs, in the order in
// which they are tried.
func installedBinDirs() []string {
	var dirs []string
	if postgres, err := exec.LookPath("postgres"); err == nil {
		if resolved, err := filepath.EvalSymlinks(postgres); err == nil {
			dirs = append(dirs, filepath.Dir(resolved))
		}
	}
	if out, err := exec.Command("pg_config", "--bindir").Output(); err == nil {
		dirs = append(dirs, strings.TrimSpace(string(out)))
	}
	for _, pattern := range usualBinDirs {
		found, err := filepath.Glob(pattern)
		if err != nil {
			continue
		}
		slices.SortFunc(found, func(a, b string) int { return cmp.Compare(version(b), version(a)) })
		dirs = append(dirs, found...)
	}
	seen := make(map[string]bool)
	return slices.DeleteFunc(dirs, func(dir string) bool {
		known := seen[dir]
		seen[dir] = true
		return known || !hasServer(dir)
	})
}

// hasServer reports whether dir holds the programs that a server needs.
func hasServer(dir string) bool {
	for _, name := range []string{"postgres", "initdb"} {
		info, err := os.Stat(program(dir, name))
		if err != nil || info.IsDir() {
			return false
		}
	}
	return true
}

// program returns the path of a program in a bin folder.
func program(dir, name string) string {
	if runtime.GOOS == "windows" {
		name += ".exe"
	}
	return filepath.Join(dir, name)
}

// version returns the first number in an install folder's path, its major
// version, and 0 for a path without one.
func version(dir string) int {
	start := strings.IndexAny(dir, "0123456789")
	if start < 0 {
		return 0
	}
	digits := dir[start:]
	if end := strings.IndexFunc(digits, func(r rune) bool { return r < '0' || r > '9' }); end >= 0 {
		digits = digits[:end]
	}
	n, err := strconv.Atoi(digits)
	if err != nil {
		return 0
	}
	return n
}
