package store

import (
	"time"

	"github.com/jackc/pgx/v5"
)

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
	Result         []byte
	DuplicateOf    *[16]byte
}

const infoColumns = `j.id, j.queue, j.kind, j.state, j.reason, j.priority, j.attempt, j.max_attempts,
    j.reprocess_count, j.crash_count, j.unique_key, j.fingerprint, j.created_at, nullif(j.run_at, 'infinity'),
    j.started_at, j.finished_at, j.worker_id, j.payload, j.raw, j.errors, j.props, j.result,
    (SELECT f.duplicate_of FROM {schema}.job_fingerprint AS f WHERE f.fingerprint = j.fingerprint AND f.job_id = j.id)`

// view is where to look for the jobs that a filter has picked: the live ones
// alone where no others are asked for.
func (f *Filter) view() string {
	for _, s := range f.of() {
		if !s.live {
			return "job"
		}
	}
	return "job_live"
}

// scan reads infoColumns.
func (i *Info) scan(row pgx.Rows) error {
	return row.Scan(&i.ID, &i.Queue, &i.Kind, &i.State, &i.Reason, &i.Priority, &i.Attempt, &i.MaxAttempts,
		&i.ReprocessCount, &i.CrashCount, &i.UniqueKey, &i.Fingerprint, &i.CreatedAt, &i.RunAt,
		&i.StartedAt, &i.FinishedAt, &i.WorkerID, &i.Payload, &i.Raw, &i.Errors, &i.Props, &i.Result, &i.DuplicateOf)
}
