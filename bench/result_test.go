package main

import (
	"io"
	"math"
	"os"
	"path/filepath"
	"strings"
	"testing"
)

// sampleResult is well-formed.
func sampleResult(scenario, contestant string, rate float64) Result {
	ms := func(v float64) *float64 { return &v }
	return Result{
		Contestant: contestant, Version: "v1", Settings: "none", Scenario: scenario,
		Jobs: int64(rate * 10), Seconds: 10, JobsPerS: rate, P50: ms(1), P95: ms(2), P99: ms(3),
		WALPerJob: 900, ServerCPUPerJob: 20, ClientCPUPerJob: 10, DeadTuples: 5, TableBytes: 1 << 20, IndexBytes: 1 << 19,
		WindowSeconds: 5, Windows: []float64{rate, rate}, Extra: map[string]float64{"attempts_per_job": 1},
	}
}

// writeResults writes a file as a run does.
func writeResults(t *testing.T, results ...Result) string {
	t.Helper()
	path := filepath.Join(t.TempDir(), "results.jsonl")
	l, err := newResultLog(path, io.Discard)
	if err != nil {
		t.Fatal(err)
	}
	for _, r := range results {
		if err := l.add(r); err != nil {
			t.Fatal(err)
		}
	}
	if err := l.close(); err != nil {
		t.Fatal(err)
	}
	return path
}

func TestCheckFile(t *testing.T) {
	t.Parallel()
	path := writeResults(t,
		sampleResult("steady", "river", 100), sampleResult("steady", "simplequeue", 200),
		Result{Contestant: "river", Version: "v1", Settings: "none", Scenario: "priorities", NotApplicable: "four"})
	if err := checkFile(io.Discard, path, []string{"river", "simplequeue"}, []string{"steady"}); err != nil {
		t.Error(err)
	}
	err := checkFile(io.Discard, path, []string{"river", "simplequeue"}, []string{"steady", "priorities"})
	if err == nil || !strings.Contains(err.Error(), "simplequeue/priorities") || strings.Contains(err.Error(), "river/") {
		t.Errorf("a missing result: %v", err)
	}
}

func TestReadResultsRefuses(t *testing.T) {
	t.Parallel()
	for name, text := range map[string]string{
		"nothing":          "",
		"an unknown field": `{"contestant":"river","speed":1}` + "\n",
		"half a line":      `{"contestant":"river","vers`,
	} {
		path := filepath.Join(t.TempDir(), "results.jsonl")
		if err := os.WriteFile(path, []byte(text), 0o644); err != nil {
			t.Fatal(err)
		}
		if _, err := readResults(path); err == nil {
			t.Errorf("%s: no error", name)
		}
	}
}

func TestResultCheckRefuses(t *testing.T) {
	t.Parallel()
	if err := sampleResult("steady", "river", 100).check(); err != nil {
		t.Fatal(err)
	}
	large := 9.0
	for name, spoil := range map[string]func(*Result){
		"no contestant":            func(r *Result) { r.Contestant = "" },
		"no version":               func(r *Result) { r.Version = "" },
		"an unknown scenario":      func(r *Result) { r.Scenario = "sleep" },
		"no jobs":                  func(r *Result) { r.Jobs = 0 },
		"a rate that does not fit": func(r *Result) { r.JobsPerS *= 2 },
		"a rate that is none":      func(r *Result) { r.JobsPerS = math.NaN() },
		"no WAL":                   func(r *Result) { r.WALPerJob = 0 },
		"no windows":               func(r *Result) { r.Windows = nil },
		"a negative window":        func(r *Result) { r.Windows[0] = -1 },
		"percentiles out of order": func(r *Result) { r.P50 = &large },
		"a percentile missing":     func(r *Result) { r.P95 = nil },
		"not applicable with jobs": func(r *Result) { r.NotApplicable = "no" },
		"negative dead tuples":     func(r *Result) { r.DeadTuples = -1 },
		"no tables":                func(r *Result) { r.TableBytes = 0 },
	} {
		r := sampleResult("steady", "river", 100)
		spoil(&r)
		if err := r.check(); err == nil {
			t.Errorf("%s: no error", name)
		}
	}
}
