package main

import (
	"bytes"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strings"
	"testing"
)

// Ctrl-C while the program works stops it and removes the server it started.
func TestInterrupt(t *testing.T) {
	if testing.Short() || runtime.GOOS == "windows" {
		t.Skip("builds the program and interrupts it")
	}
	p := &program{t: t, folder: t.TempDir(), out: t.TempDir()}
	// What follows the end of an image is not looked at, but makes another file.
	image := encoded(t, "png", 1200, 700)
	for i := range 60 {
		p.write(fmt.Sprintf("%d.png", i), append(image, byte(i)))
	}
	binary := filepath.Join(t.TempDir(), "thumbnails")
	if out, err := exec.CommandContext(t.Context(), "go", "build", "-o", binary, ".").CombinedOutput(); err != nil {
		t.Fatalf("build: %v\n%s", err, out)
	}
	// The server's folder goes where nothing else is, and where the user that
	// root lends the server can go.
	temp := t.TempDir()
	if err := os.Chmod(filepath.Dir(temp), 0o755); err != nil {
		t.Fatal(err)
	}

	var stdout, stderr bytes.Buffer
	cmd := exec.CommandContext(t.Context(), binary, "-out", p.out, "-workers", "1", p.folder)
	cmd.Stdout, cmd.Stderr = &stdout, &stderr
	cmd.Env = append(os.Environ(), "DATABASE_URL=", "TMPDIR="+temp)
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	waitFor(t, func() bool { return len(files(t, p.out, "*.png")) > 0 })
	if len(files(t, temp, "*")) == 0 {
		t.Error("the server has no folder: this test would not see what is left of it")
	}
	if err := cmd.Process.Signal(os.Interrupt); err != nil {
		t.Fatal(err)
	}
	if err := cmd.Wait(); err == nil {
		t.Error("the program ended as if all were done")
	}
	if want := "thumbnails: interrupted; "; !strings.Contains(stderr.String(), want) {
		t.Errorf("stderr lacks %q: %s\n%s", want, &stderr, &stdout)
	}
	if left := files(t, temp, "*"); len(left) > 0 {
		t.Errorf("left of the server: %v", left)
	}
	if left := files(t, p.out, ".*"); len(left) > 0 {
		t.Errorf("unfinished thumbnails: %v", left)
	}
	if n := len(files(t, p.out, "*.png")); n >= 60 {
		t.Errorf("all %d thumbnails were made before the interrupt: it tests nothing", n)
	}
}

func files(t *testing.T, folder, pattern string) []string {
	t.Helper()
	found, err := filepath.Glob(filepath.Join(folder, pattern))
	if err != nil {
		t.Fatal(err)
	}
	return found
}
