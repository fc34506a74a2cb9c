package simplequeue

import (
	"context"
	"database/sql"
	"errors"
	"fmt"

	"github.com/google/uuid"
	"github.com/jackc/pgx/v5"

	"github.com/simplequeue/simplequeue/internal/store"
)

// Insert stores a job. When it returns without error the job is committed, or,
// with Duplicate set, another live job holds its unique key.
//
// Errors: [*InvalidJobError] for a job that cannot be stored, [ErrInsertUnknown]
// when the connection broke during the commit, [ErrUniqueContention]; anything
// else is the database's.
func (q *SimpleQueue) Insert(ctx context.Context, job NewJob) (Inserted, error) {
	return first(q.InsertMany(ctx, []NewJob{job}))
}

// InsertMany stores jobs in one transaction: all of them, but for duplicates, or
// none. The results are in the order of jobs. An empty list does nothing.
func (q *SimpleQueue) InsertMany(ctx context.Context, jobs []NewJob) ([]Inserted, error) {
	b, err := q.prepare(ctx, jobs)
	if err != nil || len(jobs) == 0 {
		return nil, err
	}
	if b.plain && len(jobs) >= insertCopy {
		err = q.insertCopied(ctx, b)
	} else if b.plain {
		err = q.insertPlain(ctx, b)
	} else {
		err = q.insertKeyed(ctx, b)
	}
	if err != nil {
		return nil, err
	}
	q.wakes.jobs(b.runnable(), len(b.jobs))
	if e := q.engine.Load(); e != nil && b.waits {
		e.promoter.hint(b.soonest)
	}
	return b.results, nil
}

// InsertTx is Insert inside the caller's transaction: the job exists once that
// commits, and workers are woken then. Errors of the database come back as they
// are; after one the transaction is aborted, as after any other statement.
func (q *SimpleQueue) InsertTx(ctx context.Context, tx pgx.Tx, job NewJob) (Inserted, error) {
	return first(q.InsertManyTx(ctx, tx, []NewJob{job}))
}

// InsertManyTx is InsertMany inside the caller's transaction.
func (q *SimpleQueue) InsertManyTx(ctx context.Context, tx pgx.Tx, jobs []NewJob) ([]Inserted, error) {
	return q.insertWithin(ctx, pgxQuerier{tx}, jobs)
}

// InsertSQLTx is InsertTx for database/sql, with any PostgreSQL driver.
func (q *SimpleQueue) InsertSQLTx(ctx context.Context, tx *sql.Tx, job NewJob) (Inserted, error) {
	return first(q.InsertManySQLTx(ctx, tx, []NewJob{job}))
}

// InsertManySQLTx is InsertManyTx for database/sql.
func (q *SimpleQueue) InsertManySQLTx(ctx context.Context, tx *sql.Tx, jobs []NewJob) ([]Inserted, error) {
	return q.insertWithin(ctx, sqlQuerier{tx}, jobs)
}

func first(results []Inserted, err error) (Inserted, error) {
	if err != nil {
		return Inserted{}, err
	}
	return results[0], nil
}

// insertChunk bounds one statement: its arrays are held in memory on both sides.
const insertChunk = 5000

// insertCopy is the number of jobs from which COPY, which takes two round trips
// more, is worth it.
const insertCopy = 200

// insertCopied inserts plain jobs by COPY.
func (q *SimpleQueue) insertCopied(ctx context.Context, b *batch) error {
	return q.onConn(ctx, func(conn *pgx.Conn) error {
		if err := q.copyJobs(ctx, conn, b); err != nil {
			return err
		}
		tag, err := conn.Exec(ctx, "COMMIT")
		if err == nil && tag.String() != "COMMIT" {
			return errors.New("transaction was rolled back")
		}
		return b.doubt(err)
	})
}

// copyJobs begins a transaction and puts the jobs into it.
func (q *SimpleQueue) copyJobs(ctx context.Context, conn *pgx.Conn, b *batch) error {
	var pipe pgx.Batch
	pipe.Queue("BEGIN ISOLATION LEVEL READ COMMITTED")
	for from := 0; from < len(b.jobs); from += insertChunk {
		if n := b.beside(from, min(from+insertChunk, len(b.jobs))); n != nil {
			text, args := q.db.InsertBeside(n)
			pipe.Queue(text, args...)
		}
	}
	if err := conn.SendBatch(ctx, &pipe).Close(); err != nil {
		return err
	}
	text, rows := q.db.CopyPlain(len(b.jobs), b.row)
	_, err := conn.PgConn().CopyFrom(ctx, rows, text)
	return err
}

// insertPlain sends the whole transaction at once.
func (q *SimpleQueue) insertPlain(ctx context.Context, b *batch) error {
	return q.onConn(ctx, func(conn *pgx.Conn) error {
		var pipe pgx.Batch
		pipe.Queue("BEGIN ISOLATION LEVEL READ COMMITTED")
		for _, columns := range b.chunks() {
			text, args := q.db.InsertPlain(columns, "", "")
			pipe.Queue(text, args...)
		}
		pipe.Queue("COMMIT")
		return b.doubt(conn.SendBatch(ctx, &pipe).Close())
	})
}

// onConn runs a transaction that insert writes out by itself on a connection of
// the pool, and leaves the connection usable when that fails.
func (q *SimpleQueue) onConn(ctx context.Context, insert func(conn *pgx.Conn) error) error {
	conn, err := q.pool.Acquire(ctx)
	if err != nil {
		return fmt.Errorf("simplequeue: no connection to insert on: %w", err)
	}
	defer conn.Release()
	if err := insert(conn.Conn()); err != nil {
		if !conn.Conn().IsClosed() && conn.Conn().PgConn().TxStatus() != 'I' {
			_, _ = conn.Exec(ctx, "ROLLBACK")
		}
		return fmt.Errorf("simplequeue: insert: %w", err)
	}
	return nil
}

func (q *SimpleQueue) insertWithin(ctx context.Context, tx store.Querier, jobs []NewJob) ([]Inserted, error) {
	b, err := q.prepare(ctx, jobs)
	if err != nil || len(jobs) == 0 {
		return nil, err
	}
	channel := q.wakes.channel
	if q.opts.PollOnly {
		channel = ""
	}
	if !b.plain {
		err = q.insertRows(ctx, tx, b, channel, contentionRounds)
	} else {
		chunks := b.chunks()
		for i := 0; i < len(chunks) && err == nil; i++ {
			wake := channel
			if i < len(chunks)-1 {
				wake = ""
			}
			text, args := q.db.InsertPlain(chunks[i], wake, encodeWake(b.lanes))
			err = exhaust(tx.Query(ctx, text, args...))
		}
	}
	if err != nil {
		return nil, fmt.Errorf("simplequeue: insert: %w", err)
	}
	return b.results, nil
}

func exhaust(rows store.Rows, err error) error {
	if err != nil {
		return err
	}
	defer rows.Close()
	for rows.Next() {
	}
	return rows.Err()
}

// doubt turns an error that leaves the commit open into one that says so.
func (b *batch) doubt(err error) error {
	if err == nil || store.Answered(err) || store.NotSent(err) {
		return err
	}
	ids := make([]uuid.UUID, len(b.jobs))
	for i := range b.jobs {
		ids[i] = b.jobs[i].id
	}
	return &InsertUnknownError{IDs: ids, Err: err}
}
