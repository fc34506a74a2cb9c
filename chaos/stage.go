package main

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"net/url"
	"os"
	"sync"
	"syscall"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgxpool"

	"github.com/simplequeue/simplequeue/internal/pgserver"
	"github.com/simplequeue/simplequeue/migrate"
)

// stage is all that a run of a scenario has: a database under test, a witness,
// workers and producers, each behind a proxy of its own. Scenarios work on it.
type stage struct {
	config   config
	scenario *scenario
	seed     uint64
	rand     *rand.Rand
	setup    setup // of every process
	program  string
	logs     string

	server     *pgserver.Server // the database's, which a scenario may kill
	url        string           // of the database under test; a failover scenario names several hosts
	target     string           // where proxies lead; "" for none, the processes then use url
	query      string           // more parameters of the processes' URLs
	db         *pgxpool.Pool    // direct
	witness    *witness
	witnessURL string
	standby    *standby // of a failover scenario
	disk       string   // the folder of a small disk
	cleanups   []func() error

	workers, producers []*place
	tell               func(*place, *setup) // changes what one process is told; nil for nothing

	mu       sync.Mutex
	lives    []life
	faults   []span
	rewind   *span
	failures []error
}

// newStage sets a stage: databases, proxies, the scenario's own preparations,
// and then the processes.
func newStage(ctx context.Context, c config, sc *scenario, seed uint64, main, witnesses *pgserver.Server) (*stage, error) {
	s := &stage{
		config: c, scenario: sc, seed: seed, rand: rand.New(rand.NewPCG(seed, 1)), setup: usual(), server: main,
	}
	s.setup.Workloads = append(ordinary(), sc.workloads...)
	if err := s.build(ctx, witnesses); err != nil {
		return nil, errors.Join(err, s.close())
	}
	return s, nil
}

func (s *stage) build(ctx context.Context, witnesses *pgserver.Server) (err error) {
	if s.program, err = os.Executable(); err != nil {
		return err
	}
	if s.logs, err = os.MkdirTemp("", "simplequeue-chaos-"); err != nil {
		return err
	}
	s.cleanup(func() error { return os.RemoveAll(s.logs) })
	if s.witnessURL, err = s.database(ctx, witnesses.URL()); err != nil {
		return err
	}
	if s.witness, err = openWitness(ctx, s.witnessURL, 4); err != nil {
		return err
	}
	s.cleanup(func() error { s.witness.db.Close(); return nil })
	if _, err := s.witness.db.Exec(ctx, witnessSQL); err != nil {
		return err
	}
	if s.scenario.server != nil {
		if err := s.scenario.server(ctx, s); err != nil {
			return err
		}
	}
	if s.url, err = s.database(ctx, s.server.URL()); err != nil {
		return err
	}
	if err := s.connect(ctx); err != nil {
		return err
	}
	if err := migrate.UpPool(ctx, s.db, "simplequeue"); err != nil {
		return err
	}
	if err := installAudit(ctx, s.db); err != nil {
		return err
	}
	for _, name := range s.setup.Workloads {
		l := findWorkload(name)
		if l.prepare == "" {
			continue
		}
		if _, err := s.db.Exec(ctx, l.prepare); err != nil {
			return fmt.Errorf("prepare for %s: %w", name, err)
		}
	}
	if s.target, err = hostOf(s.url); err != nil {
		return err
	}
	if s.scenario.prepare != nil {
		if err := s.scenario.prepare(ctx, s); err != nil {
			return err
		}
	}
	for i := range s.config.workers {
		s.workers = append(s.workers, &place{role: "worker", number: i + 1})
	}
	s.producers = []*place{{role: "producer", number: 1}}
	for _, p := range append(s.workers, s.producers...) {
		if s.target != "" {
			if p.proxy, err = newProxy(s.target); err != nil {
				return err
			}
			s.cleanup(func() error { p.proxy.close(); return nil })
		}
		if err := s.start(p); err != nil {
			return err
		}
		s.cleanup(func() error { s.kill(p); return nil })
	}
	return nil
}

// cleanup is called when the stage is closed, the last one first.
func (s *stage) cleanup(f func() error) { s.cleanups = append(s.cleanups, f) }

func (s *stage) close() (err error) {
	for i := len(s.cleanups) - 1; i >= 0; i-- {
		err = errors.Join(err, s.cleanups[i]())
	}
	return err
}

// database makes an empty database and returns its URL.
func (s *stage) database(ctx context.Context, server string) (string, error) {
	name := fmt.Sprintf("chaos_%d", time.Now().UnixNano())
	conn, err := pgx.Connect(ctx, server)
	if err != nil {
		return "", err
	}
	defer conn.Close(ctx)
	if _, err := conn.Exec(ctx, "CREATE DATABASE "+name); err != nil {
		return "", err
	}
	u, err := url.Parse(server)
	if err != nil {
		return "", err
	}
	u.Path = "/" + name
	return u.String(), nil
}

// connect opens the direct pool to the database under test, in place of the one
// that was.
func (s *stage) connect(ctx context.Context) error {
	config, err := pgxpool.ParseConfig(s.url)
	if err != nil {
		return err
	}
	config.ConnConfig.RuntimeParams["application_name"] = "chaos"
	// What a scenario sets for the database's sessions is not for this one.
	config.AfterConnect = func(ctx context.Context, conn *pgx.Conn) error {
		_, err := conn.Exec(ctx, `SET statement_timeout = 0; SET lock_timeout = 0; SET idle_in_transaction_session_timeout = 0;
			SET default_transaction_isolation = 'read committed'`)
		return err
	}
	db, err := pgxpool.NewWithConfig(ctx, config)
	if err != nil {
		return err
	}
	if s.db != nil {
		go s.db.Close()
	} else {
		s.cleanup(func() error { s.db.Close(); return nil })
	}
	s.db = db
	return nil
}

func hostOf(text string) (string, error) {
	u, err := url.Parse(text)
	if err != nil {
		return "", err
	}
	return u.Host, nil
}

// urlVia is the URL that a process uses.
func (s *stage) urlVia(p *proxy) string {
	u, err := url.Parse(s.url)
	if err != nil || p == nil {
		return s.url
	}
	u.Host = p.addr()
	if s.query != "" {
		u.RawQuery += "&" + s.query
	}
	return u.String()
}

// fault notes a fault from now until the returned function is called.
func (s *stage) fault(format string, args ...any) (end func()) {
	return s.note(span{what: fmt.Sprintf(format, args...), begin: time.Now()})
}

// outage is fault for one in which no worker can sweep, or claim anything.
func (s *stage) outage(format string, args ...any) (end func()) {
	return s.note(span{what: fmt.Sprintf(format, args...), begin: time.Now(), outage: true})
}

func (s *stage) note(f span) (end func()) {
	return func() {
		f.end = time.Now()
		s.mu.Lock()
		defer s.mu.Unlock()
		s.faults = append(s.faults, f)
	}
}

// fail notes that something of the run itself, not of what it tests, went wrong.
func (s *stage) fail(err error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.failures = append(s.failures, err)
}

// someone is a worker by chance.
func (s *stage) someone() *place { return s.workers[s.rand.IntN(len(s.workers))] }

// between is a time by chance.
func (s *stage) between(least, most time.Duration) time.Duration {
	return least + time.Duration(s.rand.Int64N(int64(most-least)+1))
}

// all are the places of workers and producers.
func (s *stage) all() []*place { return append(append([]*place{}, s.workers...), s.producers...) }

// How long a stage that has gone through its faults may take until all is quiet:
// until every job has ended, and then until nothing is left over.
const (
	quietLimit = 90 * time.Second
	restLimit  = 20 * time.Second
)

// perform runs the scenario and returns its history.
func (s *stage) perform(ctx context.Context) (h *history, found []violation, err error) {
	acting, done := context.WithCancel(ctx)
	defer done()
	if s.scenario.mortal {
		go s.revive(acting)
	}
	pause(ctx, 500*time.Millisecond) // the processes come up
	faulty, stop := context.WithTimeout(ctx, s.config.seconds)
	err = s.scenario.inject(faulty, s)
	for err == nil && faulty.Err() == nil {
		err = s.scenario.inject(faulty, s)
	}
	stop()
	if err != nil || ctx.Err() != nil {
		return nil, nil, errors.Join(err, context.Cause(ctx))
	}
	faultsOver := time.Now()
	pause(ctx, time.Second) // what is inserted after the faults must be served, too
	for _, p := range s.producers {
		if e := s.stop(p); e != nil {
			found = append(found, violation{"I8 loops", e.Error(), nil})
		}
	}
	found = append(found, s.settleDown(ctx)...)
	if h, err = s.history(ctx); err != nil {
		return nil, nil, err
	}
	done()
	h.quietAfter = h.quiet.Sub(faultsOver)
	for _, p := range s.workers {
		if e := s.stop(p); e != nil {
			found = append(found, violation{"I8 loops", e.Error(), nil})
		}
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	h.lives = append(h.lives[:0], s.lives...)
	return h, found, errors.Join(s.failures...)
}

// settleDown waits until every job has ended and the workers are at rest.
func (s *stage) settleDown(ctx context.Context) (found []violation) {
	var live int
	var err error
	ok := eventually(ctx, quietLimit, func() bool {
		err = s.db.QueryRow(ctx, "SELECT (SELECT count(*) FROM simplequeue.job_live) + (SELECT count(*) FROM simplequeue.job_finished)").Scan(&live)
		return err == nil && live == 0
	})
	if !ok {
		list, e := stillLive(ctx, s.db)
		found = append(found, violation{"I1 loss", fmt.Sprintf("%d jobs are live %v after the faults (%v, %v)", live, quietLimit, err, e), list})
	}
	eventually(ctx, restLimit, func() bool {
		left, err := loadLeftovers(ctx, s.db)
		for _, n := range left {
			if n > 0 {
				return false
			}
		}
		h := &history{setup: s.setup, quiet: time.Now()}
		s.mu.Lock()
		h.lives = append(h.lives, s.lives...)
		s.mu.Unlock()
		if err != nil || s.witness.load(ctx, h) != nil {
			return false
		}
		return len(checkSlots(h)) == 0 && len(checkLoops(h)) == 0
	})
	return found
}

// history gathers all that is known.
func (s *stage) history(ctx context.Context) (h *history, err error) {
	h = &history{setup: s.setup, strict: s.scenario.strict, loses: s.scenario.loses, quiet: time.Now()}
	s.mu.Lock()
	h.lives, h.faults, h.rewind = append(h.lives, s.lives...), s.faults, s.rewind
	s.mu.Unlock()
	if err := s.witness.load(ctx, h); err != nil {
		return nil, err
	}
	if h.moves, err = loadAudit(ctx, s.db); err != nil {
		return nil, err
	}
	if h.finals, err = loadFinals(ctx, s.db); err != nil {
		return nil, err
	}
	if h.effects, err = loadEffects(ctx, s.db); err != nil {
		return nil, err
	}
	if h.leftovers, err = loadLeftovers(ctx, s.db); err != nil {
		return nil, err
	}
	if h.connections, err = loadConnections(ctx, s.db); err != nil {
		return nil, err
	}
	h.bytes, err = loadBytes(ctx, s.db)
	return h, err
}

// eventually waits for a condition.
func eventually(ctx context.Context, limit time.Duration, ok func() bool) bool {
	for deadline := time.Now().Add(limit); ; {
		if ok() {
			return true
		}
		if time.Now().After(deadline) || !pause(ctx, 200*time.Millisecond) {
			return false
		}
	}
}

// wake lets stopped processes go on.
func (s *stage) wake(places ...*place) {
	for _, p := range places {
		s.signal(p, syscall.SIGCONT, false)
	}
}
