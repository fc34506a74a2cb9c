package main

import (
	"context"
	"time"

	"github.com/google/uuid"
	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgxpool"
)

// witness is a database on a server that no fault touches. Processes tell it
// what they do over connections of their own, and go on when it has answered.
type witness struct{ db *pgxpool.Pool }

const witnessSQL = `
CREATE TABLE insertion (
    tag         text        PRIMARY KEY,
    workload    text        NOT NULL,
    call        uuid        NOT NULL,
    nth         integer     NOT NULL,
    key         text        NOT NULL,
    order_key   text        NOT NULL,
    delay_us    bigint      NOT NULL,
    asked_at    timestamptz NOT NULL DEFAULT clock_timestamp(),
    id          uuid,
    outcome     text        NOT NULL DEFAULT '',
    holder      uuid,
    answered_at timestamptz,
    released_at timestamptz
);
CREATE TABLE cancelling (job uuid NOT NULL, state text NOT NULL, asked_at timestamptz NOT NULL, answered_at timestamptz NOT NULL DEFAULT clock_timestamp());
CREATE TABLE run (
    run        uuid        PRIMARY KEY,
    job        uuid        NOT NULL,
    process    text        NOT NULL,
    queue      text        NOT NULL,
    attempt    integer     NOT NULL,
    reprocess  integer     NOT NULL,
    crash      integer     NOT NULL,
    inside     integer     NOT NULL,
    permits    integer     NOT NULL,
    most       integer     NOT NULL,
    started_at timestamptz NOT NULL DEFAULT clock_timestamp(),
    ended_at   timestamptz,
    outcome    text        NOT NULL DEFAULT ''
);
CREATE TABLE part (
    part      uuid        PRIMARY KEY,
    job       uuid        NOT NULL,
    name      text        NOT NULL,
    process   text        NOT NULL,
    attempt   integer     NOT NULL,
    reprocess integer     NOT NULL,
    ran_at    timestamptz NOT NULL DEFAULT clock_timestamp(),
    saved_at  timestamptz
);
CREATE TABLE report (
    process   text        NOT NULL,
    at        timestamptz NOT NULL DEFAULT clock_timestamp(),
    running   integer     NOT NULL,
    stuck     integer     NOT NULL,
    free      integer     NOT NULL,
    in_flight integer     NOT NULL,
    permits   integer     NOT NULL,
    handlers  integer     NOT NULL,
    payload   bigint      NOT NULL,
    healthy   boolean     NOT NULL,
    problems  text        NOT NULL,
    lost      bigint      NOT NULL,
    given_off bigint      NOT NULL,
    goroutines integer    NOT NULL,
    memory    bigint      NOT NULL
);`

func openWitness(ctx context.Context, url string, conns int32) (*witness, error) {
	config, err := pgxpool.ParseConfig(url)
	if err != nil {
		return nil, err
	}
	config.MaxConns = conns
	db, err := pgxpool.NewWithConfig(ctx, config)
	if err != nil {
		return nil, err
	}
	return &witness{db}, nil
}

func (w *witness) now(ctx context.Context) (now time.Time, err error) {
	err = w.db.QueryRow(ctx, "SELECT clock_timestamp()").Scan(&now)
	return now, err
}

// asks notes that jobs are about to be inserted.
func (w *witness) asks(ctx context.Context, all []insertion) error {
	var batch pgx.Batch
	for _, in := range all {
		batch.Queue("INSERT INTO insertion (tag, workload, call, nth, key, order_key, delay_us) VALUES ($1, $2, $3, $4, $5, $6, $7)",
			in.tag, in.workload, in.call, in.nth, in.key, in.order, in.delay.Microseconds())
	}
	return w.db.SendBatch(ctx, &batch).Close()
}

// answers notes what became of them.
func (w *witness) answers(ctx context.Context, all []insertion) error {
	var batch pgx.Batch
	for _, in := range all {
		batch.Queue("UPDATE insertion SET id = $2, outcome = $3, holder = $4, answered_at = clock_timestamp() WHERE tag = $1",
			in.tag, orNull(in.id), in.outcome, orNull(in.holder))
	}
	return w.db.SendBatch(ctx, &batch).Close()
}

// releases notes that the commit of held jobs is about to be asked for.
func (w *witness) releases(ctx context.Context, all []insertion) error {
	var batch pgx.Batch
	for _, in := range all {
		batch.Queue("UPDATE insertion SET released_at = clock_timestamp() WHERE tag = $1", in.tag)
	}
	return w.db.SendBatch(ctx, &batch).Close()
}

func orNull(id uuid.UUID) *uuid.UUID {
	if id == noID {
		return nil
	}
	return &id
}

func (w *witness) cancelled(ctx context.Context, c cancelling) error {
	_, err := w.db.Exec(ctx, "INSERT INTO cancelling (job, state, asked_at) VALUES ($1, $2, $3)", c.job, c.state, c.asked)
	return err
}

func (w *witness) starts(ctx context.Context, run uuid.UUID, r handlerRun) error {
	_, err := w.db.Exec(ctx, "INSERT INTO run (run, job, process, queue, attempt, reprocess, crash, inside, permits, most) VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10)",
		run, r.job, r.process, r.queue, r.attempt, r.reprocess, r.crash, r.inside, r.permits, r.limit)
	return err
}

func (w *witness) endsRun(ctx context.Context, run uuid.UUID, outcome string) error {
	_, err := w.db.Exec(ctx, "UPDATE run SET ended_at = clock_timestamp(), outcome = $2 WHERE run = $1", run, outcome)
	return err
}

// runsPart notes that a part of a job is about to run.
func (w *witness) runsPart(ctx context.Context, id uuid.UUID, p part) error {
	_, err := w.db.Exec(ctx, "INSERT INTO part (part, job, name, process, attempt, reprocess) VALUES ($1, $2, $3, $4, $5, $6)",
		id, p.job, p.name, p.process, p.attempt, p.reprocess)
	return err
}

// savesPart notes that what a part came to has been saved.
func (w *witness) savesPart(ctx context.Context, id uuid.UUID) error {
	_, err := w.db.Exec(ctx, "UPDATE part SET saved_at = clock_timestamp() WHERE part = $1", id)
	return err
}

// hasRun reports whether a part has run in a job, under that name.
func (w *witness) hasRun(ctx context.Context, id, job uuid.UUID, name string) (known bool, err error) {
	err = w.db.QueryRow(ctx, "SELECT EXISTS (SELECT FROM part WHERE part = $1 AND job = $2 AND name = $3)", id, job, name).Scan(&known)
	return known, err
}

func (w *witness) reports(ctx context.Context, r report) error {
	_, err := w.db.Exec(ctx, `
		INSERT INTO report (process, running, stuck, free, in_flight, permits, handlers, payload, healthy, problems, lost, given_off, goroutines, memory)
		VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11, $12, $13, $14)`,
		r.process, r.running, r.stuck, r.free, r.inFlight, r.permits, r.handlers, r.payloadBytes, r.healthy, r.problems, r.lost, r.givenOff, r.goroutines, r.memory)
	return err
}

// load reads all of it into a history.
func (w *witness) load(ctx context.Context, h *history) error {
	rows, err := w.db.Query(ctx, `SELECT tag, workload, call, nth, key, order_key, delay_us, asked_at, coalesce(id, '00000000-0000-0000-0000-000000000000'), outcome,
		coalesce(holder, '00000000-0000-0000-0000-000000000000'), coalesce(answered_at, asked_at), released_at FROM insertion`)
	if err != nil {
		return err
	}
	h.inserts, err = pgx.CollectRows(rows, func(row pgx.CollectableRow) (in insertion, err error) {
		var us int64
		var released *time.Time
		err = row.Scan(&in.tag, &in.workload, &in.call, &in.nth, &in.key, &in.order, &us, &in.asked, &in.id, &in.outcome, &in.holder, &in.answered, &released)
		in.delay, in.released = time.Duration(us)*time.Microsecond, orZero(released)
		return in, err
	})
	if err != nil {
		return err
	}
	if rows, err = w.db.Query(ctx, "SELECT job, state, asked_at, answered_at FROM cancelling"); err != nil {
		return err
	}
	h.cancels, err = pgx.CollectRows(rows, func(row pgx.CollectableRow) (c cancelling, err error) {
		err = row.Scan(&c.job, &c.state, &c.asked, &c.answered)
		return c, err
	})
	if err != nil {
		return err
	}
	if rows, err = w.db.Query(ctx, "SELECT job, process, queue, attempt, reprocess, crash, inside, permits, most, started_at, ended_at, outcome FROM run ORDER BY started_at"); err != nil {
		return err
	}
	h.runs, err = pgx.CollectRows(rows, func(row pgx.CollectableRow) (r handlerRun, err error) {
		var end *time.Time
		err = row.Scan(&r.job, &r.process, &r.queue, &r.attempt, &r.reprocess, &r.crash, &r.inside, &r.permits, &r.limit, &r.start, &end, &r.outcome)
		r.end = orZero(end)
		return r, err
	})
	if err != nil {
		return err
	}
	if rows, err = w.db.Query(ctx, "SELECT job, name, process, attempt, reprocess, ran_at, saved_at FROM part ORDER BY ran_at"); err != nil {
		return err
	}
	h.parts, err = pgx.CollectRows(rows, func(row pgx.CollectableRow) (p part, err error) {
		var saved *time.Time
		err = row.Scan(&p.job, &p.name, &p.process, &p.attempt, &p.reprocess, &p.ran, &saved)
		p.saved = orZero(saved)
		return p, err
	})
	if err != nil {
		return err
	}
	if rows, err = w.db.Query(ctx, "SELECT process, at, running, stuck, free, in_flight, permits, handlers, payload, healthy, problems, lost, given_off, goroutines, memory FROM report ORDER BY at"); err != nil {
		return err
	}
	h.reports, err = pgx.CollectRows(rows, func(row pgx.CollectableRow) (r report, err error) {
		err = row.Scan(&r.process, &r.at, &r.running, &r.stuck, &r.free, &r.inFlight, &r.permits, &r.handlers, &r.payloadBytes, &r.healthy, &r.problems, &r.lost, &r.givenOff, &r.goroutines, &r.memory)
		return r, err
	})
	return err
}
