package pgserver

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"time"
)

// Names of the temporary folders and of the files in them that tell the next
// Start about a server whose program died.
const (
	folderPrefix  = "simplequeue-pg-"
	lockName      = "owner.lock"
	containerName = "container" // holds the name of a Docker container

	memoryDir    = "/dev/shm"
	memoryNeeded = 4 << 30 // bytes
)

// folder is a temporary folder whose lock file is locked for as long as the
// process that made it lives. The kernel frees the lock however the process
// ends, and a process that came to the same pid later does not hold it.
type folder struct {
	path string
	lock *os.File
}

// newFolder makes a folder that user can work in.
func newFolder(user account) (*folder, error) {
	parent, err := tempDir(user)
	if err != nil {
		return nil, err
	}
	return newFolderIn(parent, user)
}

// newFolderInMemory is newFolder in memory, where there is room for it.
func newFolderInMemory(user account) (*folder, error) {
	if roomFor(memoryDir, memoryNeeded) && user.reaches(memoryDir) {
		if f, err := newFolderIn(memoryDir, user); err == nil {
			return f, nil
		}
	}
	return newFolder(user)
}

func newFolderIn(parent string, user account) (*folder, error) {
	path, err := os.MkdirTemp(parent, folderPrefix)
	if err != nil {
		return nil, err
	}
	f := &folder{path: path}
	if err := f.prepare(user); err != nil {
		return nil, errors.Join(err, f.remove())
	}
	return f, nil
}

func (f *folder) prepare(user account) error {
	// The lock file gets its name when it is already locked: a sweep in
	// between must not find it free.
	lock, err := os.OpenFile(filepath.Join(f.path, lockName+".new"), os.O_CREATE|os.O_RDWR, 0o600)
	if err != nil {
		return err
	}
	f.lock = lock
	if free, err := tryLock(lock); err != nil {
		return fmt.Errorf("locking %s: %w", lock.Name(), err)
	} else if !free {
		return fmt.Errorf("locking %s: %w", lock.Name(), errLocked)
	}
	if err := os.Rename(lock.Name(), filepath.Join(f.path, lockName)); err != nil {
		return err
	}
	if err := os.Chmod(f.path, 0o755); err != nil {
		return err
	}
	return user.own(f.path)
}

// remove deletes the folder and then frees its lock.
func (f *folder) remove() error {
	if f.lock == nil {
		return os.RemoveAll(f.path)
	}
	err := removeAll(f.path)
	if cerr := f.lock.Close(); cerr != nil && !errors.Is(cerr, os.ErrClosed) {
		err = errors.Join(err, cerr)
	}
	return err
}

// removeAll deletes a folder in which a server that is just ending may still
// write a file.
func removeAll(path string) error {
	var err error
	for range 3 {
		if err = os.RemoveAll(path); err == nil {
			return nil
		}
	}
	return err
}

// tempDir returns the first folder for temporary files that user can reach.
func tempDir(user account) (string, error) {
	dirs := []string{os.TempDir(), "/tmp", "/var/tmp"}
	for _, dir := range dirs {
		if user.reaches(dir) {
			return dir, nil
		}
	}
	return "", fmt.Errorf("the user %s can reach none of the folders %s: set TMPDIR to one that it can", user.name, strings.Join(dirs, ", "))
}

// sweep stops and removes what programs left behind that died without Stop.
// It does what it can: leftovers of other users stay.
func sweep(ctx context.Context) {
	if !canSweep {
		return
	}
	parents := map[string]bool{os.TempDir(): true, "/tmp": true, "/var/tmp": true, memoryDir: true}
	for parent := range parents {
		found, err := filepath.Glob(filepath.Join(parent, folderPrefix+"*"))
		if err != nil {
			continue
		}
		for _, path := range found {
			sweepFolder(ctx, path)
		}
	}
}

// sweepFolder removes one folder unless its owner lives.
func sweepFolder(ctx context.Context, path string) {
	info, err := os.Lstat(path)
	if err != nil || !info.IsDir() {
		return
	}
	lock, err := os.OpenFile(filepath.Join(path, lockName), os.O_RDWR, 0)
	if errors.Is(err, fs.ErrNotExist) {
		// Either being made at this moment or half removed.
		if time.Since(info.ModTime()) > time.Minute {
			_ = os.RemoveAll(path)
		}
		return
	}
	if err != nil {
		return
	}
	f := &folder{path: path, lock: lock}
	if free, err := tryLock(lock); err != nil || !free {
		_ = lock.Close()
		return
	}
	if name, err := os.ReadFile(filepath.Join(path, containerName)); err == nil {
		if removeContainer(ctx, string(name)) != nil {
			_ = lock.Close() // A later sweep may reach the daemon.
			return
		}
	}
	stopLeftover(filepath.Join(path, "data"))
	_ = f.remove()
}

// stopLeftover ends the server of a data folder, if one runs. A server that
// it cannot tell from a stranger's process it leaves alone: that one ends by
// itself, within a minute, when it finds its data folder gone.
func stopLeftover(dataDir string) {
	b, err := os.ReadFile(filepath.Join(dataDir, "postmaster.pid"))
	if err != nil {
		return
	}
	first, _, _ := strings.Cut(string(b), "\n")
	pid, err := strconv.Atoi(strings.TrimSpace(first))
	if err != nil || pid <= 1 || !worksIn(pid, dataDir) {
		return
	}
	p, err := os.FindProcess(pid)
	if err != nil {
		return
	}
	ended := make(chan struct{})
	done := make(chan struct{})
	defer close(done)
	go func() {
		defer close(ended)
		ticker := time.NewTicker(10 * time.Millisecond)
		defer ticker.Stop()
		for worksIn(pid, dataDir) {
			select {
			case <-ticker.C:
			case <-done:
				return
			}
		}
	}()
	_ = stopNow(p, ended)
}

// errLocked is the reason of a lock that somebody else holds.
var errLocked = errors.New("the lock is held by another process")
