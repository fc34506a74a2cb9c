package main

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"slices"
	"strings"
)

// Result is the measured part of a run: a line of the JSON file.
type Result struct {
	Contestant    string `json:"contestant"`
	Version       string `json:"version"`
	Settings      string `json:"settings"`
	Scenario      string `json:"scenario"`
	NotApplicable string `json:"not_applicable,omitempty"` // why there is nothing else

	Jobs     int64   `json:"jobs"`
	Seconds  float64 `json:"seconds"`
	JobsPerS float64 `json:"jobs_per_s"`
	// From the commit of the insert, as its caller sees it, to the start of the
	// handler; absent where a backlog or an insert alone is measured.
	P50 *float64 `json:"p50_ms,omitempty"`
	P95 *float64 `json:"p95_ms,omitempty"`
	P99 *float64 `json:"p99_ms,omitempty"`

	WALPerJob       float64 `json:"wal_per_job"`           // bytes
	ServerCPUPerJob float64 `json:"pg_cpu_us_per_job"`     // 0 where the server's processes cannot be seen
	ClientCPUPerJob float64 `json:"client_cpu_us_per_job"` // producers and workers
	DeadTuples      int64   `json:"dead_tuples"`           // at the end of what was measured, like the sizes
	TableBytes      int64   `json:"table_bytes"`
	IndexBytes      int64   `json:"index_bytes"`

	WindowSeconds float64            `json:"window_seconds"`
	Windows       []float64          `json:"windows"` // jobs/s, window after window
	Duplicates    int64              `json:"duplicates"`
	Extra         map[string]float64 `json:"extra,omitempty"` // what only some scenarios have
}

// resultLog keeps the results.
type resultLog struct {
	echo    io.Writer // gets each line, too
	file    *os.File  // nil for none
	results []Result
}

func newResultLog(path string, echo io.Writer) (*resultLog, error) {
	if path == "" {
		return &resultLog{echo: echo}, nil
	}
	f, err := os.OpenFile(path, os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o644)
	return &resultLog{echo: echo, file: f}, err
}

// add writes a result as a line of JSON.
func (l *resultLog) add(result Result) error {
	l.results = append(l.results, result)
	line, err := json.Marshal(result)
	if err != nil {
		return err
	}
	line = append(line, '\n')
	if _, err := l.echo.Write(line); err != nil || l.file == nil {
		return err
	}
	_, err = l.file.Write(line)
	return err
}

func (l *resultLog) close() error {
	if l.file == nil {
		return nil
	}
	return l.file.Close()
}

// readResults reads what a resultLog has written.
func readResults(path string) ([]Result, error) {
	text, err := os.ReadFile(path)
	if err != nil {
		return nil, err
	}
	var results []Result
	n := 0
	for line := range bytes.Lines(text) {
		n++
		decoder := json.NewDecoder(bytes.NewReader(line))
		decoder.DisallowUnknownFields()
		var r Result
		if err := decoder.Decode(&r); err != nil {
			return nil, fmt.Errorf("%s:%d: %w", path, n, err)
		}
		if err := r.check(); err != nil {
			return nil, fmt.Errorf("%s:%d: %w", path, n, err)
		}
		results = append(results, r)
	}
	if len(results) == 0 {
		return nil, fmt.Errorf("%s holds no results", path)
	}
	return results, nil
}

// check tells what is wrong with the form of a result. It makes no claim about
// how good the figures are.
func (r Result) check() error {
	wrong := func(what string, value any) error {
		return fmt.Errorf("%s, %s: %s is %v", r.Contestant, r.Scenario, what, value)
	}
	if r.Contestant == "" || r.Version == "" || r.Settings == "" {
		return errors.New("contestant, version and settings must not be empty")
	}
	s, ok := findScenario(r.Scenario)
	if !ok {
		return wrong("an unknown scenario", r.Scenario)
	}
	if r.NotApplicable != "" {
		if r.Jobs != 0 || len(s.needs) == 0 {
			return wrong("not applicable, and yet jobs", r.Jobs)
		}
		return nil
	}
	for name, v := range map[string]float64{
		"jobs": float64(r.Jobs), "seconds": r.Seconds, "jobs_per_s": r.JobsPerS, "wal_per_job": r.WALPerJob,
		"table_bytes": float64(r.TableBytes), "index_bytes": float64(r.IndexBytes), "window_seconds": r.WindowSeconds, "windows": float64(len(r.Windows)),
	} {
		if !(v > 0) {
			return wrong(name, v)
		}
	}
	for name, v := range map[string]float64{
		"pg_cpu_us_per_job": r.ServerCPUPerJob, "client_cpu_us_per_job": r.ClientCPUPerJob,
		"dead_tuples": float64(r.DeadTuples), "duplicates": float64(r.Duplicates), "windows": slices.Min(r.Windows),
	} {
		if !(v >= 0) {
			return wrong(name, v)
		}
	}
	if rate := float64(r.Jobs) / r.Seconds; r.JobsPerS < rate*0.99 || r.JobsPerS > rate*1.01 {
		return wrong("jobs_per_s for that many jobs and seconds", r.JobsPerS)
	}
	if (r.P50 == nil) != (r.P95 == nil) || (r.P50 == nil) != (r.P99 == nil) {
		return wrong("not all percentiles are there: p50_ms", r.P50)
	}
	if r.P50 != nil && !(*r.P50 >= 0 && *r.P50 <= *r.P95 && *r.P95 <= *r.P99) {
		return wrong("percentiles out of order: p50_ms", *r.P50)
	}
	return nil
}

// checkFile checks the form of a file of results, and that there is one of every
// contestant in every scenario.
func checkFile(to io.Writer, path string, contestants, scenarios []string) error {
	results, err := readResults(path)
	if err != nil {
		return err
	}
	var missing []string
	for _, scenario := range scenarios {
		for _, contestant := range contestants {
			if !slices.ContainsFunc(results, func(r Result) bool { return r.Contestant == contestant && r.Scenario == scenario }) {
				missing = append(missing, contestant+"/"+scenario)
			}
		}
	}
	if len(missing) > 0 {
		return fmt.Errorf("%s lacks %s", path, strings.Join(missing, ", "))
	}
	_, err = fmt.Fprintf(to, "%s: %d results, all well-formed\n", path, len(results))
	return err
}
