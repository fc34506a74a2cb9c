package main

import (
	"encoding/xml"
	"errors"
	"io"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
)

func sampleResults() []Result {
	var all []Result
	for _, r := range []struct {
		scenario, contestant string
		rates                []float64
	}{
		{"pinned-plain", "simplequeue", []float64{90, 100, 80}},
		{"steady", "simplequeue", []float64{190, 200, 300}},
		{"steady", "river", []float64{100, 100, 100}},
		{"latency", "simplequeue", []float64{50}},
		{"latency", "river", []float64{50}},
	} {
		for _, rate := range r.rates {
			all = append(all, sampleResult(r.scenario, r.contestant, rate))
		}
	}
	return append(all, Result{Contestant: "river", Version: "v1", Settings: "none", Scenario: "priorities", NotApplicable: "it has four"})
}

func TestTables(t *testing.T) {
	t.Parallel()
	var text strings.Builder
	if err := writeTables(&text, sampleResults()); err != nil {
		t.Fatal(err)
	}
	spaces := regexp.MustCompile(` +`)
	table := spaces.ReplaceAllString(text.String(), " ")
	for _, want := range []string{
		"| steady | simplequeue | 3 | 200 | 190 | 300 | 2.00 | |",      // median, spread, ratio to River
		"| pinned-plain | simplequeue | 3 | 90 | 80 | 100 | | 0.45 |",  // no River; ratio to its own steady rate
		"| latency | simplequeue | 1 | 50 | 50 | 50 | | | 1 | 2 | 3 |", // a given rate is not compared
		"| steady | river | attempts per job | 1 | 1 | 1 |",
		"| priorities | river | it has four |",
	} {
		if !strings.Contains(table, want) {
			t.Errorf("no line %q in\n%s", want, text.String())
		}
	}
	if strings.Index(table, "| steady |") > strings.Index(table, "| pinned-plain |") {
		t.Error("scenarios are not in their order")
	}
}

func TestCharts(t *testing.T) {
	t.Parallel()
	folder := t.TempDir()
	if err := drawCharts(folder, sampleResults()); err != nil {
		t.Fatal(err)
	}
	for _, name := range []string{"throughput", "conditions", "latency", "over-time-steady", "over-time-pinned-plain"} {
		f, err := os.Open(filepath.Join(folder, name+".svg"))
		if err != nil {
			t.Error(err)
			continue
		}
		defer f.Close()
		elements := 0
		decoder := xml.NewDecoder(f)
		for {
			token, err := decoder.Token()
			if errors.Is(err, io.EOF) {
				break
			}
			if err != nil {
				t.Fatalf("%s: %v", name, err)
			}
			if _, ok := token.(xml.StartElement); ok {
				elements++
			}
		}
		if elements < 20 {
			t.Errorf("%s has only %d elements", name, elements)
		}
	}
	if _, err := os.Stat(filepath.Join(folder, "insert.svg")); err == nil {
		t.Error("a chart without results was drawn")
	}
}

// TestDocsTellScenarios: the page on benchmarks has a row for each scenario, and
// says who each contestant is.
func TestDocsTellScenarios(t *testing.T) {
	t.Parallel()
	page, err := os.ReadFile("../docs/benchmarks.md")
	if err != nil {
		t.Fatal(err)
	}
	for _, name := range scenarioNames() {
		if !regexp.MustCompile("(?m)^\\| .*`" + name + "`.* \\| .+ \\|$").Match(page) {
			t.Errorf("docs/benchmarks.md has no row for %s", name)
		}
	}
	for name := range contestants {
		if !strings.Contains(string(page), "`"+name+"`") {
			t.Errorf("docs/benchmarks.md does not say what %s is", name)
		}
	}
}
