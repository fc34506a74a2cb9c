package main

import (
	"context"
	"fmt"
	"os"
)

// resetStatements makes the server count statements from now on, if that was
// asked for.
func (t *trial) resetStatements(ctx context.Context) error {
	if !t.counting {
		return nil
	}
	if _, err := t.db.Exec(ctx, "CREATE EXTENSION IF NOT EXISTS pg_stat_statements"); err != nil {
		return fmt.Errorf("a server of yours needs shared_preload_libraries = pg_stat_statements: %w", err)
	}
	_, err := t.db.Exec(ctx, "SELECT pg_stat_statements_reset(0, (SELECT oid FROM pg_database WHERE datname = current_database()), 0)")
	return err
}

// readStatements notes how many statements the contestant has sent, and, with
// -statements, prints where the server's time has gone.
func (t *trial) readStatements(ctx context.Context) error {
	if !t.counting {
		return nil
	}
	var calls, beats float64
	if err := t.db.QueryRow(ctx, `
SELECT coalesce(sum(s.calls), 0)::float8,
       coalesce(sum(s.calls) FILTER (WHERE $1 <> '' AND s.query ~ $1), 0)::float8
FROM pg_stat_statements AS s
WHERE s.dbid = (SELECT oid FROM pg_database WHERE datname = current_database())
  AND s.query !~ 'pg_stat_statements|pg_wal_lsn_diff|pg_stat_get_dead_tuples'`, t.about.Heartbeat).Scan(&calls, &beats); err != nil {
		return err
	}
	took := t.measured.ended.at.Sub(t.measured.begun.at)
	t.extra["statements_per_s"] = calls / took.Seconds()
	if t.about.Heartbeat != "" {
		intervals := took.Seconds() / t.about.HeartbeatEvery.Seconds()
		t.extra["heartbeats_per_process_and_interval"] = beats / intervals / float64(max(1, t.setup.Processes))
	}
	if t.statements {
		return t.printStatements(ctx)
	}
	return nil
}

// printStatements reports where the server's time has gone.
func (t *trial) printStatements(ctx context.Context) error {
	rows, err := t.db.Query(ctx, `
SELECT calls, rows, total_exec_time, wal_bytes::bigint,
       left(regexp_replace(query, '\s+', ' ', 'g'), 100)
FROM pg_stat_statements
WHERE dbid = (SELECT oid FROM pg_database WHERE datname = current_database())
ORDER BY total_exec_time DESC
LIMIT 12`)
	if err != nil {
		return err
	}
	defer rows.Close()
	jobs := float64(max(1, t.measured.ended.count-t.measured.begun.count))
	fmt.Fprintf(os.Stderr, "%s: calls, rows a call, ms a call, us a job, WAL bytes a job, statement\n", t.name)
	for rows.Next() {
		var calls, n, wal int64
		var ms float64
		var query string
		if err := rows.Scan(&calls, &n, &ms, &wal, &query); err != nil {
			return err
		}
		fmt.Fprintf(os.Stderr, "%8d %8.1f %8.3f %8.2f %8.0f  %s\n", calls, float64(n)/float64(calls), ms/float64(calls),
			ms*1000/jobs, float64(wal)/jobs, query)
	}
	return rows.Err()
}
