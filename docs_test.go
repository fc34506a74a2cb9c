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

// TestSeedCoverageNamesRealTests: the page on the older systems has a row for
// each of theirs, and every test that it names exists.
func TestSeedCoverageNamesRealTests(t *testing.T) {
	t.Parallel()
	tests := declaredTests(t)
	page, err := os.ReadFile("docs/seed-coverage.md")
	if err != nil {
		t.Fatal(err)
	}
	for n := 1; n <= 79; n++ {
		row := regexp.MustCompile(fmt.Sprintf(`(?m)^\| S%d \| .+ \| (.+) \|$`, n)).FindStringSubmatch(string(page))
		if row == nil {
			t.Errorf("no row S%d", n)
			continue
		}
		named := regexp.MustCompile("`((?:Test|Fuzz)\\w*)`").FindAllStringSubmatch(row[1], -1)
		if len(named) == 0 && !strings.Contains(row[1], "does not apply") {
			t.Errorf("row S%d names no test and no reason", n)
		}
		for _, m := range named {
			if !tests[m[1]] {
				t.Errorf("row S%d names %s, which does not exist", n, m[1])
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
