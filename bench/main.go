// Bench runs simplequeue and its peers on one PostgreSQL server, one after
// another in turns, and compares them. Every run has a fresh database and checks
// that each job ran exactly once.
//
//	go run . -contestants simplequeue,river,floor -scenarios drain,steady -repeats 3 -json results.jsonl -charts charts
//
// Without -url it starts a server of its own with a production server's
// durability. Each run is a line of JSON; the tables at the end hold the
// medians. -from makes the tables and charts again. docs/benchmarks.md says what
// each scenario measures.
package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/signal"
	"runtime"
	"syscall"

	"github.com/jackc/pgx/v5/pgxpool"

	"github.com/simplequeue/simplequeue/internal/pgserver"
)

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	if err := run(ctx); err != nil {
		fmt.Fprintln(os.Stderr, "bench:", err)
		os.Exit(1)
	}
}

func run(ctx context.Context) error {
	c, err := parse()
	if err != nil {
		return err
	}
	switch setup := os.Getenv(workerVariable); {
	case setup != "":
		return workProcess(ctx, setup)
	case c.check != "":
		return checkFile(os.Stdout, c.check, c.contestants, c.scenarios)
	case c.from != "":
		results, err := readResults(c.from)
		if err != nil {
			return err
		}
		return present(c, results)
	}
	return benchmark(ctx, c)
}

// benchmark makes all runs that were asked for.
func benchmark(ctx context.Context, c config) (err error) {
	url := c.url
	if url == "" {
		server, err := pgserver.Start(ctx, pgserver.Options{Settings: c.server, Controllable: true})
		if err != nil {
			return err
		}
		defer func() { err = errors.Join(err, server.Stop()) }()
		url = server.URL()
	}
	admin, err := pgxpool.New(ctx, url)
	if err != nil {
		return err
	}
	defer admin.Close()
	r := &runner{config: c, admin: admin, url: url, own: c.url == ""}
	if err := r.chooseRate(ctx); err != nil {
		return err
	}
	log, err := newResultLog(c.json, os.Stdout)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, log.close()) }()
	broken := r.runAll(ctx, log)
	if ctx.Err() != nil {
		return context.Cause(ctx)
	}
	return errors.Join(broken, present(c, log.results))
}

// runAll makes the runs. One that fails does not keep the others from going on;
// the error tells of all that have failed.
func (r *runner) runAll(ctx context.Context, log *resultLog) (broken error) {
	for _, name := range r.scenarios {
		s, _ := findScenario(name)
		for i := range r.repeats {
			for j := range r.contestants {
				contestant := r.contestants[(i+j)%len(r.contestants)] // nobody always comes first
				result, err := r.run(ctx, contestant, s)
				if err == nil && (result.NotApplicable == "" || i == 0) { // which is said once
					err = log.add(result)
				}
				if ctx.Err() != nil {
					return broken
				}
				if err != nil {
					err = fmt.Errorf("%s, %s: %w", contestant, name, err)
					fmt.Fprintln(os.Stderr, "bench:", err)
					broken = errors.Join(broken, err)
				}
				runtime.GC()
			}
		}
	}
	return broken
}

// chooseRate decides how many jobs a second the paced scenarios insert: half of
// what River, the slowest contestant that can do all of them, gets through when
// it is busy.
func (r *runner) chooseRate(ctx context.Context) error {
	paced := false
	for _, name := range r.scenarios {
		s, _ := findScenario(name)
		paced = paced || s.paced
	}
	if !paced || r.rate > 0 {
		return nil
	}
	short := *r
	short.seconds = min(r.seconds, 5)
	s, _ := findScenario("steady")
	result, err := short.run(ctx, yardstick, s)
	if err != nil {
		return fmt.Errorf("%s, to find a rate: %w", yardstick, err)
	}
	r.runs, r.rate = short.runs, result.JobsPerS/2
	fmt.Fprintf(os.Stderr, "-rate %.0f: half of what %s does, %.0f jobs/s\n", r.rate, yardstick, result.JobsPerS)
	return nil
}

// present prints the tables and draws the charts.
func present(c config, results []Result) error {
	if err := writeTables(os.Stdout, results); err != nil {
		return err
	}
	if c.charts == "" {
		return nil
	}
	return drawCharts(c.charts, results)
}
