package main

import (
	"context"
	"fmt"
	"time"

	"github.com/google/uuid"
	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgxpool"
)

// The audit notes each row that enters or leaves a table of jobs, in the
// transaction that moves it: what is rolled back, or lost in a failover, is not
// noted either. A row of a job that has ended which is changed has entered again.
const auditSQL = `
CREATE SCHEMA chaos;
CREATE TABLE chaos.move (
    n         bigint      GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    at        timestamptz NOT NULL,
    place     text        NOT NULL,
    entered   boolean     NOT NULL,
    job       uuid        NOT NULL,
    claim     bigint      NOT NULL,
    nonce     bigint      NOT NULL,
    attempt   integer     NOT NULL,
    reprocess integer     NOT NULL,
    crash     integer     NOT NULL,
    state     text        NOT NULL,
    reason    text        NOT NULL,
    key       text        NOT NULL,
    due       timestamptz,
    process   text        NOT NULL
);
CREATE FUNCTION chaos.note() RETURNS trigger LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, pg_temp AS $$
DECLARE
    r jsonb;
BEGIN
    IF TG_OP = 'DELETE' THEN
        OLD.payload := NULL;
        r := to_jsonb(OLD);
    ELSE
        NEW.payload := NULL;
        r := to_jsonb(NEW);
    END IF;
    INSERT INTO chaos.move (at, place, entered, job, claim, nonce, attempt, reprocess, crash, state, reason, key, due, process)
    VALUES (clock_timestamp(), TG_ARGV[0], TG_OP <> 'DELETE', (r ->> 'id')::uuid,
            coalesce((r ->> 'claim_id')::bigint, 0), coalesce((r ->> 'claim_nonce')::bigint, 0),
            (r ->> 'attempt')::integer, (r ->> 'reprocess_count')::integer, (r ->> 'crash_count')::integer,
            coalesce(r ->> 'state', ''), coalesce(r ->> 'reason', ''), coalesce(r ->> 'unique_scope' || '/' || (r ->> 'unique_key'), ''),
            nullif(r ->> 'run_at', 'infinity')::timestamptz, current_setting('application_name'));
    RETURN NULL;
END
$$;`

var audited = []string{"job_queue", "job_waiting", running, finished, "job_queue_archive", "job_queue_dlq"}

// installAudit begins to note moves.
func installAudit(ctx context.Context, db *pgxpool.Pool) error {
	if _, err := db.Exec(ctx, auditSQL); err != nil {
		return fmt.Errorf("audit: %w", err)
	}
	for _, table := range audited {
		events := "INSERT OR DELETE"
		if ends[table] {
			events += " OR UPDATE"
		}
		if _, err := db.Exec(ctx, fmt.Sprintf(
			"CREATE TRIGGER chaos AFTER %s ON simplequeue.%s FOR EACH ROW EXECUTE FUNCTION chaos.note('%s')", events, table, table)); err != nil {
			return fmt.Errorf("audit of %s: %w", table, err)
		}
	}
	return nil
}

// loadAudit reads what the audit has noted.
func loadAudit(ctx context.Context, db *pgxpool.Pool) ([]move, error) {
	rows, err := db.Query(ctx, `
		SELECT n, at, place, entered, job, claim, nonce, attempt, reprocess, crash, state, reason, key, due, process
		FROM chaos.move
		ORDER BY n`)
	if err != nil {
		return nil, err
	}
	return pgx.CollectRows(rows, func(row pgx.CollectableRow) (m move, err error) {
		var due *time.Time
		err = row.Scan(&m.n, &m.at, &m.place, &m.entered, &m.job, &m.claim, &m.nonce, &m.attempt, &m.reprocess, &m.crash, &m.state, &m.reason, &m.key, &due, &m.process)
		m.due = orZero(due)
		return m, err
	})
}

// loadFinals reads all jobs, wherever they are.
func loadFinals(ctx context.Context, db *pgxpool.Pool) ([]final, error) {
	rows, err := db.Query(ctx, `
		SELECT j.id, coalesce(j.payload ->> 'tag', ''), j.queue, j.state, j.attempt, j.crash_count,
		       (SELECT count(*) FROM jsonb_array_elements(coalesce(j.errors, '[]')) AS e WHERE e ->> 'reason' = 'worker_lost'),
		       coalesce(j.unique_key, ''), coalesce(j.fingerprint, '')
		FROM simplequeue.job AS j`)
	if err != nil {
		return nil, err
	}
	return pgx.CollectRows(rows, func(row pgx.CollectableRow) (f final, err error) {
		err = row.Scan(&f.id, &f.tag, &f.workload, &f.state, &f.attempt, &f.crash, &f.lost, &f.key, &f.fingerprint)
		return f, err
	})
}

// loadEffects counts what the handlers of each job have written in the
// transactions that complete it.
func loadEffects(ctx context.Context, db *pgxpool.Pool) (map[uuid.UUID]int, error) {
	rows, err := db.Query(ctx, "SELECT job, count(*) FROM chaos.effect GROUP BY job")
	if err != nil {
		return nil, err
	}
	found := map[uuid.UUID]int{}
	var job uuid.UUID
	var n int
	_, err = pgx.ForEachRow(rows, []any{&job, &n}, func() error { found[job] = n; return nil })
	return found, err
}

// emptyWhenQuiet are the tables, or parts of tables, in which a queue without
// live jobs has no rows.
var emptyWhenQuiet = []string{
	"job_queue", "job_waiting", running, finished, "job_lease", "job_cancel", "job_payload", "job_unique", "job_fingerprint",
	"job_gated", "job_gate_hold", "job_gate_look", "job_held", "job_slot WHERE job_id IS NOT NULL",
}

// loadLeftovers counts the rows of emptyWhenQuiet.
func loadLeftovers(ctx context.Context, db *pgxpool.Pool) (map[string]int, error) {
	found := map[string]int{}
	for _, table := range emptyWhenQuiet {
		var n int
		if err := db.QueryRow(ctx, "SELECT count(*) FROM simplequeue."+table).Scan(&n); err != nil {
			return nil, err
		}
		found[table] = n
	}
	return found, nil
}

// loadBytes measures the tables of the schema, with their indexes.
func loadBytes(ctx context.Context, db *pgxpool.Pool) (map[string]int64, error) {
	return byName[int64](ctx, db, `
		SELECT c.relname, pg_total_relation_size(c.oid)
		FROM pg_class AS c
		WHERE c.relnamespace = 'simplequeue'::regnamespace AND c.relkind = 'r'`)
}

// loadConnections counts the connections of each worker.
func loadConnections(ctx context.Context, db *pgxpool.Pool) (map[string]int, error) {
	return byName[int](ctx, db, `
		SELECT application_name, count(*)
		FROM pg_stat_activity
		WHERE datname = current_database() AND starts_with(application_name, 'worker')
		GROUP BY application_name`)
}

// byName reads rows of a name and a number.
func byName[N int | int64](ctx context.Context, db *pgxpool.Pool, query string) (map[string]N, error) {
	rows, err := db.Query(ctx, query)
	if err != nil {
		return nil, err
	}
	found := map[string]N{}
	var name string
	var n N
	_, err = pgx.ForEachRow(rows, []any{&name, &n}, func() error { found[name] = n; return nil })
	return found, err
}

// stillLive lists live jobs, by queue and state, for people.
func stillLive(ctx context.Context, db *pgxpool.Pool) ([]string, error) {
	rows, err := db.Query(ctx, `
		SELECT format('%s %s %s: %s, e.g. %s, due in %s, crashes %s', queue, state, coalesce(reason, ''), count(*), (array_agg(id))[1], min(nullif(run_at, 'infinity')) - clock_timestamp(), max(crash_count))
		FROM simplequeue.job_live
		GROUP BY queue, state, reason`)
	if err != nil {
		return nil, err
	}
	return pgx.CollectRows(rows, pgx.RowTo[string])
}

// payload is that of every job: the tag ties it to its insertion, the rest tells
// its handler what to do.
type payload struct {
	Tag   string `json:"tag"`
	Ms    int    `json:"ms,omitempty"`    // how long to work
	Fails int    `json:"fails,omitempty"` // how many attempts to fail
	Again int    `json:"again,omitempty"` // how often to reschedule
	Do    string `json:"do,omitempty"`
	Fill  string `json:"fill,omitempty"`
	Part  int    `json:"part,omitempty"` // how far its checkpoints have come
}

var noID uuid.UUID

func orZero(t *time.Time) time.Time {
	if t == nil {
		return time.Time{}
	}
	return *t
}
