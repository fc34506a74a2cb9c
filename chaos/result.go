package main

import (
	"encoding/json"
	"fmt"
	"io"
	"math"
	"os"
	"time"
)

// result is a line of JSON.
type result struct {
	Scenario   string         `json:"scenario"`
	Seed       uint64         `json:"seed"`
	NotRun     string         `json:"not_run,omitempty"` // why there is nothing else
	Jobs       int            `json:"jobs"`
	Runs       int            `json:"runs"`
	Faults     int            `json:"faults"`
	FaultKinds map[string]int `json:"fault_kinds,omitempty"`
	Violations int            `json:"violations"`
	// From a worker's death until what it held was runnable again.
	Recovered   int     `json:"recovered"`
	RecoveryMax float64 `json:"recovery_max_s"`
	RecoveryP99 float64 `json:"recovery_p99_s"`
	Reruns      int     `json:"reruns"`         // handlers that ran for nothing
	LeasesLost  int64   `json:"leases_lost"`    // of which workers that live have learned
	GivenBack   int64   `json:"given_back"`     // claims, by workers
	InDoubt     int     `json:"in_doubt"`       // inserts whose outcome their callers never learned
	Rewound     int     `json:"rewound"`        // acknowledged inserts that a failover or restore has lost
	ServedAfter float64 `json:"served_after_s"` // from the end of an outage to the first job that completed, at most
	QuietAfter  float64 `json:"quiet_after_s"`
}

func resultOf(sc *scenario, seed uint64, h *history, found []violation) result {
	r := result{
		Scenario: sc.name, Seed: seed, Jobs: len(h.finals), Runs: len(h.runs), Faults: len(h.faults), FaultKinds: map[string]int{},
		Violations: len(found), Reruns: len(h.forNothing()), QuietAfter: round(h.quietAfter),
	}
	for _, f := range h.faults {
		r.FaultKinds[f.what]++
	}
	all := h.recoveries()
	if r.Recovered = len(all); r.Recovered > 0 {
		r.RecoveryMax = round(all[len(all)-1].took)
		r.RecoveryP99 = round(all[int(math.Ceil(0.99*float64(len(all))))-1].took)
	}
	last := map[string]report{}
	for _, p := range h.reports {
		last[p.process] = p
	}
	for _, p := range last {
		r.LeasesLost += p.lost
		r.GivenBack += p.givenOff
	}
	served, _ := h.servedAfter()
	r.ServedAfter = round(served)
	there := map[string]bool{}
	for _, f := range h.finals {
		there[f.tag] = true
	}
	for _, in := range h.inserts {
		switch {
		case in.outcome == inDoubt:
			r.InDoubt++
		case in.outcome == acked && !there[in.tag]:
			r.Rewound++
		}
	}
	return r
}

func round(d time.Duration) float64 { return math.Round(d.Seconds()*1000) / 1000 }

// write appends the result as a line of JSON to a file, if there is one, and to
// echo.
func (r result) write(echo io.Writer, path string) error {
	line, err := json.Marshal(r)
	if err != nil {
		return err
	}
	line = append(line, '\n')
	if _, err := echo.Write(line); err != nil || path == "" {
		return err
	}
	f, err := os.OpenFile(path, os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o644)
	if err != nil {
		return err
	}
	if _, err := f.Write(line); err != nil {
		_ = f.Close()
		return err
	}
	return f.Close()
}

// tell prints the first violations with their events, and how to see them again.
func tell(w io.Writer, c config, r result, found []violation) {
	const most = 5
	fmt.Fprintf(w, "\n%s: %d violations. Again: go run . -scenario %s -seed %d -seconds %g -workers %d\n",
		r.Scenario, len(found), r.Scenario, r.Seed, c.seconds.Seconds(), c.workers)
	for _, v := range found[:min(most, len(found))] {
		fmt.Fprintf(w, "  %v\n", v)
		for _, e := range v.Events {
			fmt.Fprintf(w, "      %s\n", e)
		}
	}
	if len(found) > most {
		fmt.Fprintf(w, "  and %d more\n", len(found)-most)
	}
}
