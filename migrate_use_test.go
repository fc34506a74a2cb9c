package simplequeue_test

import (
	"context"
	"errors"
	"strings"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgxpool"

	"github.com/simplequeue/simplequeue"
	"github.com/simplequeue/simplequeue/internal/pgtest"
	"github.com/simplequeue/simplequeue/migrate"
)

// migrated brings a schema of any name up in the database of a pool.
func migrated(t testing.TB, pool *pgxpool.Pool, schema string) {
	t.Helper()
	conn, err := pgx.Connect(t.Context(), pool.Config().ConnString())
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close(context.Background())
	if err := migrate.Up(t.Context(), conn, schema); err != nil {
		t.Fatalf("migrate.Up(%q): %v", schema, err)
	}
}

// Run refuses a database without the schema, or with an older one, at once and
// says what to do; an insert says so too, and nothing is in doubt.
func TestRunNeedsTheSchema(t *testing.T) {
	t.Parallel()
	pool := pgtest.Pool(t, pgtest.EmptyDatabase(t), 4)
	opts := handler("a", func(context.Context, *simplequeue.Job) error { return nil })
	ctx, cancel := context.WithTimeout(t.Context(), 20*time.Second)
	defer cancel()
	check := func(what string) {
		t.Helper()
		if err := newQueue(t, pool, opts).Run(ctx); !errors.Is(err, simplequeue.ErrSchema) || !strings.Contains(err.Error(), "migrate.Up") {
			t.Errorf("%s: Run: %v, want ErrSchema that names migrate.Up", what, err)
		}
	}
	check("no schema")
	for _, job := range []simplequeue.NewJob{{Queue: "a"}, {Queue: "a", UniqueKey: "k"}} {
		_, err := newQueue(t, pool, opts).Insert(ctx, job)
		if code := sqlState(err); code != "42P01" && code != "3F000" || errors.Is(err, simplequeue.ErrInsertUnknown) {
			t.Errorf("Insert: %v, want the database's error that there is no table, or no schema", err)
		}
	}
	execute(t, pool, "CREATE SCHEMA simplequeue")
	check("empty schema")
	execute(t, pool, "DROP SCHEMA simplequeue")
	migrated(t, pool, "simplequeue")
	execute(t, pool, "DELETE FROM simplequeue.schema_migration WHERE version = (SELECT max(version) FROM simplequeue.schema_migration)")
	check("older schema")
}

// Several schemas of any name live in one database: each has its jobs, keys,
// ids and wake-ups, and the whole life of a job works in each.
func TestSchemasOfOneDatabaseDoNotMeet(t *testing.T) {
	t.Parallel()
	pool := pgtest.Pool(t, pgtest.EmptyDatabase(t), 10)
	ran := make(chan string, 10)
	var queues []*simplequeue.SimpleQueue
	for _, schema := range []string{"one", `Two "of" them; --`, strings.Repeat("ü", 31)} {
		migrated(t, pool, schema)
		opts := handler("a", func(ctx context.Context, job *simplequeue.Job) error {
			if job.Attempt == 1 {
				return simplequeue.RetryAfter(0, errors.New("again"))
			}
			ran <- schema
			return nil
		})
		opts.Schema = schema
		opts.JanitorInterval = 20 * time.Millisecond
		opts.ReaperInterval = 20 * time.Millisecond
		q := newQueue(t, pool, opts)
		queues = append(queues, q)
		if c := counts(t, q, ""); len(c) != 0 {
			t.Errorf("schema %q holds %v from the start", schema, c)
		}
	}
	job := allFields()
	job.Queue = "a"
	for i, q := range queues {
		id := insert(t, q, job)
		for n, other := range queues {
			want := simplequeue.State("")
			if n == i {
				want = simplequeue.StatePending
			}
			if got := state(t, other, id); got != want {
				t.Errorf("a job of schema %d is %q in schema %d", i, got, n)
			}
		}
	}
	for _, q := range queues {
		start(t, q)
	}
	got := map[string]int{}
	for range queues {
		got[<-ran]++
	}
	if len(got) != len(queues) {
		t.Errorf("ran %v, want one job of each schema", got)
	}
	for i, q := range queues {
		eventually(t, "completed", func() bool { return counts(t, q, "a")[simplequeue.StateCompleted] == 1 })
		cancelled := insert(t, q, simplequeue.NewJob{Queue: "b", UniqueKey: "k"})
		if _, err := q.Cancel(t.Context(), cancelled, ""); err != nil {
			t.Errorf("schema %d: %v", i, err)
		}
	}
}

// The search path of the session does not matter: the schema is always named.
func TestTheSearchPathDoesNotMatter(t *testing.T) {
	t.Parallel()
	config := pgtest.Pool(t, pgtest.Database(t), 1).Config()
	config.ConnConfig.RuntimeParams["search_path"] = "decoy"
	config.MaxConns = 5
	pool, err := pgxpool.NewWithConfig(t.Context(), config)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(pool.Close)
	execute(t, pool, "CREATE SCHEMA decoy", "CREATE TABLE decoy.job_queue (id int)")
	q := newQueue(t, pool, handler("a", func(_ context.Context, job *simplequeue.Job) error {
		if job.Attempt == 1 {
			return simplequeue.RetryAfter(0, errors.New("again"))
		}
		return nil
	}))
	start(t, q)
	awaitState(t, q, insert(t, q, simplequeue.NewJob{Queue: "a", Delay: time.Millisecond, UniqueKey: "k"}), simplequeue.StateCompleted)
}
