package store

import (
	"context"
	"time"
)

// HeldJobs are jobs that have been inserted to be committed later.
type HeldJobs struct {
	IDs      []string
	HoldsUS  []*int64
	RunAts   []*time.Time
	DelaysUS []*int64
	Gated    []bool // they wait at a gate too
}

var hold = Define(`
SELECT {schema}.hold_jobs($1::text[]::uuid[], $2::bigint[], $3::timestamptz[], $4::bigint[], $5::boolean[])`)

// Hold notes until when jobs are held.
func (s *Schema) Hold(ctx context.Context, q Querier, h *HeldJobs) error {
	return drain(q.Query(ctx, s.SQL(hold), h.IDs, h.HoldsUS, h.RunAts, h.DelaysUS, h.Gated))
}

var commitHeld = Define(`
SELECT c.committed::text, c.queue_name, c.lane_number, c.is_gated
FROM {schema}.commit_held($1::text[]::uuid[]) AS c`)

// CommittedJob is a job that CommitHeld has let go.
type CommittedJob struct {
	ID    string
	Lane  Lane
	Gated bool
}

// CommitHeld lets those of the jobs go that are held, and returns them.
func (s *Schema) CommitHeld(ctx context.Context, q Querier, ids []string) ([]CommittedJob, error) {
	rows, err := q.Query(ctx, s.SQL(commitHeld), ids)
	if err != nil {
		return nil, err
	}
	defer rows.Close()
	var list []CommittedJob
	for rows.Next() {
		var c CommittedJob
		if err := rows.Scan(&c.ID, &c.Lane.Queue, &c.Lane.Priority, &c.Gated); err != nil {
			return nil, err
		}
		list = append(list, c)
	}
	return list, rows.Err()
}
