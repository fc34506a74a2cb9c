package main

import (
	"context"
	"errors"
	"fmt"
	"net/url"
	"os"
	"slices"
	"sync"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgxpool"
)

// runner makes the runs.
type runner struct {
	config
	admin *pgxpool.Pool
	url   string
	own   bool // the server's processes can be looked at
	runs  int
}

// trial is one run of one contestant in one scenario.
type trial struct {
	*runner
	contestant Contestant
	about      About
	setup      Setup
	database   string
	name       string
	pg         *postgres     // nil where the server's processes cannot be seen
	db         *pgxpool.Pool // on the run's database, for what is not measured
	ledger     *ledger
	shape      func(n int, job *Job) // what a scenario makes of the n-th job; may be nil
	counting   bool                  // the server counts this run's statements

	measured measurement
	sizes    sizes
	latency  bool               // the scenario is about it, or has it at least
	probes   []int              // the jobs whose latency counts; nil for all
	extra    map[string]float64 // figures of one scenario
	closers  []func() error

	mu       sync.Mutex // for the two below
	pids     []int      // of worker processes
	counters map[string]float64
}

// run makes one run and checks it.
func (r *runner) run(ctx context.Context, contestant string, s scenario) (result Result, err error) {
	r.runs++
	setup := Setup{Contestant: contestant, Conns: 16, Queues: []string{benchQueue}, Bytes: smallPayload}
	if s.setup != nil {
		s.setup(&r.config, &setup)
	}
	t := &trial{
		runner: r, setup: setup, database: fmt.Sprintf("bench_%d_%d", os.Getpid(), r.runs),
		name:   fmt.Sprintf("%s-%s-%d", contestant, s.name, r.runs),
		ledger: &ledger{fail: setup.Fail}, counting: s.counts || r.statements, extra: map[string]float64{}, counters: map[string]float64{},
	}
	result = Result{Contestant: contestant, Scenario: s.name}
	describe := func() {
		t.about = t.contestant.About()
		result.Version, result.Settings = t.about.Version, t.about.Settings
	}
	t.contestant = contestants[contestant](t.setup)
	describe()
	for _, need := range s.needs {
		if why := t.contestant.Lacks(need); why != "" {
			result.NotApplicable = why
			return result, nil
		}
	}

	if t.setup.URL, err = t.create(ctx); err != nil {
		return result, err
	}
	defer func() { err = errors.Join(err, t.drop(context.WithoutCancel(ctx))) }()
	t.contestant = contestants[contestant](t.setup)
	describe()
	if t.db, err = pgxpool.New(ctx, t.setup.URL); err != nil {
		return result, err
	}
	defer t.db.Close()
	if r.own {
		if t.pg, err = findPostgres(ctx, t.db); err != nil {
			return result, err
		}
	}
	defer t.contestant.Close()
	if err := t.contestant.Open(ctx); err != nil {
		return result, fmt.Errorf("open: %w", err)
	}
	if err := t.contestant.Migrate(ctx); err != nil {
		return result, fmt.Errorf("migrate: %w", err)
	}
	defer func() {
		for _, f := range slices.Backward(t.closers) {
			err = errors.Join(err, f())
		}
	}()
	if err := s.run(ctx, t); err != nil {
		return result, err
	}
	if err := t.ledger.check(t.about.AtLeastOnce); err != nil {
		return result, err
	}
	if claimed := t.counters["claimed"]; claimed > 0 {
		t.extra["claims_per_1000_jobs"] = 1000 * t.counters["claims"] / claimed
	}
	measured, err := t.makeResult()
	measured.Contestant, measured.Scenario = result.Contestant, result.Scenario
	measured.Version, measured.Settings = result.Version, result.Settings
	return measured, err
}

// create makes the run's database. The checkpoint keeps the writes of the run
// before out of this one.
func (t *trial) create(ctx context.Context) (address string, err error) {
	name := pgx.Identifier{t.database}.Sanitize()
	statements := []string{"CREATE DATABASE " + name + " TEMPLATE template0", "CHECKPOINT"}
	if t.counting {
		statements = append(statements, "ALTER DATABASE "+name+" SET pg_stat_statements.track = 'top'")
	}
	for _, sql := range statements {
		if _, err := t.admin.Exec(ctx, sql); err != nil {
			return "", err
		}
	}
	u, err := url.Parse(t.url)
	if err != nil {
		return "", fmt.Errorf("-url: %w", err)
	}
	u.Path = "/" + t.database
	return u.String(), nil
}

func (t *trial) drop(ctx context.Context) error {
	_, err := t.admin.Exec(ctx, "DROP DATABASE "+pgx.Identifier{t.database}.Sanitize()+" WITH (FORCE)")
	return err
}

// vacuum leaves the tables as autovacuum would have left a backlog of some age.
func (t *trial) vacuum(ctx context.Context) error {
	_, err := t.db.Exec(ctx, "VACUUM (ANALYZE)")
	return err
}

// stalled is how long no job may succeed before a run is given up.
const stalled = 2 * time.Minute

// settle waits until every job has run and is in its last state. The database is
// asked only when all handlers have been called.
func (t *trial) settle(ctx context.Context) error {
	return t.until(ctx, func() (bool, error) {
		if t.ledger.ahead() > 0 {
			return false, nil
		}
		settled, err := t.contestant.Settled(ctx)
		if err != nil {
			return false, fmt.Errorf("settled: %w", err)
		}
		return settled, nil
	})
}

// until waits for what the workers bring about, for as long as jobs succeed.
func (t *trial) until(ctx context.Context, brought func() (bool, error)) error {
	last, since := int64(-1), time.Now()
	for {
		if done := t.ledger.done.Load(); done != last {
			last, since = done, time.Now()
		}
		if ok, err := brought(); err != nil || ok {
			return err
		}
		if time.Since(since) > stalled+t.setup.Hold {
			return fmt.Errorf("no job has succeeded for %v, %d of %d are open or unsettled", stalled, t.ledger.ahead(), t.ledger.committed.Load())
		}
		if err := wait(ctx, 2*time.Millisecond); err != nil {
			return fmt.Errorf("after %d of %d jobs: %w", last, t.ledger.committed.Load(), err)
		}
	}
}

func (t *trial) addProcess(pid int) {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.pids = append(t.pids, pid)
}

// processesCPU is the CPU time of the worker processes.
func (t *trial) processesCPU() (total time.Duration) {
	t.mu.Lock()
	defer t.mu.Unlock()
	for _, pid := range t.pids {
		if p, err := readProcess(pid); err == nil {
			total += ticks(p.own)
		}
	}
	return total
}

func (t *trial) addCounters(counters map[string]float64) {
	t.mu.Lock()
	defer t.mu.Unlock()
	for name, n := range counters {
		t.counters[name] += n
	}
}
