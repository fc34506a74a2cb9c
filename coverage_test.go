package simplequeue_test

import (
	"fmt"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
)

// failureCases are those of the parts that docs/failure-coverage.md goes through.
var failureCases = []int{
	1, 2, 3, 4, 5, 6, 8, 9, 10, 12, 13, 14, 16, 17, 18, 19, 20, 21, 22, 24, 25, 26, // A
	28, 29, 30, 32, 33, 34, 36, 37, 38, 40, 41, 42, // B
	44, 45, 46, 47, 48, 49, 50, 52, 53, 54, 56, 57, 58, 60, 61, // C
	62, 63, 64, 65, 66, 68, 69, 70, 72, 73, 74, 76, 77, 78, 80, // D
	94, 95, 96, 97, 98, 100, 101, 102, 104, 105, 106, 107, 108, 109, 110, 112, 113, 114, 116, 117, 118, // F
	120, 121, 122, 124, 125, 126, 128, 129, 130, // G
	132, 133, 134, 136, 137, 138, 140, 141, 142, 144, 145, 146, 148, 149, 150, // H
	151, 152, 153, 154, 155, 156, 157, 158, 160, 161, 162, 164, 165, 166, 168, 169, 170, 172, // I
	173, 174, 176, 177, 180, // J
}

// TestFailureCoverageNamesWhatIsThere: the page on what goes wrong elsewhere has
// a row for each case, and each names a test, a fault run or a benchmark that
// exists, or says that what could fail does not.
func TestFailureCoverageNamesWhatIsThere(t *testing.T) {
	t.Parallel()
	tests := declaredTests(t)
	runs := map[string]string{"chaos": sources(t, "chaos/scenario*.go"), "bench": sources(t, "bench/scenario*.go")}
	page, err := os.ReadFile("docs/failure-coverage.md")
	if err != nil {
		t.Fatal(err)
	}
	quoted := regexp.MustCompile("`([^`]+)`")
	rows := map[string]string{}
	for _, row := range regexp.MustCompile(`(?m)^\| (\d+) \| [^|]+ \| (.+) \|$`).FindAllStringSubmatch(string(page), -1) {
		if rows[row[1]] != "" {
			t.Errorf("case %s has two rows", row[1])
		}
		rows[row[1]] = row[2]
	}
	if len(rows) != len(failureCases) {
		t.Errorf("%d rows, want %d", len(rows), len(failureCases))
	}
	for _, n := range failureCases {
		row := rows[fmt.Sprint(n)]
		names := quoted.FindAllStringSubmatch(row, -1)
		if len(names) == 0 && !strings.Contains(row, "does not apply: ") {
			t.Errorf("case %d names nothing, and no reason", n)
		}
		for _, m := range names {
			if kind, name, ok := strings.Cut(m[1], " "); ok {
				if !strings.Contains(runs[kind], `"`+name+`"`) {
					t.Errorf("case %d names %s, which does not exist", n, m[1])
				}
			} else if !tests[m[1]] {
				t.Errorf("case %d names %s, which does not exist", n, m[1])
			}
		}
	}
}

func sources(t *testing.T, pattern string) string {
	t.Helper()
	files, err := filepath.Glob(pattern)
	if err != nil || files == nil {
		t.Fatalf("no files %s: %v", pattern, err)
	}
	var all []byte
	for _, f := range files {
		text, err := os.ReadFile(f)
		if err != nil {
			t.Fatal(err)
		}
		all = append(all, text...)
	}
	return string(all)
}
