package simplequeue

import (
	"context"
	"database/sql"
	"errors"
	"fmt"
	"time"

	"github.com/google/uuid"
	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"
	"github.com/jackc/pgx/v5/pgtype"

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
		err = q.insertMany(ctx, b)
	} else if b.plain {
		err = q.insertPlain(ctx, b)
	} else {
		err = q.insertKeyed(ctx, b)
	}
	if err != nil {
		return nil, err
	}
	q.wakes.jobs(b.runnable(), len(b.jobs))
	if b.waits && q.engine.Load() != nil {
		q.engine.Load().promoter.hint(b.soonest)
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

// insertMany inserts plain jobs by COPY.
func (q *SimpleQueue) insertMany(ctx context.Context, b *batch) error {
	conn, err := q.pool.Acquire(ctx)
	if err != nil {
		return fmt.Errorf("simplequeue: no connection to insert on: %w", err)
	}
	defer conn.Release()
	err = q.copyJobs(ctx, conn.Conn(), b)
	if err == nil {
		var tag pgconn.CommandTag
		if tag, err = conn.Exec(ctx, "COMMIT"); err == nil && tag.String() != "COMMIT" {
			err = errors.New("transaction was rolled back")
		}
		if err != nil {
			err = b.doubt(err)
		}
	}
	if err != nil {
		if !conn.Conn().IsClosed() && conn.Conn().PgConn().TxStatus() != 'I' {
			_, _ = conn.Exec(ctx, "ROLLBACK")
		}
		return fmt.Errorf("simplequeue: insert: %w", err)
	}
	return nil
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
	conn, err := q.pool.Acquire(ctx)
	if err != nil {
		return fmt.Errorf("simplequeue: no connection to insert on: %w", err)
	}
	defer conn.Release()
	var pipe pgx.Batch
	pipe.Queue("BEGIN ISOLATION LEVEL READ COMMITTED")
	for _, columns := range b.chunks() {
		text, args := q.db.InsertPlain(columns, "", "")
		pipe.Queue(text, args...)
	}
	pipe.Queue("COMMIT")
	if err := conn.SendBatch(ctx, &pipe).Close(); err != nil {
		if !conn.Conn().IsClosed() && conn.Conn().PgConn().TxStatus() != 'I' {
			_, _ = conn.Exec(ctx, "ROLLBACK")
		}
		return b.doubt(fmt.Errorf("simplequeue: insert: %w", err))
	}
	return nil
}

// insertKeyed tries again after a deadlock. One statement takes its keys in
// order, but lists of several statements can meet the wrong way round.
func (q *SimpleQueue) insertKeyed(ctx context.Context, b *batch) error {
	for round := 1; ; round++ {
		err := q.tryKeyed(ctx, b)
		if store.Code(err) != "40P01" || round == contentionRounds {
			return err
		}
		for i := range b.jobs {
			b.jobs[i].later, b.results[i] = false, Inserted{ID: b.jobs[i].id}
		}
	}
}

// tryKeyed needs the answer of one statement to write the next. Only its commit
// can leave a doubt.
func (q *SimpleQueue) tryKeyed(ctx context.Context, b *batch) error {
	conn, err := q.pool.Acquire(ctx)
	if err != nil {
		return fmt.Errorf("simplequeue: no connection to insert on: %w", err)
	}
	defer conn.Release()
	tx, err := conn.BeginTx(ctx, pgx.TxOptions{IsoLevel: pgx.ReadCommitted})
	if err != nil {
		return fmt.Errorf("simplequeue: insert: %w", err)
	}
	if err := q.insertRows(ctx, pgxQuerier{tx}, b, ""); err != nil {
		_ = tx.Rollback(ctx)
		return fmt.Errorf("simplequeue: insert: %w", err)
	}
	if err := tx.Commit(ctx); err != nil {
		return b.doubt(fmt.Errorf("simplequeue: commit of insert: %w", err))
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
		err = q.insertRows(ctx, tx, b, channel)
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

// contentionRounds is how often an insert looks again for the holder of a key
// that was gone when it looked.
const contentionRounds = 3

// insertRows inserts jobs that may hold keys. Which of them lost their key shows
// after the statement; who holds it only a new statement can see.
func (q *SimpleQueue) insertRows(ctx context.Context, tx store.Querier, b *batch, channel string) error {
	open := make([]int, len(b.jobs))
	for i := range open {
		open[i] = i
	}
	for range contentionRounds {
		lost, err := q.insertRound(ctx, tx, b, open)
		if err != nil {
			return err
		}
		if open, err = q.lookUpHolders(ctx, tx, b, lost); err != nil {
			return err
		}
		if len(open) == 0 {
			if lanes := b.runnable(); channel != "" && len(lanes) > 0 {
				return q.db.NotifyTx(ctx, tx, channel, encodeWake(lanes))
			}
			return nil
		}
	}
	return fmt.Errorf("%w (%q)", ErrUniqueContention, b.jobs[open[0]].job.UniqueKey)
}

// insertRound tries to insert the jobs at the given positions and returns those
// that lost their key.
func (q *SimpleQueue) insertRound(ctx context.Context, tx store.Querier, b *batch, open []int) (lost []int, err error) {
	for len(open) > 0 {
		chunk := open[:min(insertChunk, len(open))]
		open = open[len(chunk):]
		fates, err := q.db.InsertKeyed(ctx, tx, b.columns(chunk))
		if err != nil {
			return nil, err
		}
		for i, f := range fates {
			at := chunk[i]
			switch {
			case f.Inserted:
				b.results[at].Duplicate = false
				b.jobs[at].later = f.Later
			case f.IDKnown:
				b.results[at].Duplicate = true
			default:
				lost = append(lost, at)
			}
		}
	}
	return lost, nil
}

// lookUpHolders fills in who holds the keys of the lost jobs, and returns the
// jobs whose key is free again.
func (q *SimpleQueue) lookUpHolders(ctx context.Context, tx store.Querier, b *batch, lost []int) (open []int, err error) {
	if len(lost) == 0 {
		return nil, nil
	}
	var scopes, keys, chosen []string
	for _, at := range lost {
		scopes = append(scopes, b.jobs[at].scope())
		keys = append(keys, b.jobs[at].job.UniqueKey)
		if b.jobs[at].chosen {
			chosen = append(chosen, b.jobs[at].id.String())
		}
	}
	if len(chosen) > 0 {
		if err := q.db.ForgetChosen(ctx, tx, chosen); err != nil {
			return nil, err
		}
	}
	holders, err := q.db.Holders(ctx, tx, scopes, keys)
	if err != nil {
		return nil, err
	}
	for i, at := range lost {
		text, held := holders[i]
		if !held {
			open = append(open, at)
			continue
		}
		id, err := uuid.Parse(text)
		if err != nil {
			return nil, fmt.Errorf("holder of unique key %q: %w", keys[i], err)
		}
		b.results[at] = Inserted{ID: id, Duplicate: true}
	}
	return open, nil
}

// doubt turns an error that leaves the commit open into one that says so.
func (b *batch) doubt(err error) error {
	if store.Answered(err) || store.NotSent(err) {
		return err
	}
	ids := make([]uuid.UUID, len(b.jobs))
	for i := range b.jobs {
		ids[i] = b.jobs[i].id
	}
	return &InsertUnknownError{IDs: ids, Err: err}
}

// pgxQuerier is a pgx transaction as the store wants it.
type pgxQuerier struct{ tx pgx.Tx }

func (p pgxQuerier) Query(ctx context.Context, text string, args ...any) (store.Rows, error) {
	return p.tx.Query(ctx, text, args...)
}

// sqlQuerier is a database/sql transaction. Not every driver takes slices, so
// they go as PostgreSQL's array text, which the statements cast.
type sqlQuerier struct{ tx *sql.Tx }

func (s sqlQuerier) Query(ctx context.Context, text string, args ...any) (store.Rows, error) {
	plain := make([]any, len(args))
	for i, a := range args {
		p, err := arrayText(a)
		if err != nil {
			return nil, fmt.Errorf("argument %d: %w", i+1, err)
		}
		plain[i] = p
	}
	rows, err := s.tx.QueryContext(ctx, text, plain...)
	if err != nil {
		return nil, err
	}
	return sqlRows{rows}, rows.Err()
}

type sqlRows struct{ *sql.Rows }

// Close ends the rows; their error is asked for by Err.
func (s sqlRows) Close() { _ = s.Rows.Close() }

// arrayText turns a slice into PostgreSQL's text for it, nil into NULL.
func arrayText(arg any) (any, error) {
	var oid uint32
	switch a := arg.(type) {
	case string, int, int64:
		return a, nil
	case []string, []*string:
		oid = pgtype.TextArrayOID
	case []int16:
		oid = pgtype.Int2ArrayOID
	case []int32:
		oid = pgtype.Int4ArrayOID
	case []*int64:
		oid = pgtype.Int8ArrayOID
	case []bool:
		oid = pgtype.BoolArrayOID
	case [][]byte:
		oid = pgtype.ByteaArrayOID
	case []*time.Time:
		oid = pgtype.TimestamptzArrayOID
	default:
		return nil, fmt.Errorf("no text form for %T", arg)
	}
	text, err := pgtype.NewMap().Encode(oid, pgtype.TextFormatCode, arg, nil)
	if err != nil || text == nil {
		return nil, err
	}
	return string(text), nil
}
