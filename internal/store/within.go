package store

import (
	"context"
	"sync"

	"github.com/jackc/pgx/v5"
)

// Within is what a DB has instead of a pool where all it does is to happen in a
// transaction of somebody else's: each transaction of its own is a savepoint
// there. Settings and time limits are those of that transaction.
type Within struct {
	mu    sync.Mutex // a transaction is for one goroutine at a time
	outer Beginner
}

// Beginner begins a transaction inside another.
type Beginner interface {
	Begin(ctx context.Context) (pgx.Tx, error)
}

// NewWithin returns one inside a transaction.
func NewWithin(outer Beginner) *Within { return &Within{outer: outer} }

// Tx runs f in a savepoint, which is taken back when f fails.
func (w *Within) Tx(ctx context.Context, f func(tx pgx.Tx) error) error {
	w.mu.Lock()
	defer w.mu.Unlock()
	return pgx.BeginFunc(ctx, w.outer, f)
}

func (db *DB) stepsWithin(ctx context.Context, steps []Step) error {
	return db.Within.Tx(ctx, func(tx pgx.Tx) error {
		for _, s := range steps {
			rows, err := tx.Query(ctx, db.text(s), s.Args...)
			if err != nil {
				return err
			}
			if err := scanStep(rows, s); err != nil {
				return err
			}
		}
		return nil
	})
}

// CallerTx runs f in a READ COMMITTED transaction with the session's own settings.
func (db *DB) CallerTx(ctx context.Context, f func(tx pgx.Tx) error) error {
	if db.Within != nil {
		return db.Within.Tx(ctx, f)
	}
	return pgx.BeginTxFunc(ctx, db.Pool, pgx.TxOptions{IsoLevel: pgx.ReadCommitted}, f)
}

// Jobs get their places at gates when their transaction commits. One that others
// work inside of does not, so they get them now.
var (
	givePlaces      = Define(`SET CONSTRAINTS {schema}.job_gate_look_arrived IMMEDIATE`)
	givePlacesAtEnd = Define(`SET CONSTRAINTS {schema}.job_gate_look_arrived DEFERRED`)
)

// read runs a query of which nothing is known in advance, with the session's own
// settings.
func (db *DB) read(ctx context.Context, s Step) error {
	if db.Within != nil {
		return db.stepsWithin(ctx, []Step{s})
	}
	rows, err := db.Pool.Query(ctx, db.text(s), s.Args...)
	if err != nil {
		return err
	}
	return scanStep(rows, s)
}
