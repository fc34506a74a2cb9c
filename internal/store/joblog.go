package store

import (
	"context"
	"errors"
	"time"

	"github.com/jackc/pgx/v5"
)

// Lines are lines of jobs' logs, by column.
type Lines struct {
	JobIDs   []string
	ClaimIDs []int64
	Seqs     []int64
	Attempts []int32
	AtUS     []int64 // microseconds since 1970
	Levels   []int32
	Messages []string
	Attrs    []*string // JSON text
	Keep     []int64   // seconds; -1 for ever
}

// A flush whose answer was lost is repeated, hence the ON CONFLICT. What handlers
// say is not worth a wait for the disk.
var (
	commitSoon  = Define(`SELECT set_config('synchronous_commit', 'off', true)`)
	insertLines = Define(`
INSERT INTO {schema}.job_log (job_id, claim_id, seq, attempt, at, level, message, attrs, expires_on)
SELECT l.job_id::uuid, l.claim_id, l.seq, l.attempt, 'epoch'::timestamptz + l.at_us * interval '1 microsecond', l.level, l.message, l.attrs::jsonb,
       CASE WHEN l.keep = -1 THEN 'infinity'::date
            ELSE ((clock_timestamp() AT TIME ZONE 'UTC') + l.keep * interval '1 second')::date END
FROM unnest($1::text[], $2::bigint[], $3::bigint[], $4::integer[], $5::bigint[], $6::integer[], $7::text[], $8::text[], $9::bigint[])
     AS l(job_id, claim_id, seq, attempt, at_us, level, message, attrs, keep)
ON CONFLICT DO NOTHING`)
)

// InsertLines stores lines, those that are stored already once.
func (db *DB) InsertLines(ctx context.Context, limit time.Duration, l *Lines) error {
	return db.Tx(ctx, limit, Step{Statement: commitSoon}, Step{Statement: insertLines, Args: []any{
		l.JobIDs, l.ClaimIDs, l.Seqs, l.Attempts, l.AtUS, l.Levels, l.Messages, l.Attrs, l.Keep,
	}})
}

var jobLines = Define(`
SELECT l.attempt, l.at, l.level, l.message, l.attrs
FROM {schema}.job_log AS l
WHERE l.job_id = $1::text::uuid
ORDER BY l.claim_id, l.seq`)

// Line is a stored line.
type Line struct {
	Attempt int32
	At      time.Time
	Level   int32
	Message string
	Attrs   []byte
}

// JobLines calls each for the lines of a job, in order, until that returns false.
func (db *DB) JobLines(ctx context.Context, id [16]byte, each func(Line) bool) error {
	err := db.read(ctx, Step{Statement: jobLines, Args: []any{uuidText(id)}, Scan: func(row pgx.Rows) error {
		var l Line
		if err := row.Scan(&l.Attempt, &l.At, &l.Level, &l.Message, &l.Attrs); err != nil {
			return err
		}
		if !each(l) {
			return errEnough
		}
		return nil
	}})
	if errors.Is(err, errEnough) {
		return nil
	}
	return err
}

var errEnough = errors.New("the caller has read enough")
