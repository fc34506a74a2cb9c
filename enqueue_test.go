package simplequeue_test

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"math/rand/v2"
	"os/exec"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/google/uuid"
	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgxpool"

	"github.com/simplequeue/simplequeue"
	"github.com/simplequeue/simplequeue/internal/pgtest"
	"github.com/simplequeue/simplequeue/migrate"
)

// enqueueArgs are the arguments of simplequeue.enqueue that say what a job says.
func enqueueArgs(job simplequeue.NewJob) pgx.NamedArgs {
	args := pgx.NamedArgs{
		"queue": job.Queue, "payload": job.Payload, "kind": job.Kind, "priority": job.Priority, "max_attempts": job.MaxAttempts,
		"unique_key": job.UniqueKey, "unique_global": job.UniqueGlobal, "unique_fields": job.Unique.Fields,
		"on_conflict": []string{"skip", "replace", "debounce"}[job.Unique.OnConflict],
		"order_key":   job.OrderKey, "fairness_key": job.FairnessKey,
		"fingerprint": job.Fingerprint, "metadata": job.Metadata, "trace_context": job.TraceContext, "raw": job.Raw, "awaited": job.Awaited,
	}
	keep := func(name string, d time.Duration) {
		switch d {
		case 0:
		case simplequeue.KeepForever:
			args[name] = "forever"
		case simplequeue.KeepNothing:
			args[name] = "nothing"
		default:
			args[name] = fmt.Sprintf("%f seconds", d.Seconds())
		}
	}
	keep("keep_archive", job.Retention.Archive)
	keep("keep_dead_letter", job.Retention.DeadLetter)
	if job.Timeout == simplequeue.NoTimeout {
		args["timeout"] = "none"
	} else {
		keep("timeout", job.Timeout)
	}
	if job.ID != uuid.Nil {
		args["job_id"] = job.ID
	}
	if !job.RunAt.IsZero() {
		args["run_at"] = job.RunAt
	}
	if job.Unique.Zone != "" {
		args["unique_zone"] = job.Unique.Zone
	}
	for name, d := range map[string]time.Duration{"delay": job.Delay, "hold": job.Hold, "unique_window": job.Unique.Window, "unique_max_delay": job.Unique.MaxDelay} {
		if d != 0 {
			args[name] = d
		}
	}
	return args
}

// enqueue inserts a job by the SQL function.
func enqueue(ctx context.Context, db interface {
	QueryRow(context.Context, string, ...any) pgx.Row
}, job simplequeue.NewJob,
) (in simplequeue.Inserted, err error) {
	args := enqueueArgs(job)
	var list []string
	for name := range args {
		list = append(list, fmt.Sprintf("%s => @%s", name, name))
	}
	err = db.QueryRow(ctx, "SELECT id, duplicate, replaced FROM simplequeue.enqueue("+strings.Join(list, ", ")+")", args).Scan(&in.ID, &in.Duplicate, &in.Replaced)
	return in, err
}

// A row stored by SQL is the row that Go stores for the same options.
func TestEnqueueStoresWhatInsertStores(t *testing.T) {
	t.Parallel()
	pool := pgtest.New(t)
	q := newQueue(t, pool, simplequeue.Options{})
	if err := q.SetQueueLimit(t.Context(), "bounded", 5); err != nil {
		t.Fatal(err)
	}
	for n := range 200 {
		seed := rand.Uint64()
		r := rand.New(rand.NewPCG(seed, 0))
		some := func(p int) bool { return r.IntN(p) == 0 }
		job := simplequeue.NewJob{Queue: []string{"a", "bounded", "ü x"}[r.IntN(3)], Priority: r.IntN(10), MaxAttempts: r.IntN(5)}
		if some(2) {
			text := fmt.Sprintf(`{"a": {"b": %d.50, "c": [1, null, "x"]}, "n": %d}`, n, n)
			if some(3) {
				text = fmt.Sprintf(`{"a": {"b": %d.50}, "long": "%s"}`, n, strings.Repeat("x", 2000))
			}
			job.Payload = json.RawMessage(text)
			if some(2) {
				job.Unique.Fields = []string{"n", "a.b", "missing", "."}[:1+r.IntN(4)]
			}
		}
		if some(3) {
			job.Raw = []byte(strings.Repeat("\x00\xff", r.IntN(1000)+1))
		}
		if some(2) {
			job.UniqueKey = fmt.Sprint("k", n)
		}
		if job.UniqueKey != "" || job.Unique.Fields != nil {
			job.UniqueGlobal = some(2)
			if some(2) {
				job.Unique.Window = []time.Duration{time.Hour, 24 * time.Hour, 90 * time.Second, 7 * 24 * time.Hour}[r.IntN(4)]
				if job.Unique.Window%(24*time.Hour) == 0 && some(2) {
					job.Unique.Zone = "Europe/Berlin"
				}
			}
			job.Unique.OnConflict = simplequeue.Conflict(r.IntN(2))
		}
		switch r.IntN(4) {
		case 0:
			job.Delay = time.Duration(1+r.IntN(100)) * time.Hour
		case 1:
			job.RunAt = time.Now().Add(time.Duration(r.IntN(200)-100) * time.Hour).Truncate(time.Microsecond)
		}
		if job.RunAt.IsZero() {
			job.Unique.Window = 0 // the time might pass between the two
			job.Unique.Zone = ""
		}
		if some(3) {
			job.Kind, job.Fingerprint = "kind", "f\\\""
		}
		if some(3) {
			job.Metadata, job.TraceContext = map[string]string{"a": "b\n\"\\", "": "ü"}, map[string]string{"traceparent": "00-1"}
		}
		if some(3) {
			job.Timeout = []time.Duration{simplequeue.NoTimeout, time.Microsecond, 1500 * time.Millisecond, time.Hour}[r.IntN(4)]
			job.Retention = simplequeue.Retention{
				Archive:    []time.Duration{simplequeue.KeepForever, simplequeue.KeepNothing, time.Millisecond, 36 * time.Hour}[r.IntN(4)],
				DeadLetter: []time.Duration{simplequeue.KeepForever, simplequeue.KeepNothing, 1500 * time.Millisecond, 0}[r.IntN(4)],
			}
		}
		if some(4) {
			job.ID = uuid.New()
		}
		if some(3) {
			job.OrderKey = "k\t" + fmt.Sprint(n)
		}
		if some(3) {
			job.FairnessKey = fmt.Sprint("f", n)
		}
		if some(3) && job.Unique.OnConflict == simplequeue.ConflictSkip {
			job.Hold = time.Duration(1+r.IntN(100)) * time.Hour
		}
		job.Awaited = some(3)
		var rows []string
		for _, insert := range []func() (simplequeue.Inserted, error){
			func() (simplequeue.Inserted, error) { return q.Insert(t.Context(), job) },
			func() (simplequeue.Inserted, error) { return enqueue(t.Context(), pool, job) },
		} {
			in, err := insert()
			if err != nil || in.Duplicate || job.ID != uuid.Nil && in.ID != job.ID || job.ID == uuid.Nil && in.ID.Version() != 7 {
				t.Fatalf("seed %d: insert = %+v, %v of %.400s", seed, in, err, fmt.Sprintf("%+v", job))
			}
			rows = append(rows, storedRows(t, pool, in.ID)...)
			if _, err := q.Cancel(t.Context(), in.ID, ""); err != nil {
				t.Fatal(err)
			}
			execute(t, pool, "DELETE FROM simplequeue.job_client_id", "DELETE FROM simplequeue.job_finished", "DELETE FROM simplequeue.job_payload")
		}
		if d := cmp.Diff(strings.Split(rows[0], "\n"), strings.Split(rows[1], "\n")); d != "" {
			t.Errorf("seed %d: Go and SQL store different rows for %+v (-Go +SQL):\n%s", seed, job, d)
		}
	}
}

// What Go refuses SQL refuses too, with the same reason, the argument and the
// value, and SQLSTATE 22023.
func TestEnqueueRefusesWhatInsertRefuses(t *testing.T) {
	t.Parallel()
	pool := pgtest.New(t)
	q := newQueue(t, pool, simplequeue.Options{})
	long := func(n int) string { return strings.Repeat("x", n) }
	type unique = simplequeue.Unique
	for _, job := range []simplequeue.NewJob{
		{},
		{Queue: long(129)},
		{Queue: "a\n"},
		{Queue: "a\u0085"},
		{Queue: "a*"},
		{Queue: "a", Kind: long(129)},
		{Queue: "a", UniqueKey: long(513)},
		{Queue: "a", Fingerprint: long(513)},
		{Queue: "a", OrderKey: long(513)},
		{Queue: "a", FairnessKey: long(513)},
		{Queue: "a", Hold: -time.Hour},
		{Queue: "a", Hold: 8 * 24 * time.Hour},
		{Queue: "a", Priority: -1},
		{Queue: "a", Priority: 10},
		{Queue: "a", MaxAttempts: -1},
		{Queue: "a", MaxAttempts: 1 << 21},
		{Queue: "a", Delay: -time.Hour},
		{Queue: "a", Delay: 200 * 365 * 24 * time.Hour},
		{Queue: "a", RunAt: time.Date(10_000, 1, 1, 0, 0, 0, 0, time.UTC)},
		{Queue: "a", UniqueKey: "k", Unique: unique{Window: -time.Second}},
		{Queue: "a", UniqueKey: "k", Unique: unique{MaxDelay: -time.Hour, OnConflict: simplequeue.ConflictReplace}},
		{Queue: "a", Payload: json.RawMessage("1"), Unique: unique{Fields: []string{"a..b"}}},
		{Queue: "a", Payload: json.RawMessage("1"), Unique: unique{Fields: []string{"a", long(513)}}},
		{Queue: "a", UniqueKey: "k", Unique: unique{Window: 24 * time.Hour, Zone: "CET"}},
		{Queue: "a", UniqueKey: "k", Unique: unique{Window: 24 * time.Hour, Zone: "Local"}},
	} {
		_, goErr := q.Insert(t.Context(), job)
		var invalid *simplequeue.InvalidJobError
		if !errors.As(goErr, &invalid) {
			t.Fatalf("Insert of %+v: %v", job, goErr)
		}
		_, err := enqueue(t.Context(), pool, job)
		reason, _, _ := strings.Cut(invalid.Reason, ", or 0 for none")
		if sqlState(err) != "22023" || !strings.Contains(err.Error(), reason) {
			t.Errorf("enqueue of %+v: %v, want 22023 with %q", job, err, reason)
		}
	}
	for call, want := range map[string]string{
		`'a', delay => '1 hour', run_at => now()`: `delay "01:00:00" and run_at are both set`,
		`NULL`:                           `queue "" must not be empty`,
		`'a', unique_global => true`:     `unique_global "true" needs a unique_key`,
		`'a', unique_window => '1 hour'`: `needs a unique_key or unique_fields`,
		`'a', unique_key => 'k', unique_window => '1 month'`:                              `no months`,
		`'a', unique_key => 'k', unique_zone => 'UTC'`:                                    `needs a unique_window of whole days`,
		`'a', unique_key => 'k', unique_zone => 'Mars/Olympus', unique_window => '1 day'`: `not recognized`,
		`'a', unique_key => 'k', on_conflict => 'explode'`:                                `must be skip, replace or debounce`,
		`'a', unique_key => 'k', on_conflict => 'replace', hold => '1 hour'`:              `is not held anew`,
		`'a', unique_key => 'k', on_conflict => 'debounce'`:                               `needs a delay or run_at`,
		`'a', unique_fields => '{n}'`:                                                     `needs a payload`,
		`'a', run_at => 'infinity'`:                                                       `must be in the years 1 to 9999`,
		`'a', timeout => '-1 s'`:                                                          `must be positive and at most 100 years, or none`,
		`'a', timeout => '1000 years'`:                                                    `must be positive and at most 100 years, or none`,
		`'a', keep_archive => '11 years'`:                                                 `at most 10 years`,
		`'a', keep_dead_letter => '0'`:                                                    `must be positive`,
		`'a', metadata => '{"a": 1}'`:                                                     `must be an object of strings`,
		`'a', metadata => '["a"]'`:                                                        `must be an object of strings`,
		`'a', trace_context => '{"a": null}'`:                                             `must be an object of strings`,
		`'a', metadata => jsonb_build_object('a', repeat('x', 70000))`:                    `is larger than 65536 bytes`,
		`'a', payload => to_jsonb(repeat('x', 1100000))`:                                  `is larger than 1048576 bytes`,
		`'a', raw => convert_to(repeat('x', 1100000), 'UTF8')`:                            `is larger than 1048576 bytes`,
		`'a', unique_key => repeat('x', 500), unique_window => '1 hour'`:                  `at most 426 are allowed beside`,
	} {
		_, err := pool.Exec(t.Context(), "SELECT simplequeue.enqueue("+call+")")
		if sqlState(err) != "22023" || !strings.Contains(err.Error(), want) || len(err.Error()) > 400 {
			t.Errorf("enqueue(%s): %v, want 22023 with %q", call, err, want)
		}
	}
	if c := counts(t, q, ""); len(c) != 0 {
		t.Errorf("jobs were inserted: %v", c)
	}
}

// Keys, conflicts, chosen ids and limits hold for both alike.
func TestEnqueueMeetsInserts(t *testing.T) {
	t.Parallel()
	pool := pgtest.New(t)
	q := newQueue(t, pool, simplequeue.Options{})
	byGo := func(job simplequeue.NewJob) (simplequeue.Inserted, error) { return q.Insert(t.Context(), job) }
	bySQL := func(job simplequeue.NewJob) (simplequeue.Inserted, error) { return enqueue(t.Context(), pool, job) }
	for i, c := range [][2]func(simplequeue.NewJob) (simplequeue.Inserted, error){{byGo, bySQL}, {bySQL, byGo}} {
		job := simplequeue.NewJob{Queue: "a", Payload: json.RawMessage(`{"n":1.0}`), UniqueKey: fmt.Sprint(i), Unique: simplequeue.Unique{Fields: []string{"n", "m"}}, Delay: time.Hour}
		in, err := c[0](job)
		if err != nil || in.Duplicate {
			t.Fatalf("insert = %+v, %v", in, err)
		}
		job.Payload = json.RawMessage(`{"x":2,"n":1}`)
		mustMeet(t, c[1], job, simplequeue.Inserted{ID: in.ID})
		job.Unique.OnConflict, job.Priority, job.ID = simplequeue.ConflictReplace, 3, uuid.New()
		mustMeet(t, c[1], job, simplequeue.Inserted{ID: in.ID, Replaced: true})
		job.Unique.OnConflict, job.Unique.MaxDelay, job.Delay = simplequeue.ConflictDebounce, 2*time.Hour, 5*time.Hour
		mustMeet(t, c[1], job, simplequeue.Inserted{ID: in.ID, Replaced: true})
		got := get(t, q, in.ID)
		if got.Priority != 3 || string(got.Payload) != `{"n": 1, "x": 2}` || (time.Until(got.RunAt)-2*time.Hour).Abs() > time.Minute {
			t.Errorf("the job is %+v", got)
		}
		if n := queryOne[int](t, pool, "SELECT count(*) FROM simplequeue.job_client_id"); n != 0 {
			t.Errorf("%d ids of jobs that were not inserted are known", n)
		}

		chosen := simplequeue.NewJob{Queue: "a", ID: uuid.New()}
		if in, err := c[0](chosen); err != nil || in.ID != chosen.ID || in.Duplicate {
			t.Errorf("insert = %+v, %v", in, err)
		}
		mustMeet(t, c[1], chosen, simplequeue.Inserted{ID: chosen.ID})
		execute(t, pool, "DELETE FROM simplequeue.job_client_id")
	}
	if err := q.SetQueueLimit(t.Context(), "full", 2); err != nil {
		t.Fatal(err)
	}
	keyed := simplequeue.NewJob{Queue: "full", UniqueKey: "k"}
	in, err := bySQL(keyed)
	if err != nil {
		t.Fatal(err)
	}
	insert(t, q, simplequeue.NewJob{Queue: "full"})
	if _, err := bySQL(simplequeue.NewJob{Queue: "full"}); sqlState(err) != "53400" || !strings.Contains(err.Error(), `queue "full" is full: its limit is 2`) {
		t.Errorf("enqueue into a full queue: %v, want 53400", err)
	}
	if _, err := byGo(simplequeue.NewJob{Queue: "full"}); !errors.Is(err, simplequeue.ErrQueueFull) {
		t.Errorf("Insert into a full queue: %v", err)
	}
	mustMeet(t, bySQL, keyed, simplequeue.Inserted{ID: in.ID})
	if _, err := q.Cancel(t.Context(), in.ID, ""); err != nil {
		t.Fatal(err)
	}
	if _, err := bySQL(keyed); err != nil {
		t.Errorf("enqueue once there is room: %v", err)
	}
}

// One holder at every commit, whoever inserts by SQL or Go.
func TestEnqueueHasOneHolderOfAKey(t *testing.T) {
	t.Parallel()
	pool := pgtest.Pool(t, pgtest.Database(t), 20)
	q := newQueue(t, pool, simplequeue.Options{PollOnly: true})
	oneHolder(t, q, func(ctx context.Context, job simplequeue.NewJob, commit bool) (in simplequeue.Inserted, err error) {
		err = pgx.BeginFunc(ctx, pool, func(tx pgx.Tx) error {
			if rand.IntN(2) == 0 {
				in, err = q.InsertTx(ctx, tx, job)
			} else {
				in, err = enqueue(ctx, tx, job)
			}
			if err == nil && !commit {
				return errRolledBack
			}
			return err
		})
		return in, err
	})
}

// Triggers, psql and drivers of database/sql insert and wake workers, once a
// transaction and lane, when the transaction commits; a schema may have any name.
func TestEnqueueFromEverywhere(t *testing.T) {
	t.Parallel()
	for _, schema := range []string{"simplequeue", `odd "name"`} {
		t.Run(schema, func(t *testing.T) {
			t.Parallel()
			pool := pgtest.New(t)
			if err := migrate.UpPool(t.Context(), pool, schema); err != nil {
				t.Fatal(err)
			}
			var mu sync.Mutex
			ran := map[string]bool{}
			opts := handler("a", func(_ context.Context, job *simplequeue.Job) error {
				mu.Lock()
				defer mu.Unlock()
				ran[string(job.Payload)] = true
				return nil
			})
			opts.Schema, opts.PollInterval = schema, time.Minute // what runs was woken
			q := newQueue(t, pool, opts)
			function := pgx.Identifier{schema}.Sanitize() + ".enqueue"
			execute(t, pool, "CREATE TABLE orders (id int)", `
				CREATE FUNCTION ordered() RETURNS trigger LANGUAGE plpgsql AS $f$
				BEGIN
					PERFORM `+function+`(queue => 'a', payload => to_jsonb(NEW.id));
					RETURN NEW;
				END $f$`, "CREATE TRIGGER ordered AFTER INSERT ON orders FOR EACH ROW EXECUTE FUNCTION ordered()")
			start(t, q)
			eventually(t, "the worker listens", func() bool { return listeners(t, pool) == 1 })
			heard := listenTo(t, pool)
			tx, err := pool.Begin(t.Context())
			if err != nil {
				t.Fatal(err)
			}
			if _, err := tx.Exec(t.Context(), "INSERT INTO orders SELECT generate_series(1, 50)"); err != nil {
				t.Fatal(err)
			}
			if len(ran) != 0 {
				t.Error("a job ran before the commit")
			}
			if err := tx.Commit(t.Context()); err != nil {
				t.Fatal(err)
			}
			ranOf := func(payload string) func() bool {
				return func() bool { mu.Lock(); defer mu.Unlock(); return ran[payload] }
			}
			for i := 1; i <= 50; i++ {
				eventually(t, fmt.Sprint("job of order ", i), ranOf(fmt.Sprint(i)))
			}
			if n := heard(); n != 1 {
				t.Errorf("%d notifications for a transaction, want 1", n)
			}
			for _, driver := range sqlDrivers {
				var id string
				err := openSQL(t, driver, pool).QueryRow("SELECT id FROM "+function+"(queue => $1, payload => $2::jsonb)", "a", `"`+driver+`"`).Scan(&id)
				if err != nil {
					t.Errorf("%s: %v", driver, err)
				}
				eventually(t, "job of "+driver, ranOf(`"`+driver+`"`))
			}
			if psql, err := exec.LookPath("psql"); err == nil {
				out, err := exec.CommandContext(t.Context(), psql, "-X", "-v", "ON_ERROR_STOP=1", "-d", pool.Config().ConnString(),
					"-c", "SELECT duplicate FROM "+function+`(queue => 'a', payload => '"psql"')`).CombinedOutput()
				if err != nil {
					t.Errorf("psql: %v\n%s", err, out)
				}
				eventually(t, "job of psql", ranOf(`"psql"`))
			}
		})
	}
}

// listenTo counts the notifications of the queues of a database until it is
// asked.
func listenTo(t testing.TB, pool *pgxpool.Pool) func() int {
	t.Helper()
	conn, err := pgx.Connect(t.Context(), pool.Config().ConnString())
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = conn.Close(context.Background()) })
	for _, channel := range queryAll(t, pool, "SELECT 'simplequeue_' || left(encode(sha256(convert_to(nspname, 'UTF8')), 'hex'), 16) FROM pg_namespace") {
		if _, err := conn.Exec(t.Context(), "LISTEN "+pgx.Identifier{channel}.Sanitize()); err != nil {
			t.Fatal(err)
		}
	}
	return func() (n int) {
		// What was sent before this is heard before it.
		if _, err := pool.Exec(t.Context(), "SELECT pg_notify('simplequeue_' || left(encode(sha256(convert_to('simplequeue', 'UTF8')), 'hex'), 16), '?end')"); err != nil {
			t.Fatal(err)
		}
		for {
			got, err := conn.WaitForNotification(t.Context())
			if err != nil {
				t.Fatal(err)
			}
			if got.Payload == "?end" {
				return n
			}
			if got.Payload == "0:a" {
				n++
			}
		}
	}
}

func queryAll(t testing.TB, pool *pgxpool.Pool, query string) []string {
	t.Helper()
	rows, err := pool.Query(t.Context(), query)
	if err != nil {
		t.Fatal(err)
	}
	list, err := pgx.CollectRows(rows, pgx.RowTo[string])
	if err != nil {
		t.Fatal(err)
	}
	return list
}
