package main

import (
	"context"
	"errors"
	"log/slog"
	"math/rand/v2"
	"os"
	"sync"
	"time"

	"github.com/google/uuid"
	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"
	"github.com/jackc/pgx/v5/pgxpool"

	"github.com/simplequeue/simplequeue"
)

// producer is the inside of a producer process: each workload inserts its jobs
// in a goroutine of its own until the process is stopped.
type producer struct {
	setup   setup
	witness *witness
	pool    *pgxpool.Pool
	queue   *simplequeue.SimpleQueue
}

func (p *producer) run(ctx context.Context) (err error) {
	p.queue, err = simplequeue.New(p.pool, simplequeue.Options{
		Name: p.setup.Name, Logger: slog.New(slog.NewTextHandler(os.Stderr, nil)), MaxAttempts: 1000, PollOnly: p.setup.PollOnly,
	})
	if err != nil {
		return err
	}
	var wg sync.WaitGroup
	for i, name := range p.setup.Workloads {
		l, r := findWorkload(name), rand.New(rand.NewPCG(p.setup.Seed, uint64(i)))
		wg.Go(func() {
			for pause(ctx, l.every/2+time.Duration(r.Int64N(int64(l.every)))) {
				// A round is finished: who stops a producer wants to know what it did.
				l.produce(context.WithoutCancel(ctx), p, r)
			}
		})
	}
	wg.Wait()
	return nil
}

// patience bounds one call of a producer.
const patience = 5 * time.Second

// add inserts jobs of a workload, with the payloads given, and notes what became
// of each. It returns the ids of those that are there.
func (p *producer) add(ctx context.Context, l *workload, jobs ...simplequeue.NewJob) []uuid.UUID {
	all := p.announce(ctx, l, jobs)
	call, cancel := context.WithTimeout(ctx, patience)
	defer cancel()
	results, err := p.queue.InsertMany(call, jobs)
	return p.conclude(ctx, all, results, err)
}

// announce gives each job its tag and its queue, and tells the witness.
func (p *producer) announce(ctx context.Context, l *workload, jobs []simplequeue.NewJob) []insertion {
	all, call := make([]insertion, len(jobs)), uuid.New()
	for i := range jobs {
		j := &jobs[i]
		load, _ := j.Payload.(payload)
		load.Tag = uuid.NewString()
		j.Payload, j.Queue = load, l.name
		all[i] = insertion{tag: load.Tag, workload: l.name, call: call, nth: i, key: j.UniqueKey, order: j.OrderKey, delay: j.Delay, id: j.ID}
	}
	must(p.witness.asks(ctx, all))
	return all
}

// conclude notes the answer of an insert.
func (p *producer) conclude(ctx context.Context, all []insertion, results []simplequeue.Inserted, err error) (ids []uuid.UUID) {
	var unknown *simplequeue.InsertUnknownError
	for i := range all {
		in := &all[i]
		switch {
		case errors.As(err, &unknown):
			in.outcome, in.id = inDoubt, unknown.IDs[i]
		case err != nil:
			in.outcome = refused
		case results[i].Duplicate && results[i].ID != in.id:
			in.outcome, in.holder = duplicate, results[i].ID
		default:
			in.outcome, in.id = acked, results[i].ID
			ids = append(ids, in.id)
		}
	}
	must(p.witness.answers(ctx, all))
	return ids
}

// became notes what became of all jobs of an insert.
func (p *producer) became(ctx context.Context, all []insertion, outcome string) {
	for i := range all {
		all[i].outcome = outcome
	}
	must(p.witness.answers(ctx, all))
}

var (
	errRolledBack    = errors.New("rolled back")
	errCommitUnknown = errors.New("outcome of the commit unknown")
)

// transact does something in a transaction and commits it, or rolls it back. It
// returns nil if it was committed, errRolledBack if it was to be rolled back,
// errCommitUnknown, or why it was not committed.
func (p *producer) transact(ctx context.Context, back bool, do func(ctx context.Context, tx pgx.Tx) error) error {
	ctx, cancel := context.WithTimeout(ctx, patience)
	defer cancel()
	tx, err := p.pool.Begin(ctx)
	if err != nil {
		return err
	}
	defer func() { _ = tx.Rollback(context.WithoutCancel(ctx)) }()
	if err := do(ctx, tx); err != nil {
		return err
	}
	if back {
		if err := tx.Rollback(ctx); err != nil {
			return err // the connection is gone, and the transaction with it
		}
		return errRolledBack
	}
	err = tx.Commit(ctx)
	var answer *pgconn.PgError
	if err == nil || errors.Is(err, pgx.ErrTxCommitRollback) || errors.As(err, &answer) && answer.Severity == "ERROR" {
		return err
	}
	return errCommitUnknown
}
