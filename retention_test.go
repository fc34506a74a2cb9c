package simplequeue_test

import (
	"context"
	"errors"
	"testing"
	"time"

	"github.com/google/uuid"
	"github.com/jackc/pgx/v5/pgxpool"

	"github.com/simplequeue/simplequeue"
	"github.com/simplequeue/simplequeue/internal/pgtest"
)

// keptUntil is the day on which a finished job expires, "" if it is gone.
func keptUntil(t testing.TB, pool *pgxpool.Pool, id uuid.UUID) string {
	t.Helper()
	return queryOne[string](t, pool, "SELECT coalesce((SELECT expires_on::text FROM simplequeue.job WHERE id = $1), '')", id)
}

// inDays is the day n days after a job that ends now, by the database's clock.
func inDays(t testing.TB, pool *pgxpool.Pool, n int) string {
	t.Helper()
	return queryOne[string](t, pool, "SELECT ((clock_timestamp() AT TIME ZONE 'UTC')::date + $1::int)::text", n)
}

// A finished job is kept for as long as it says, else as its queue says, else
// as the options say; completed jobs and the others each for their own time.
// An outcome that takes the detour over job_finished is kept as long.
func TestRetentionByJobQueueAndOption(t *testing.T) {
	t.Parallel()
	const day = 24 * time.Hour
	for name, aside := range map[string]bool{"direct": false, "aside": true} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			pool := pgtest.New(t)
			opts := handler("*", func(_ context.Context, job *simplequeue.Job) error {
				if job.Kind == "dead" {
					return simplequeue.Critical(errors.New("x"))
				}
				return nil
			})
			opts.Retention = simplequeue.Retention{Archive: 3 * day, DeadLetter: 5 * day}
			opts.JanitorInterval = 20 * time.Millisecond
			opts.Queues = map[string]simplequeue.QueueOptions{
				"archive": {Retention: simplequeue.Retention{Archive: 11 * day}},
				"dead":    {Retention: simplequeue.Retention{DeadLetter: simplequeue.KeepForever}},
				"nothing": {Retention: simplequeue.Retention{Archive: simplequeue.KeepNothing, DeadLetter: simplequeue.KeepNothing}},
			}
			if aside {
				opts = opts.FinishAside()
			}
			q := newQueue(t, pool, opts)
			start(t, q)
			const forever, gone = "infinity", ""
			before := inDays(t, pool, 0)
			for _, c := range []struct {
				queue    string
				own      simplequeue.Retention
				archived any // days, or a day
				dead     any
			}{
				{"default", simplequeue.Retention{}, 3, 5},
				{"archive", simplequeue.Retention{}, 11, 5},
				{"dead", simplequeue.Retention{}, 3, forever},
				{"nothing", simplequeue.Retention{}, gone, gone},
				{"default", simplequeue.Retention{Archive: 40 * day}, 40, 5},
				{"default", simplequeue.Retention{Archive: simplequeue.KeepForever, DeadLetter: 300 * day}, forever, 300},
				{"archive", simplequeue.Retention{Archive: simplequeue.KeepNothing, DeadLetter: simplequeue.KeepNothing}, gone, gone},
				{"nothing", simplequeue.Retention{Archive: 87600 * time.Hour, DeadLetter: 2 * day}, 3650, 2},
			} {
				for kind, want := range map[string]any{"done": c.archived, "dead": c.dead} {
					id := insert(t, q, simplequeue.NewJob{Queue: c.queue, Kind: kind, Retention: c.own})
					eventually(t, "the job was moved", func() bool {
						n := queryOne[int](t, pool, `SELECT count(*) FROM simplequeue.job WHERE id = $1 AND (expires_on IS NULL OR state NOT IN ('completed', 'critical_failure'))`, id)
						return n == 0
					})
					day, ok := want.(string)
					if !ok {
						day = inDays(t, pool, want.(int))
					}
					if got := keptUntil(t, pool, id); got != day && before == inDays(t, pool, 0) {
						t.Errorf("queue %s, own %+v, %s: kept until %q, want %q", c.queue, c.own, kind, got, day)
					}
				}
			}
		})
	}
}

// A partition that an outcome needs and nobody has made is made then; the
// outcome waits for nothing else, and the janitor's moves neither.
func TestAMissingPartitionIsMadeOnFirstUse(t *testing.T) {
	t.Parallel()
	for name, aside := range map[string]bool{"direct": false, "aside": true} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			pool := pgtest.New(t)
			opts := handler("a", func(_ context.Context, job *simplequeue.Job) error {
				if job.Kind == "dead" {
					return simplequeue.Critical(nil)
				}
				return nil
			})
			opts.JanitorInterval = time.Hour // the completer is alone
			if aside {
				opts = opts.FinishAside()
				opts.JanitorInterval = 20 * time.Millisecond
			}
			q := newQueue(t, pool, opts)
			start(t, q)
			for range 2 {
				for _, kind := range []string{"done", "dead"} {
					id := insert(t, q, simplequeue.NewJob{Queue: "a", Kind: kind})
					eventually(t, kind+" was moved", func() bool { return keptUntil(t, pool, id) != "" })
				}
				execute(t, pool, `DO $$ DECLARE child regclass; BEGIN
					FOR child IN SELECT inhrelid FROM pg_inherits WHERE inhrelid::regclass::text ~ '_p[0-9]{8}$' LOOP
						EXECUTE 'DROP TABLE ' || child;
					END LOOP;
				END $$`)
			}
		})
	}
}

// "Keep nothing" leaves nothing, of a cancelled job neither.
func TestKeepNothingKeepsNothing(t *testing.T) {
	t.Parallel()
	pool := pgtest.New(t)
	nothing := simplequeue.Retention{Archive: simplequeue.KeepNothing, DeadLetter: simplequeue.KeepNothing}
	opts := handler("a", func(context.Context, *simplequeue.Job) error { return nil })
	opts.Retention = nothing
	opts.JanitorInterval = 20 * time.Millisecond
	q := newQueue(t, pool, opts)
	start(t, q)
	done := insert(t, q, simplequeue.NewJob{Queue: "a", Payload: make([]byte, 5000), UniqueKey: "k", Fingerprint: "f"})
	eventually(t, "the job is gone", func() bool { return state(t, q, done) == "" })
	cancelled := insert(t, q, simplequeue.NewJob{Queue: "b", Payload: make([]byte, 5000), UniqueKey: "k", Fingerprint: "f"})
	if _, err := q.Cancel(t.Context(), cancelled, ""); err != nil {
		t.Fatal(err)
	}
	eventually(t, "the cancelled job is gone", func() bool { return state(t, q, cancelled) == "" })
	if _, err := q.Cancel(t.Context(), done, ""); !errors.Is(err, simplequeue.ErrNotFound) {
		t.Errorf("Cancel: %v, want ErrNotFound", err)
	}
	for _, table := range []string{"job_payload", "job_unique", "job_fingerprint", "job_finished", "job_running"} {
		if n := queryOne[int](t, pool, "SELECT count(*) FROM simplequeue."+table); n != 0 {
			t.Errorf("%s holds %d rows", table, n)
		}
	}
}
