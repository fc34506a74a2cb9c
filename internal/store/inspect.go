package store

import (
	"context"
	"fmt"
	"strings"
	"time"

	"github.com/jackc/pgx/v5"
)

// Filter selects jobs of the view; zero fields select all.
type Filter struct {
	IDs         []string
	Queue       string
	Kind        string
	UniqueKey   string
	Fingerprint string
	States      []string
	LiveOnly    bool // no terminal state is asked for
	After       string
	Limit       int
}

// Info is a row of the view.
type Info struct {
	ID             [16]byte
	Queue          string
	Kind           string
	State          string
	Reason         *string
	Priority       int16
	Attempt        int32
	MaxAttempts    int32
	ReprocessCount int32
	CrashCount     int32
	UniqueKey      *string
	Fingerprint    *string
	CreatedAt      time.Time
	RunAt          *time.Time // nil for a parked job, whose time is infinity
	StartedAt      *time.Time
	FinishedAt     *time.Time
	WorkerID       *[16]byte
	Payload        []byte
	Raw            []byte
	Errors         []byte
	Props          []byte
	DuplicateOf    *[16]byte
}

const infoColumns = `j.id, j.queue, j.kind, j.state, j.reason, j.priority, j.attempt, j.max_attempts,
    j.reprocess_count, j.crash_count, j.unique_key, j.fingerprint, j.created_at, nullif(j.run_at, 'infinity'),
    j.started_at, j.finished_at, j.worker_id, j.payload, j.raw, j.errors, j.props,
    (SELECT f.duplicate_of FROM {schema}.job_fingerprint AS f WHERE f.fingerprint = j.fingerprint AND f.job_id = j.id)`

// where builds the condition of a filter. It is built, not one text with
// "$1 IS NULL OR", so that the planner sees which indexes apply.
func (f *Filter) where() (string, []any) {
	conds, args := []string{"true"}, []any{}
	add := func(cond string, arg any) {
		args = append(args, arg)
		conds = append(conds, fmt.Sprintf(cond, len(args)))
	}
	if f.IDs != nil {
		add("j.id = ANY ($%d::text[]::uuid[])", f.IDs)
	}
	if f.Queue != "" {
		add("j.queue = $%d::text", f.Queue)
	}
	if f.Kind != "" {
		add("j.kind = $%d::text", f.Kind)
	}
	if f.UniqueKey != "" {
		add("j.unique_key = $%d::text", f.UniqueKey)
		if f.LiveOnly {
			// The primary key starts with the scope: the queue, or empty for a
			// global key. Every queue of a live job has a lane.
			args = append(args, f.Queue)
			conds = append(conds, fmt.Sprintf(
				`j.id IN (SELECT u.job_id FROM {schema}.job_unique AS u WHERE u.key = $%d::text AND u.scope = ANY (ARRAY(
      SELECT DISTINCT ltrim(l.queue, '*') FROM {schema}.job_lane AS l WHERE $%[2]d::text IN ('', ltrim(l.queue, '*')) UNION ALL SELECT '')))`,
				len(args)-1, len(args)))
		}
	}
	if f.Fingerprint != "" {
		add("j.fingerprint = $%d::text", f.Fingerprint)
		if f.LiveOnly {
			add("j.id IN (SELECT f.job_id FROM {schema}.job_fingerprint AS f WHERE f.fingerprint = $%d::text)", f.Fingerprint)
		}
	}
	if len(f.States) > 0 {
		add("j.state = ANY ($%d::text[])", f.States)
	}
	if f.After != "" {
		add("j.id > $%d::text::uuid", f.After)
	}
	return strings.Join(conds, "\n  AND "), args
}

// view is what to read: where only live jobs are asked for, not the archive.
func (f *Filter) view() string {
	if f.LiveOnly {
		return "job_live"
	}
	return "job"
}

// List returns the jobs that match, by id.
func (s *Schema) List(ctx context.Context, q interface {
	Query(ctx context.Context, sql string, args ...any) (pgx.Rows, error)
}, f Filter,
) ([]Info, error) {
	where, args := f.where()
	sql := "SELECT " + infoColumns + "\nFROM {schema}." + f.view() + " AS j\nWHERE " + where +
		"\nORDER BY j.id\nLIMIT " + fmt.Sprint(f.Limit)
	rows, err := q.Query(ctx, s.expand(sql), args...)
	if err != nil {
		return nil, err
	}
	defer rows.Close()
	var infos []Info
	for rows.Next() {
		var i Info
		err := rows.Scan(&i.ID, &i.Queue, &i.Kind, &i.State, &i.Reason, &i.Priority, &i.Attempt, &i.MaxAttempts,
			&i.ReprocessCount, &i.CrashCount, &i.UniqueKey, &i.Fingerprint, &i.CreatedAt, &i.RunAt,
			&i.StartedAt, &i.FinishedAt, &i.WorkerID, &i.Payload, &i.Raw, &i.Errors, &i.Props, &i.DuplicateOf)
		if err != nil {
			return nil, err
		}
		infos = append(infos, i)
	}
	return infos, rows.Err()
}

// Count returns how many jobs match, by state.
func (s *Schema) Count(ctx context.Context, q interface {
	Query(ctx context.Context, sql string, args ...any) (pgx.Rows, error)
}, f Filter,
) (map[string]int64, error) {
	where, args := f.where()
	rows, err := q.Query(ctx, s.expand("SELECT j.state, count(*)\nFROM {schema}."+f.view()+" AS j\nWHERE "+where+"\nGROUP BY j.state"), args...)
	if err != nil {
		return nil, err
	}
	defer rows.Close()
	counts := map[string]int64{}
	for rows.Next() {
		var state string
		var n int64
		if err := rows.Scan(&state, &n); err != nil {
			return nil, err
		}
		counts[state] = n
	}
	return counts, rows.Err()
}
