package simplequeue

import (
	"context"
	"database/sql"
	"errors"

	"github.com/google/uuid"
	"github.com/jackc/pgx/v5"

	"github.com/simplequeue/simplequeue/internal/store"
)

// Insert stores a job. When it returns without error the job is committed, or,
// with Duplicate set, another live job holds its unique key.
//
// Concurrent inserts of jobs that run now, with neither unique key nor ID, share
// transactions, two of which are under way at a time. None of them waits for
// another to come, and what is wrong with one job fails no other. A shared
// statement runs under a context of the library's: values of ctx do not reach
// the pool's hooks and tracers. When ctx ends Insert returns at once.
//
// Errors: [*InvalidJobError] for a job that cannot be stored, [ErrInsertUnknown]
// when the connection broke during the commit, ctx ended when the job was under
// way, or the database did not answer such a transaction within 30 seconds;
// [ErrUniqueContention]; [ErrQueueFull]; anything else is the database's or ctx's, and nothing
// was inserted.
func (q *SimpleQueue) Insert(ctx context.Context, job NewJob) (Inserted, error) {
	return first(q.InsertMany(ctx, []NewJob{job}))
}

// InsertMany stores jobs in one transaction: all of them, but for duplicates, or
// none. The results are in the order of jobs. An empty list does nothing. Fewer
// than 200 jobs may share their transaction with others, as with Insert.
func (q *SimpleQueue) InsertMany(ctx context.Context, jobs []NewJob) ([]Inserted, error) {
	if q.opts.Spool != nil {
		return q.insertThrough(ctx, jobs, q.opts.Spool.Insert)
	}
	return q.insertThrough(ctx, jobs, q.insertOwn)
}

// insertOwn inserts jobs in a transaction of the library's.
func (q *SimpleQueue) insertOwn(ctx context.Context, jobs []NewJob) (results []Inserted, err error) {
	if q.db.Within != nil {
		err = q.db.Within.Tx(ctx, func(tx pgx.Tx) error {
			results, err = q.insertWithin(ctx, pgxQuerier{tx}, jobs)
			return err
		})
		return results, err
	}
	results, err = q.insertOnce(ctx, jobs)
	for try := 0; err != nil && try < boundTries && q.unaware(ctx, err, jobs); try++ {
		results, err = q.insertOnce(ctx, jobs)
	}
	return results, err
}

func (q *SimpleQueue) insertOnce(ctx context.Context, jobs []NewJob) ([]Inserted, error) {
	b, err := q.check(ctx, jobs)
	if err != nil || len(jobs) == 0 {
		return nil, err
	}
	if !b.copied() {
		err = b.encode(len(b.jobs))
	}
	switch {
	case err != nil:
	case q.groups.suits(b):
		if err := q.groups.insert(ctx, b); err != nil {
			return nil, err
		}
		return b.results, nil
	case b.plain:
		err = q.insertPlain(ctx, b)
	default:
		err = q.insertKeyed(ctx, b)
	}
	if err != nil {
		return nil, err
	}
	q.wakes.jobs(b.runnable(), len(b.jobs))
	if b.lined() {
		q.wakes.gates()
	}
	if e := q.engine.Load(); e != nil && b.waits {
		e.promoter.hint(b.soonest)
	}
	return b.results, nil
}

// InsertTx is Insert inside the caller's transaction: the job exists once that
// commits, and workers are woken then. Errors of the database come back as they
// are; after one the transaction is aborted, as after any other statement. After
// [ErrQueueFull], and [*InvalidJobError], it is as it was before.
func (q *SimpleQueue) InsertTx(ctx context.Context, tx pgx.Tx, job NewJob) (Inserted, error) {
	return first(q.InsertManyTx(ctx, tx, []NewJob{job}))
}

// InsertManyTx is InsertMany inside the caller's transaction.
func (q *SimpleQueue) InsertManyTx(ctx context.Context, tx pgx.Tx, jobs []NewJob) ([]Inserted, error) {
	return q.insertThrough(ctx, jobs, func(ctx context.Context, jobs []NewJob) ([]Inserted, error) {
		return q.insertWithin(ctx, pgxQuerier{tx}, jobs)
	})
}

// InsertSQLTx is InsertTx for database/sql, with any PostgreSQL driver.
func (q *SimpleQueue) InsertSQLTx(ctx context.Context, tx *sql.Tx, job NewJob) (Inserted, error) {
	return first(q.InsertManySQLTx(ctx, tx, []NewJob{job}))
}

// InsertManySQLTx is InsertManyTx for database/sql.
func (q *SimpleQueue) InsertManySQLTx(ctx context.Context, tx *sql.Tx, jobs []NewJob) ([]Inserted, error) {
	return q.insertThrough(ctx, jobs, func(ctx context.Context, jobs []NewJob) ([]Inserted, error) {
		return q.insertWithin(ctx, sqlQuerier{tx}, jobs)
	})
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

// insertPlain inserts plain jobs in a transaction of their own.
func (q *SimpleQueue) insertPlain(ctx context.Context, b *batch) error {
	conn, err := q.pool.Acquire(ctx)
	if err != nil {
		return noConnection(err)
	}
	defer conn.Release()
	return insertError(q.putPlain(ctx, conn.Conn(), b))
}

// putPlain runs a transaction that it writes out by itself, and leaves the
// connection usable when that fails.
func (q *SimpleQueue) putPlain(ctx context.Context, conn *pgx.Conn, b *batch) (err error) {
	if b.copied() {
		err = q.putCopied(ctx, conn, b)
	} else {
		err = q.putAtOnce(ctx, conn, b)
	}
	switch {
	case conn.IsClosed():
		q.groups.undecided(conn, b)
	case err != nil && conn.PgConn().TxStatus() != 'I':
		_, _ = conn.Exec(ctx, "ROLLBACK")
	}
	return err
}

// copied reports whether the jobs go in by COPY.
func (b *batch) copied() bool { return b.plain && len(b.jobs) >= insertCopy }

// putCopied inserts plain jobs by COPY.
func (q *SimpleQueue) putCopied(ctx context.Context, conn *pgx.Conn, b *batch) error {
	var begin, beside pgx.Batch
	begin.Queue("BEGIN ISOLATION LEVEL READ COMMITTED")
	text, args := q.db.InsertBeside(b.laneColumns())
	begin.Queue(text, args...)
	if err := conn.SendBatch(ctx, &begin).Close(); err != nil {
		return err
	}
	if err := q.copyJobs(ctx, conn, b); err != nil {
		return err
	}
	for from := 0; from < len(b.jobs); from += insertChunk {
		if n := b.beside(from, min(from+insertChunk, len(b.jobs))); n != nil {
			text, args := q.db.InsertBeside(n)
			beside.Queue(text, args...)
		}
	}
	if beside.Len() > 0 {
		if err := conn.SendBatch(ctx, &beside).Close(); err != nil {
			return err
		}
	}
	tag, err := conn.Exec(ctx, "COMMIT")
	if err == nil && tag.String() != "COMMIT" {
		return errors.New("transaction was rolled back")
	}
	return b.doubt(err)
}

// encodeChunk is how many jobs are encoded before they are sent.
const encodeChunk = 250

// copyJobs sends the rows of the jobs, and encodes those that are not while the
// server takes in what came before. Encoding runs code of the caller's, so it is
// done in the caller's goroutine.
func (q *SimpleQueue) copyJobs(ctx context.Context, conn *pgx.Conn, b *batch) (err error) {
	encoded := make(chan int, len(b.jobs)/encodeChunk+2) // never full
	text, rows := q.db.CopyPlain(len(b.jobs), b.rows(encoded))
	sent := make(chan error, 1)
	go func() {
		_, err := conn.PgConn().CopyFrom(ctx, rows, text)
		sent <- err
	}()
	defer func() {
		close(encoded)
		if failed := <-sent; err == nil {
			err = failed
		}
		_ = rows.Close()
	}()
	for b.encoded < len(b.jobs) && len(sent) == 0 {
		if err := b.encode(min(b.encoded+encodeChunk, len(b.jobs))); err != nil {
			return err
		}
		encoded <- b.encoded
	}
	encoded <- b.encoded
	return nil
}

// putAtOnce sends the whole transaction at once.
func (q *SimpleQueue) putAtOnce(ctx context.Context, conn *pgx.Conn, b *batch) error {
	var pipe pgx.Batch
	pipe.Queue("BEGIN ISOLATION LEVEL READ COMMITTED")
	for _, columns := range b.chunks() {
		text, args := q.db.InsertPlain(columns, "", "")
		pipe.Queue(text, args...)
	}
	pipe.Queue("COMMIT")
	return b.doubt(conn.SendBatch(ctx, &pipe).Close())
}

func (q *SimpleQueue) insertWithin(ctx context.Context, tx store.Querier, jobs []NewJob) ([]Inserted, error) {
	if len(jobs) == 0 {
		return nil, nil
	}
	if err := q.bounds.learn(ctx, q.db, tx); err != nil {
		return nil, err
	}
	b, err := q.prepare(ctx, jobs)
	if err != nil {
		return nil, err
	}
	channel := q.wakes.channel
	if q.opts.PollOnly {
		channel = ""
	}
	if b.bounded {
		err = q.insertBounded(ctx, tx, b, channel)
	} else if !b.plain {
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
		if !errors.Is(err, ErrQueueFull) {
			q.bounds.doubt()
		}
		return nil, insertError(err)
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
	return b.unknown(err)
}

func (b *batch) unknown(err error) error {
	ids := make([]uuid.UUID, len(b.jobs))
	for i := range b.jobs {
		ids[i] = b.jobs[i].id
	}
	return &InsertUnknownError{IDs: ids, Err: err}
}
