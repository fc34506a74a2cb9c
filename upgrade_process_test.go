//go:build unix

package simplequeue_test

import (
	"context"
	"errors"
	"fmt"
	"syscall"
	"testing"
	"time"

	"github.com/google/uuid"
	"github.com/jackc/pgx/v5"

	"github.com/simplequeue/simplequeue"
	"github.com/simplequeue/simplequeue/internal/pgtest"
	"github.com/simplequeue/simplequeue/migrate"
)

func init() {
	// A newer worker keeps something with each job that it runs, of which an
	// older one knows nothing.
	scenarios["upgrade"] = func(w *workerProcess) {
		h := history{w.pool}
		opts := handler("q", func(_ context.Context, job *simplequeue.Job) error {
			err := errors.Join(h.note(job, "start"), h.note(job, w.argument))
			if w.argument == "newer" {
				_, e := w.pool.Exec(context.Background(), `UPDATE simplequeue.job_running
					SET props = coalesce(props, '{}') || '{"newer": [1.50, null]}' WHERE id = $1`, job.ID)
				err = errors.Join(err, e)
			}
			if err = errors.Join(err, h.note(job, "end")); err != nil {
				return err
			}
			switch {
			case job.Kind == "dead" && job.Attempt == 2:
				return simplequeue.Critical(errors.New("no"))
			case job.Attempt-job.CrashCount < 3:
				return simplequeue.RetryAfter(time.Millisecond, errors.New("once more"))
			}
			return nil
		})
		opts.GlobalPermits = 4
		w.run(opts)
	}
}

// future is a migration of a later version, of the sorts that there have been.
var future = []string{
	"SET LOCAL lock_timeout = '3s'",
	"CREATE TABLE simplequeue.job_future (job_id uuid NOT NULL PRIMARY KEY)",
	"ALTER TABLE simplequeue.job_payload ADD COLUMN future jsonb",
	"ALTER TABLE simplequeue.job_worker ADD COLUMN future text[] NOT NULL DEFAULT '{}'",
	"CREATE INDEX job_queue_dlq_future ON simplequeue.job_queue_dlq (kind, id)",
	fmt.Sprintf("INSERT INTO simplequeue.schema_migration (version, name, checksum) VALUES (%d, 'future', '')", migrate.Latest()+1),
}

// The schema is brought to a later version under a worker that works, which then
// goes on beside a newer one; workers of both sorts are killed and started again,
// on a schema that is newer than they are. Every job ends once, with all that
// either sort has kept with it.
func TestUpgradeUnderLiveWorkers(t *testing.T) {
	t.Parallel()
	url := pgtest.Database(t)
	pool := pgtest.Pool(t, url, 8)
	h := newHistory(t, pool)
	q := newQueue(t, pool, simplequeue.Options{})
	var ids []uuid.UUID
	add := func(n int) {
		for i := range n {
			job := simplequeue.NewJob{Queue: "q", MaxAttempts: 9}
			if i%5 == 0 {
				job.Kind = "dead"
			}
			ids = append(ids, fromTheFuture(t, pool, q, job))
		}
	}
	seen := func(query string) func() bool {
		return func() bool { return queryOne[bool](t, pool, "SELECT EXISTS ("+query+")") }
	}
	add(20)
	older := startProcess(t, "upgrade", url, "older")
	eventually(t, "the older worker works", seen("SELECT FROM history WHERE event = 'end'"))
	eventually(t, "the schema is at a later version", func() bool {
		err := pgx.BeginFunc(t.Context(), pool, func(tx pgx.Tx) error {
			for _, statement := range future {
				if _, err := tx.Exec(t.Context(), statement); err != nil {
					return err
				}
			}
			return nil
		})
		if code := sqlState(err); err != nil && code != "55P03" && code != "40P01" {
			t.Fatal(err)
		}
		return err == nil
	})
	newer := startProcess(t, "upgrade", url, "newer")
	const after = "SELECT FROM history AS a JOIN history AS b ON b.job = a.job AND b.at > a.at WHERE a.event = '%s' AND b.event = '%s'"
	for _, both := range [][2]string{{"older", "newer"}, {"newer", "older"}} {
		eventually(t, both[0]+" before "+both[1], func() bool {
			add(5)
			return seen(fmt.Sprintf(after, both[0], both[1]))()
		})
	}
	for _, p := range []*process{older, newer} {
		add(10)
		p.signal(t, syscall.SIGKILL)
		p.awaitEnd(t)
	}
	startProcess(t, "upgrade", url, "older") // on a schema that it does not know
	eventually(t, "all have ended", func() bool {
		return queryOne[int](t, pool, "SELECT count(*) FROM simplequeue.job WHERE finished_at IS NOT NULL") == len(ids)
	})
	h.check(t, ids)
	for _, id := range ids {
		keptWhatItHad(t, pool, id.String(), id, true)
	}
	if n := queryOne[int](t, pool, `SELECT count(*) FROM simplequeue.job AS j JOIN history AS h ON h.job = j.id AND h.event = 'newer'
		JOIN history AS e ON e.job = j.id AND e.event = 'end' AND e.attempt = h.attempt
		WHERE j.props -> 'newer' IS DISTINCT FROM '[1.50, null]'`); n != 0 {
		t.Errorf("%d jobs lost what a newer worker had kept with them", n)
	}
	for _, table := range []string{"job_queue", "job_waiting", "job_running", "job_unique"} {
		if n := queryOne[int](t, pool, "SELECT count(*) FROM simplequeue."+table); n != 0 {
			t.Errorf("%d rows are left in %s", n, table)
		}
	}
}
