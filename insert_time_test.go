package simplequeue_test

import (
	"fmt"
	"testing"
	"time"

	"github.com/jackc/pgx/v5/pgxpool"

	"github.com/simplequeue/simplequeue"
	"github.com/simplequeue/simplequeue/internal/pgtest"
)

// dbNow is the database's clock.
func dbNow(t testing.TB, pool *pgxpool.Pool) time.Time {
	t.Helper()
	return queryOne[time.Time](t, pool, "SELECT clock_timestamp()")
}

// A delay counts from the database's clock, and what is due now or was due
// before is pending at once; a job never waits because a client's clock is off.
func TestDelayAndRunAtAreJudgedByTheDatabase(t *testing.T) {
	t.Parallel()
	pool := pgtest.New(t)
	q := newQueue(t, pool, simplequeue.Options{})
	before := dbNow(t, pool)
	id := insert(t, q, simplequeue.NewJob{Queue: "a", Delay: time.Hour})
	after := dbNow(t, pool)
	if at := get(t, q, id).RunAt; at.Before(before.Add(time.Hour)) || at.After(after.Add(time.Hour)) {
		t.Errorf("run at %v, want an hour after %v to %v", at, before, after)
	}
	for name, c := range map[string]struct {
		job  simplequeue.NewJob
		want simplequeue.State
	}{
		"now":       {simplequeue.NewJob{Queue: "a"}, simplequeue.StatePending},
		"past":      {simplequeue.NewJob{Queue: "a", RunAt: before.Add(-time.Hour)}, simplequeue.StatePending},
		"just past": {simplequeue.NewJob{Queue: "a", RunAt: before}, simplequeue.StatePending},
		"future":    {simplequeue.NewJob{Queue: "a", RunAt: after.Add(time.Hour)}, simplequeue.StateWaiting},
		"delay":     {simplequeue.NewJob{Queue: "a", Delay: time.Minute}, simplequeue.StateWaiting},
	} {
		if got := get(t, q, insert(t, q, c.job)); got.State != c.want || got.State == simplequeue.StateWaiting && got.Reason != "scheduled" {
			t.Errorf("%s: job is %s (%s), want %s", name, got.State, got.Reason, c.want)
		}
	}
}

// The time zones of server, session and program change nothing: times are
// instants, to the microsecond.
func TestTimeZonesDoNotMatter(t *testing.T) {
	t.Parallel()
	url := pgtest.Database(t)
	execute(t, pgtest.Pool(t, url, 1), `DO $$ BEGIN
		EXECUTE format('ALTER DATABASE %I SET TimeZone = ''Asia/Kathmandu''', current_database());
	END $$`)
	config := pgtest.Pool(t, url, 1).Config()
	config.ConnConfig.RuntimeParams["timezone"] = "America/St_Johns"
	session, err := pgxpool.NewWithConfig(t.Context(), config)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(session.Close)
	at := time.Date(2100, 2, 28, 23, 59, 59, 123_456_789, time.FixedZone("", -7*3600))
	for i, pool := range []*pgxpool.Pool{pgtest.Pool(t, url, 2), session} {
		q := newQueue(t, pool, simplequeue.Options{})
		for path, insertInto := range insertPaths(t, pool, q) {
			r, err := insertInto([]simplequeue.NewJob{{Queue: "a", RunAt: at}, {Queue: "a", Delay: time.Hour}, {Queue: "a", RunAt: dbNow(t, pool).In(at.Location())}})
			if err != nil {
				t.Fatalf("%s: %v", path, err)
			}
			if got := get(t, q, r[0].ID).RunAt; !got.Equal(at.Truncate(time.Microsecond)) {
				t.Errorf("%s, pool %d: run at %v, want %v", path, i, got, at)
			}
			if wait := get(t, q, r[1].ID).RunAt.Sub(dbNow(t, pool)); wait < 59*time.Minute || wait > time.Hour {
				t.Errorf("%s, pool %d: the delayed job waits %v more", path, i, wait)
			}
			if got := state(t, q, r[2].ID); got != simplequeue.StatePending {
				t.Errorf("%s, pool %d: a job due now is %s", path, i, got)
			}
		}
	}
}

// Jobs that become due run in the order of their times, and those of one
// instant in the order of their ids.
func TestJobsOfOneInstantKeepTheirOrder(t *testing.T) {
	t.Parallel()
	pool := pgtest.New(t)
	q := newQueue(t, pool, simplequeue.Options{})
	at := dbNow(t, pool).Add(300 * time.Millisecond)
	var jobs []simplequeue.NewJob
	for i := range 50 {
		jobs = append(jobs, simplequeue.NewJob{Queue: "a", RunAt: at.Add(time.Duration(i/10) * time.Microsecond), Kind: fmt.Sprintf("%02d", i)})
	}
	if _, err := q.InsertMany(t.Context(), jobs); err != nil {
		t.Fatal(err)
	}
	worker := newQueue(t, pool, simplequeue.Options{
		Handlers: []simplequeue.Handler{simplequeue.HandlerFunc("other", nil)},
	})
	start(t, worker) // promotes, and runs none of them
	eventually(t, "all promoted", func() bool { return counts(t, q, "a")[simplequeue.StatePending] == 50 })
	if n := queryOne[int](t, pool, `SELECT count(*) FROM (
		SELECT kind::int AS n, row_number() OVER (ORDER BY seq) - 1 AS place FROM simplequeue.job_queue) AS j WHERE n = place`); n != 50 {
		t.Errorf("%d of 50 jobs are at their place", n)
	}
}
