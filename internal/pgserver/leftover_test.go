//go:build unix

package pgserver

import (
	"bufio"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"syscall"
	"testing"
	"time"
)

// helperProcess is a process of this test binary that runs a server.
type helperProcess struct {
	cmd         *exec.Cmd
	stdin       io.Closer
	url, folder string
}

// startHelper runs the helper from the file name with the given provider.
func startHelper(t *testing.T, name, provider string, as account) *helperProcess {
	t.Helper()
	cmd := exec.Command(name)
	as.apply(cmd)
	cmd.Dir = "/"
	cmd.Env = append(os.Environ(), helperVariable+"="+provider)
	cmd.Stderr = os.Stderr
	stdin, err := cmd.StdinPipe()
	if err != nil {
		t.Fatal(err)
	}
	stdout, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		_ = stdin.Close()
		_ = cmd.Wait() // Some are killed on purpose.
	})
	p := &helperProcess{cmd: cmd, stdin: stdin}
	in := bufio.NewScanner(stdout)
	for _, line := range []*string{&p.url, &p.folder} {
		if !in.Scan() {
			t.Fatal("the helper started no server")
		}
		*line = in.Text()
	}
	return p
}

// kill ends the helper without giving it a chance to clean up.
func (p *helperProcess) kill(t *testing.T) {
	t.Helper()
	if err := p.cmd.Process.Kill(); err != nil {
		t.Fatal(err)
	}
	_ = p.cmd.Wait()
}

// TestLeftoverIsSwept kills a program with SIGKILL and leaves another alive:
// the next Start removes the server of the first and only that.
func TestLeftoverIsSwept(t *testing.T) {
	t.Parallel()
	needBinaries(t)
	dead := startHelper(t, os.Args[0], Binaries, account{})
	alive := startHelper(t, os.Args[0], Binaries, account{})
	pidFile, err := os.ReadFile(filepath.Join(dead.folder, "data", "postmaster.pid"))
	if err != nil {
		t.Fatal(err)
	}
	dead.kill(t)
	// From here on the Start of any test binary on this machine may sweep.
	startInstalled(t, nil)
	eventually(t, "the dead program's folder is gone", func() bool { return !exists(dead.folder) })
	eventually(t, "the dead program's server is gone", func() bool {
		var pid int
		if _, err := fmt.Sscan(string(pidFile), &pid); err != nil {
			t.Fatal(err)
		}
		return !worksIn(pid, filepath.Join(dead.folder, "data")) && ping(t.Context(), dead.url) != nil
	})
	if err := ping(t.Context(), alive.url); err != nil {
		t.Errorf("the living program's server is gone as well: %v", err)
	}
}

// TestLeftoverContainerIsSwept is the same with a container.
func TestLeftoverContainerIsSwept(t *testing.T) {
	pool, err := dockerPool(t.Context())
	if err != nil {
		t.Skip(err)
	}
	t.Cleanup(func() { closeIdle(pool) })
	if os.Getenv(imageVariable) == "" {
		t.Skipf("%s names no image", imageVariable)
	}
	dead := startHelper(t, os.Args[0], Docker, account{})
	dead.kill(t)
	sweep(t.Context())
	eventually(t, "the dead program's container is gone", func() bool { return ping(t.Context(), dead.url) != nil })
}

// TestHalfMadeFolder checks that a folder without a lock counts as being made
// while it is young.
func TestHalfMadeFolder(t *testing.T) {
	dir := t.TempDir()
	t.Setenv("TMPDIR", dir)
	young, old := filepath.Join(dir, folderPrefix+"young"), filepath.Join(dir, folderPrefix+"old")
	for _, path := range []string{young, old} {
		if err := os.Mkdir(path, 0o755); err != nil {
			t.Fatal(err)
		}
	}
	past := time.Now().Add(-time.Hour)
	if err := os.Chtimes(old, past, past); err != nil {
		t.Fatal(err)
	}
	sweep(t.Context())
	if !exists(young) || exists(old) {
		t.Errorf("young exists: %t, old exists: %t", exists(young), exists(old))
	}
}

// TestStrangerIsNotStopped has a leftover name a process that works elsewhere.
func TestStrangerIsNotStopped(t *testing.T) {
	t.Parallel()
	data := t.TempDir()
	stranger := exec.Command("sleep", "60")
	if err := stranger.Start(); err != nil {
		t.Fatal(err)
	}
	pid := fmt.Sprintf("%d\n%s\n", stranger.Process.Pid, data)
	if err := os.WriteFile(filepath.Join(data, "postmaster.pid"), []byte(pid), 0o600); err != nil {
		t.Fatal(err)
	}
	stopLeftover(data)
	if err := stranger.Process.Signal(syscall.Signal(0)); err != nil {
		t.Errorf("a stranger was stopped: %v", err)
	}
	_ = stranger.Process.Kill()
	_ = stranger.Wait()
}

// TestAsOrdinaryUser runs the helper as the user nobody.
func TestAsOrdinaryUser(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Skip("not root: the other tests are this one")
	}
	needBinaries(t)
	as, err := lookupAccount("nobody")
	if err != nil {
		t.Skip(err)
	}
	name := filepath.Join(publicDir(t, as), "helper")
	copyProgram(t, os.Args[0], name)
	t.Setenv("HOME", filepath.Dir(name))
	p := startHelper(t, name, Binaries, as)
	if err := ping(t.Context(), p.url); err != nil {
		t.Error(err)
	}
	info, err := os.Stat(filepath.Join(p.folder, "data"))
	if err != nil {
		t.Fatal(err)
	}
	if uid := info.Sys().(*syscall.Stat_t).Uid; uid != as.uid {
		t.Errorf("the server's data belong to user %d, want %d", uid, as.uid)
	}
	if err := errors.Join(p.stdin.Close(), p.cmd.Wait()); err != nil {
		t.Error(err)
	}
	if exists(p.folder) {
		t.Errorf("%s is still there", p.folder)
	}
}

func copyProgram(t *testing.T, from, to string) {
	t.Helper()
	b, err := os.ReadFile(from)
	if err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(to, b, 0o755); err != nil {
		t.Fatal(err)
	}
}

func eventually(t *testing.T, what string, ok func() bool) {
	t.Helper()
	deadline := time.Now().Add(15 * time.Second)
	for !ok() {
		if time.Now().After(deadline) {
			t.Fatalf("it did not happen: %s", what)
		}
		time.Sleep(5 * time.Millisecond)
	}
}
