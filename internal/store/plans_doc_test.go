package store_test

import (
	"flag"
	"fmt"
	"os"
	"regexp"
	"strings"
	"testing"
)

var update = flag.Bool("update", false, "write docs/plans.md")

const plansPage = "../../docs/plans.md"

const plansIntro = `# The plans of the hot statements

Made by the tests, on a database with %s rows in each of ` + "`job_queue`, `job_waiting`" + ` and the archive, 5,000 running
jobs, a fifth as many in ` + "`job_finished`" + `, and unique keys, fingerprints and payloads stored apart to go with them. The batch is 100 jobs
unless said otherwise. The plans are the generic ones that the engine runs, made with the worst statistics there are: taken after the
rows of each table had gone, but not its pages, so that the planner takes it for empty. To make this page again:

    SIMPLEQUEUE_TEST_LONG=1 go test ./internal/store -run 'TestPlans$' -timeout 30m -args -update

` + "`TestPlans`" + ` asserts the bounds given here, with 30,000 rows in every run and a million with ` + "`SIMPLEQUEUE_TEST_LONG=1`" + `, for custom and generic plans, for statistics
that are fresh, stale and missing, for plans made when the tables were empty, and with half of the backlog dead under an old snapshot. *Rows* are
those that all nodes of the plan produced or threw away; *pages* are shared buffers touched.

The engine's statements run with ` + "`enable_seqscan`, `enable_bitmapscan`, `enable_hashjoin` and `enable_mergejoin`" + ` off and ` +
	"`plan_cache_mode = force_generic_plan`" + `; a
Seq Scan in these plans is of a small table, or of one that is meant to be read.

`

var (
	nameInPlan = regexp.MustCompile(`\bsimplequeue\.`)
	neverDone  = regexp.MustCompile(`^ *(->  )?.*\(never executed\)$`)
	longest    = 150
)

// shortened is a plan without what says nothing about its cost.
func shortened(plan string) string {
	var lines []string
	skip := -1 // deeper lines belong to a node that was never executed
	for line := range strings.Lines(plan) {
		line = strings.TrimRight(nameInPlan.ReplaceAllString(line, ""), "\n")
		depth := len(line) - len(strings.TrimLeft(line, " "))
		if skip >= 0 && depth > skip {
			continue
		}
		skip = -1
		if neverDone.MatchString(line) {
			skip = depth
			continue
		}
		if strings.HasPrefix(line, "Planning") {
			break
		}
		if trimmed := strings.TrimSpace(line); strings.HasPrefix(trimmed, "Sort Method") || strings.HasPrefix(trimmed, "Conflict ") ||
			strings.HasPrefix(trimmed, "Batches:") || strings.HasPrefix(trimmed, "Planned Partitions") {
			continue
		}
		line = strings.Replace(line, "(actual rows", "(rows", 1)
		line = strings.Replace(line, "Buffers: shared ", "Buffers: ", 1)
		if len(line) > longest {
			line = line[:longest] + " ..."
		}
		lines = append(lines, line)
	}
	return strings.Join(lines, "\n")
}

// writePlans writes the page.
func writePlans(t *testing.T, d *plansData, hot []*hotStatement) {
	t.Helper()
	var page strings.Builder
	fmt.Fprintf(&page, plansIntro, thousands(d.n))
	page.WriteString("| statement | rows at most | pages at most | rows sorted at most | may read as a whole | walks over dead rows |\n|---|---|---|---|---|---|\n")
	for _, s := range hot {
		walks := ""
		if s.walksDead {
			walks = "yes"
		}
		fmt.Fprintf(&page, "| %s | %s | %s | %s | %s | %s |\n",
			s.name, thousands(s.rows), thousands(s.buffers), thousands(s.sorts), strings.Join(s.whole, ", "), walks)
	}
	for _, s := range hot {
		if s.why == "" {
			continue
		}
		plan, err := explain(t, d.pool, s, generic, "COSTS OFF, TIMING OFF, SUMMARY OFF")
		if err != nil {
			t.Error(err)
			continue
		}
		fmt.Fprintf(&page, "\n## %s\n\n%s\n\n```\n%s\n```\n", s.name, s.why, shortened(plan))
	}
	if err := os.WriteFile(plansPage, []byte(page.String()), 0o644); err != nil {
		t.Fatal(err)
	}
}

func thousands(n int) string {
	text := fmt.Sprint(n)
	for i := len(text) - 3; i > 0; i -= 3 {
		text = text[:i] + "," + text[i:]
	}
	return text
}

// TestPlansPageIsOfTheseStatements: the page has the bounds that are asserted
// and a plan of each statement that it explains.
func TestPlansPageIsOfTheseStatements(t *testing.T) {
	t.Parallel()
	text, err := os.ReadFile(plansPage)
	if err != nil {
		t.Fatal(err)
	}
	for _, s := range (&plansData{n: 1_000_000}).hot() {
		row := fmt.Sprintf("\n| %s | %s | %s | %s |", s.name, thousands(s.rows), thousands(s.buffers), thousands(s.sorts))
		if !strings.Contains(string(text), row) {
			t.Errorf("docs/plans.md has no row %q: make it again with -update", row)
		}
		if s.why != "" && !strings.Contains(string(text), fmt.Sprintf("\n## %s\n\n%s\n\n```\n", s.name, s.why)) {
			t.Errorf("docs/plans.md does not explain %s: make it again with -update", s.name)
		}
	}
}
