package main

import (
	"io"
	"strings"
	"sync/atomic"
	"testing"

	"github.com/simplequeue/simplequeue/internal/pgtest"
)

// runners keeps the databases of runners apart.
var runners atomic.Int32

// tinyRunner makes runs that show that something works, not how fast.
func tinyRunner(t *testing.T) *runner {
	t.Helper()
	url := pgtest.EmptyDatabase(t)
	return &runner{
		config: config{
			jobs: 300, call: 100, batch: 50, ahead: 300, seconds: 0.5, rate: 500, queues: 20, orderKeys: 20, uniqueKeys: 60,
			pinnedSeconds: 0.5, recoverSeconds: 0.1, longJobs: 20, longSeconds: 1,
		},
		admin: pgtest.Pool(t, url, 1), url: url, runs: 100 * int(runners.Add(1)),
	}
}

// TestRunsAreWellFormed makes a run of each kind, worker processes among them,
// which must verify and give a well-formed result.
func TestRunsAreWellFormed(t *testing.T) {
	t.Parallel()
	for _, scenario := range []string{"drain", "insert1-8", "processes-2", "ordered", "unique", "fair", "pinned", "late"} {
		for contestant := range contestants {
			t.Run(scenario+"/"+contestant, func(t *testing.T) {
				t.Parallel()
				s, _ := findScenario(scenario)
				result, err := tinyRunner(t).run(t.Context(), contestant, s)
				if err != nil {
					t.Fatal(err)
				}
				if err := result.check(); err != nil {
					t.Error(err)
				}
				lacks := contestant == "floor" && len(s.needs) > 0 || contestant == "river" && (scenario == "ordered" || scenario == "fair")
				if lacks != (result.NotApplicable != "") {
					t.Errorf("not applicable: %q", result.NotApplicable)
				}
				if lacks {
					return
				}
				for name, least := range map[string]map[string]float64{
					"ordered": {"behind_another_percent": 1},
					"unique":  {"refused_percent": 20},
					"fair":    {"small_done_ms": 0.001, "small_done_alone_ms": 0.001, "small_done_times_alone": 0.001},
				}[scenario] {
					if result.Extra[name] < least {
						t.Errorf("%s is %v", name, result.Extra[name])
					}
				}
				if contestant == "simplequeue" && scenario == "processes-2" && result.Extra["claims_per_1000_jobs"] == 0 {
					t.Error("the worker processes have counted no claims")
				}
			})
		}
	}
}

// TestBrokenRunDoesNotStopOthers: more long jobs than there are permits cannot
// all run at once, which breaks that run.
func TestBrokenRunDoesNotStopOthers(t *testing.T) {
	t.Parallel()
	r := tinyRunner(t)
	r.contestants, r.scenarios, r.repeats = []string{"simplequeue"}, []string{"long", "drain"}, 1
	r.longJobs, r.longSeconds = 2**simplequeuePermits, 0.2
	log := &resultLog{echo: io.Discard}
	err := r.runAll(t.Context(), log)
	if err == nil || !strings.Contains(err.Error(), "simplequeue, long: ") || !strings.Contains(err.Error(), "run at once") {
		t.Errorf("the broken run: %v", err)
	}
	if len(log.results) != 1 || log.results[0].Scenario != "drain" {
		t.Errorf("the other: %v", log.results)
	}
}
