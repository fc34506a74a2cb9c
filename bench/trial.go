package main

import (
	"context"
	"errors"
	"fmt"
	"net/url"
	"os"
	"path/filepath"
	"runtime/pprof"
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
	database   string
	name       string
	pg         *postgres
	db         *pgxpool.Pool // on the run's database, for what is not measured
	payloads   []Payload

	begin  sample
	end    *sample // nil until the measured part is over
	result Result
}

// sample is the state of everything that is measured.
type sample struct {
	at     time.Time
	wal    int64
	client time.Duration
	server time.Duration
}

// Result is the measured part of a run.
type Result struct {
	Contestant      string  `json:"contestant"`
	Version         string  `json:"version"`
	Settings        string  `json:"settings"`
	Scenario        string  `json:"scenario"`
	Jobs            int     `json:"jobs"`
	Seconds         float64 `json:"seconds"`
	JobsPerS        float64 `json:"jobs_per_s"`
	WALPerJob       float64 `json:"wal_per_job"`
	ClientCPUPerJob float64 `json:"client_cpu_us_per_job"`
	ServerCPUPerJob float64 `json:"pg_cpu_us_per_job,omitempty"`
}

func (r *runner) run(ctx context.Context, contestant, scenario string) (result Result, err error) {
	r.runs++
	t := &trial{
		runner: r, contestant: contestants[contestant](), database: fmt.Sprintf("bench_%d_%d", os.Getpid(), r.runs),
		name: fmt.Sprintf("%s-%s-%d", contestant, scenario, r.runs),
	}
	for n := range t.jobs {
		t.payloads = append(t.payloads, newPayload(n))
	}
	address, err := t.create(ctx)
	if err != nil {
		return result, err
	}
	defer func() { err = errors.Join(err, t.drop(context.WithoutCancel(ctx))) }()
	if t.db, err = pgxpool.New(ctx, address); err != nil {
		return result, err
	}
	defer t.db.Close()
	if r.own {
		if t.pg, err = findPostgres(ctx, t.db); err != nil {
			return result, err
		}
	}
	if err := t.contestant.Prepare(ctx, address); err != nil {
		return result, fmt.Errorf("prepare: %w", err)
	}
	defer t.contestant.Close()
	if err := scenarios[scenario](ctx, t); err != nil {
		return result, err
	}
	t.result.Contestant, t.result.Scenario = contestant, scenario
	t.result.Version, t.result.Settings = t.contestant.Version(), t.contestant.Settings()
	return t.result, nil
}

// create makes the run's database. The checkpoint keeps the writes of the run
// before out of this one.
func (t *trial) create(ctx context.Context) (address string, err error) {
	for _, sql := range []string{"CREATE DATABASE " + pgx.Identifier{t.database}.Sanitize() + " TEMPLATE template0", "CHECKPOINT"} {
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

// measure runs the part that counts, until it returns or calls done.
func (t *trial) measure(ctx context.Context, part func() error) (err error) {
	if t.statements {
		if _, err := t.db.Exec(ctx, "CREATE EXTENSION pg_stat_statements"); err != nil {
			return err
		}
	}
	if t.profiles != "" {
		f, err := os.Create(filepath.Join(t.profiles, t.name+".pprof"))
		if err != nil {
			return err
		}
		defer f.Close()
		if err := pprof.StartCPUProfile(f); err != nil {
			return err
		}
	}
	if t.begin, err = t.sample(); err != nil {
		return err
	}
	if err := part(); err != nil {
		pprof.StopCPUProfile()
		return err
	}
	t.done()
	if t.end == nil {
		return errors.New("no sample at the end")
	}
	jobs, took := float64(t.jobs), t.end.at.Sub(t.begin.at)
	t.result = Result{
		Jobs: t.jobs, Seconds: took.Seconds(), JobsPerS: jobs / took.Seconds(),
		WALPerJob:       float64(t.end.wal-t.begin.wal) / jobs,
		ClientCPUPerJob: float64((t.end.client - t.begin.client).Microseconds()) / jobs,
		ServerCPUPerJob: float64((t.end.server - t.begin.server).Microseconds()) / jobs,
	}
	if t.statements {
		return printStatements(ctx, t.db, t.name, t.jobs)
	}
	return nil
}

// done ends the measured part, once.
func (t *trial) done() {
	if t.begin.at.IsZero() || t.end != nil {
		return
	}
	pprof.StopCPUProfile()
	if s, err := t.sample(); err == nil {
		t.end = &s
	}
}

func (t *trial) sample() (s sample, err error) {
	s.at = time.Now()
	s.client = clientCPU()
	if t.pg != nil {
		if s.server, err = t.pg.cpu(); err != nil {
			return s, err
		}
	}
	err = t.db.QueryRow(context.Background(), "SELECT pg_wal_lsn_diff(pg_current_wal_insert_lsn(), '0/0')::bigint").Scan(&s.wal)
	return s, err
}
