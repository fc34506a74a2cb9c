package main

import (
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
)

// TestMain lets the test program be the workers and producers of its runs, too.
func TestMain(m *testing.M) {
	if text := os.Getenv(setupVariable); text != "" {
		var s setup
		err := json.Unmarshal([]byte(text), &s)
		if err == nil {
			err = processMain(s)
		}
		if err != nil {
			fmt.Fprintln(os.Stderr, "chaos:", err)
			os.Exit(3)
		}
		os.Exit(0)
	}
	os.Exit(m.Run())
}

// A run from its flags to its line of JSON.
func TestRun(t *testing.T) {
	file := filepath.Join(t.TempDir(), "results")
	if err := run(t.Context(), []string{"-scenario", "kill9", "-seconds", "1.5", "-seed", "5", "-workers", "2", "-json", file}); err != nil {
		t.Fatal(err)
	}
	text, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	var r result
	if err := json.Unmarshal(text, &r); err != nil {
		t.Fatal(err)
	}
	if r.Scenario != "kill9" || r.Seed != 5 || r.Violations != 0 || r.Jobs == 0 || r.Runs == 0 || r.Faults == 0 {
		t.Errorf("result %+v, want jobs, runs and faults without violations", r)
	}
}

func TestFlagsThatMakeNoSense(t *testing.T) {
	for _, args := range []string{"-scenario none", "-seconds 0", "-workers 0", "kill9"} {
		if _, err := parse(strings.Fields(args)); err == nil {
			t.Errorf("%s is accepted", args)
		}
	}
	c, err := parse(nil)
	if err != nil || c.seed == 0 || len(c.scenarios) != len(scenarios) {
		t.Errorf("without flags: %+v, %v, want a seed and all scenarios", c, err)
	}
}

// What is registered can be run.
func TestEveryScenarioAndWorkloadIsWhole(t *testing.T) {
	for _, s := range scenarios {
		if s.about == "" || s.inject == nil || s.order == 0 {
			t.Errorf("scenario %s is not whole", s.name)
		}
		for _, name := range s.workloads {
			if l := findWorkload(name); l == nil || !l.special {
				t.Errorf("scenario %s names the workload %q, which is none that is special", s.name, name)
			}
		}
	}
	for _, l := range workloads {
		if l.produce == nil || l.handle == nil || l.every <= 0 {
			t.Errorf("workload %s is not whole", l.name)
		}
	}
}
