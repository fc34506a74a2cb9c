package simplequeue_test

import (
	"encoding/json"
	"os"
	"os/exec"
	"path/filepath"
	"reflect"
	"regexp"
	"strings"
	"testing"

	"github.com/simplequeue/simplequeue"
)

func readme(t *testing.T) string {
	t.Helper()
	text, err := os.ReadFile("README.md")
	if err != nil {
		t.Fatal(err)
	}
	return string(text)
}

// TestReadmeProgramCompiles builds the program that the README shows.
func TestReadmeProgramCompiles(t *testing.T) {
	t.Parallel()
	block := regexp.MustCompile("(?s)```go\n(.*?)```").FindStringSubmatch(readme(t))
	if block == nil {
		t.Fatal("README.md shows no Go program")
	}
	dir := t.TempDir()
	program := filepath.Join(dir, "main.go")
	if err := os.WriteFile(program, []byte(block[1]), 0o644); err != nil {
		t.Fatal(err)
	}
	here, err := os.Getwd()
	if err != nil {
		t.Fatal(err)
	}
	overlay, err := json.Marshal(map[string]map[string]string{
		"Replace": {filepath.Join(here, "readmeprogram", "main.go"): program},
	})
	if err != nil {
		t.Fatal(err)
	}
	overlayFile := filepath.Join(dir, "overlay.json")
	if err := os.WriteFile(overlayFile, overlay, 0o644); err != nil {
		t.Fatal(err)
	}
	out, err := exec.CommandContext(t.Context(), "go", "build", "-overlay", overlayFile, "-o", os.DevNull, "./readmeprogram").CombinedOutput()
	if err != nil {
		t.Errorf("the README's program does not build: %v\n%s", err, out)
	}
}

// TestReadmeListsEveryOption keeps the table of options complete.
func TestReadmeListsEveryOption(t *testing.T) {
	t.Parallel()
	text := readme(t)
	for _, options := range []any{simplequeue.Options{}, simplequeue.QueueOptions{}, simplequeue.StopTimeouts{}} {
		for _, f := range reflect.VisibleFields(reflect.TypeOf(options)) {
			if f.IsExported() && !strings.Contains(text, "`"+f.Name+"`") {
				t.Errorf("README.md does not mention %T.%s", options, f.Name)
			}
		}
	}
}
