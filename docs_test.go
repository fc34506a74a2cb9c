package simplequeue_test

import (
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"reflect"
	"regexp"
	"strings"
	"testing"

	"github.com/simplequeue/simplequeue"
)

// seedRows is how many rows the lists of the older systems have.
var seedRows = map[string]int{"S": 79, "X": 46, "Q": 40, "J": 16, "SF": 8}

// TestSeedCoverageNamesRealTests: the page on the older systems has a row for
// each of theirs, every test that it names exists, and a row without tests has a
// reason.
func TestSeedCoverageNamesRealTests(t *testing.T) {
	t.Parallel()
	tests := declaredTests(t)
	page, err := os.ReadFile("docs/seed-coverage.md")
	if err != nil {
		t.Fatal(err)
	}
	covered := map[string]bool{}
	quoted := regexp.MustCompile("`((?:Test|Fuzz)\\w*)`")
	for _, row := range regexp.MustCompile(`(?m)^\| ([A-Z]+\d+) \| .+ \| (.+) \|$`).FindAllStringSubmatch(string(page), -1) {
		covered[row[1]] = true
		named := quoted.FindAllStringSubmatch(row[2], -1)
		if len(named) == 0 && !strings.Contains(row[2], "does not apply: ") {
			t.Errorf("row %s names no test and no reason", row[1])
		}
		for _, m := range named {
			if !tests[m[1]] {
				t.Errorf("row %s names %s, which does not exist", row[1], m[1])
			}
		}
	}
	for system, rows := range seedRows {
		for n := 1; n <= rows; n++ {
			if id := fmt.Sprint(system, n); !covered[id] {
				t.Errorf("no row %s", id)
			}
		}
	}
}

// declaredTests are the names of all tests of the repository.
func declaredTests(t *testing.T) map[string]bool {
	t.Helper()
	tests := map[string]bool{}
	declared := regexp.MustCompile(`(?m)^func ((?:Test|Fuzz|Example)\w*)\(`)
	err := filepath.WalkDir(".", func(path string, _ fs.DirEntry, err error) error {
		if err != nil || !strings.HasSuffix(path, "_test.go") {
			return err
		}
		text, err := os.ReadFile(path)
		for _, m := range declared.FindAllStringSubmatch(string(text), -1) {
			tests[m[1]] = true
		}
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	return tests
}

// TestStateCannotBeSetAtInsert: what describes a new job has no field for what
// only the life of a job decides.
func TestStateCannotBeSetAtInsert(t *testing.T) {
	t.Parallel()
	for _, name := range []string{"State", "Status", "Attempt", "ReprocessCount", "CrashCount", "Errors", "CreatedAt", "FinishedAt", "Reason"} {
		if _, ok := reflect.TypeFor[simplequeue.NewJob]().FieldByName(name); ok {
			t.Errorf("NewJob.%s can be set at insert", name)
		}
	}
}
