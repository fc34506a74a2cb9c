package main

import (
	"cmp"
	"context"
	"errors"
	"os"
	"path/filepath"
	"runtime/pprof"
	"sync"
	"time"
)

// measurement is the measured part of a run, from begin to end.
type measurement struct {
	count      func() int64 // of what the rate is about
	jobs       int64        // if not 0, how many jobs it was about, whatever count says
	begun      sample
	ended      *sample // nil before the end
	stop       func()  // ends the taking of windows
	windows    []float64
	windowSize time.Duration
}

// sample is the state of everything that is measured.
type sample struct {
	at     time.Time
	count  int64
	wal    int64
	client time.Duration
	server time.Duration
}

// begin starts the measured part. count is what its rate is about; expected is
// how long it is going to take, or 0 if nobody knows.
func (t *trial) begin(ctx context.Context, count func() int64, expected time.Duration) (err error) {
	m := &t.measured
	m.count, m.windowSize = count, windowFor(expected)
	if err := t.resetStatements(ctx); err != nil {
		return err
	}
	if t.profiles != "" {
		f, err := os.Create(filepath.Join(t.profiles, t.name+".pprof"))
		if err != nil {
			return err
		}
		t.closers = append(t.closers, f.Close)
		if err := pprof.StartCPUProfile(f); err != nil {
			return err
		}
	}
	if m.begun, err = t.sample(ctx); err != nil {
		return err
	}
	taking, stop := context.WithCancel(ctx)
	var taken sync.WaitGroup
	taken.Go(func() { m.takeWindows(taking) })
	m.stop = func() {
		stop()
		taken.Wait()
	}
	t.closers = append(t.closers, func() error { m.stop(); return nil })
	return nil
}

// end ends the measured part.
func (t *trial) end(ctx context.Context) error {
	m := &t.measured
	if m.begun.at.IsZero() || m.ended != nil {
		return errors.New("a run is measured once")
	}
	s, err := t.sample(ctx)
	if err != nil {
		return err
	}
	m.stop()
	pprof.StopCPUProfile()
	m.ended = &s
	if t.sizes, err = t.readSizes(ctx); err != nil {
		return err
	}
	return t.readStatements(ctx)
}

// windowFor divides a measured part into at least eight windows, of at most 10 s.
func windowFor(expected time.Duration) time.Duration {
	if expected == 0 {
		return time.Second
	}
	return min(10*time.Second, max(100*time.Millisecond, expected/8))
}

// takeWindows notes the rate of each whole window.
func (m *measurement) takeWindows(ctx context.Context) {
	last, lastAt := m.begun.count, m.begun.at
	_ = every(ctx, m.windowSize, func(i int) error {
		if i == 0 {
			return nil
		}
		now, at := m.count(), time.Now()
		m.windows = append(m.windows, float64(now-last)/at.Sub(lastAt).Seconds())
		last, lastAt = now, at
		return nil
	})
}

func (t *trial) sample(ctx context.Context) (s sample, err error) {
	s.at, s.count = time.Now(), t.measured.count()
	s.client = clientCPU() + t.processesCPU()
	if t.pg != nil {
		if s.server, err = t.pg.cpu(); err != nil {
			return s, err
		}
	}
	err = t.db.QueryRow(ctx, "SELECT pg_wal_lsn_diff(pg_current_wal_insert_lsn(), '0/0')::bigint").Scan(&s.wal)
	return s, err
}

// makeResult puts together what has been measured.
func (t *trial) makeResult() (Result, error) {
	m := &t.measured
	if m.ended == nil {
		return Result{}, errors.New("nothing was measured")
	}
	jobs, took := cmp.Or(m.jobs, m.ended.count-m.begun.count), m.ended.at.Sub(m.begun.at).Seconds()
	if jobs == 0 {
		return Result{}, errors.New("not one job in the measured time: make it longer")
	}
	perJob := func(v float64) float64 { return v / float64(jobs) }
	microseconds := func(d time.Duration) float64 { return float64(d.Microseconds()) }
	r := Result{
		Jobs: jobs, Seconds: took, JobsPerS: float64(jobs) / took,
		WALPerJob:       perJob(float64(m.ended.wal - m.begun.wal)),
		ServerCPUPerJob: perJob(microseconds(m.ended.server - m.begun.server)),
		ClientCPUPerJob: perJob(microseconds(m.ended.client - m.begun.client)),
		DeadTuples:      t.sizes.deadTuples, TableBytes: t.sizes.tables, IndexBytes: t.sizes.indexes,
		WindowSeconds: m.windowSize.Seconds(), Windows: m.windows,
		Duplicates: t.ledger.repeats.Load(), Extra: t.extra,
	}
	if len(r.Windows) == 0 {
		r.WindowSeconds, r.Windows = took, []float64{r.JobsPerS}
	}
	if t.latency {
		all := t.ledger.latencies(t.probes, m.begun.at, m.ended.at)
		if len(all) == 0 {
			return Result{}, errors.New("not one latency in the measured time: make it longer")
		}
		r.P50, r.P95, r.P99 = percentile(all, 50), percentile(all, 95), percentile(all, 99)
	}
	return r, nil
}

// percentile is in milliseconds; all is sorted and not empty.
func percentile(all []time.Duration, p int) *float64 {
	ms := milliseconds(all[(len(all)-1)*p/100])
	return &ms
}

func milliseconds(d time.Duration) float64 { return float64(d.Microseconds()) / 1000 }
