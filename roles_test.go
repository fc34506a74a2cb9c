package simplequeue_test

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/uuid"
	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"
	"github.com/jackc/pgx/v5/pgxpool"

	"github.com/simplequeue/simplequeue"
	"github.com/simplequeue/simplequeue/internal/pgtest"
	"github.com/simplequeue/simplequeue/janitor"
	"github.com/simplequeue/simplequeue/migrate"
	"github.com/simplequeue/simplequeue/reaper"
)

// granted is a database with the three roles, and a pool of each.
type granted struct {
	schema                      string
	owner, enqueue, work, admin *pgxpool.Pool
}

// newGranted makes a database with its schema and roles of its own. The pools of
// the roles are what a program has that logs in as one of them.
func newGranted(t testing.TB, schema string) *granted {
	t.Helper()
	url := pgtest.EmptyDatabase(t)
	g := &granted{schema: schema, owner: pgtest.Pool(t, url, 4)}
	if err := migrate.UpPool(t.Context(), g.owner, schema); err != nil {
		t.Fatal(err)
	}
	mark := uuid.NewString()[:8]
	roles := migrate.Roles{Enqueue: `enqueue "it's" ` + mark, Work: `work "it's" ` + mark, Admin: `admin "it's" ` + mark}
	t.Cleanup(func() { // before the database is dropped, so that nothing depends on the roles
		for _, role := range []string{roles.Enqueue, roles.Work, roles.Admin} {
			name := pgx.Identifier{role}.Sanitize()
			for _, statement := range []string{"DROP OWNED BY " + name + " CASCADE", "DROP ROLE " + name} {
				if _, err := g.owner.Exec(context.Background(), statement); err != nil {
					t.Errorf("%s: %v", statement, err)
				}
			}
		}
	})
	text, err := migrate.Grants(schema, roles)
	if err != nil {
		t.Fatal(err)
	}
	for range 2 { // it can be repeated
		if _, err := g.owner.Exec(t.Context(), text); err != nil {
			t.Fatalf("%v in:\n%s", err, text)
		}
	}
	as := func(role string) *pgxpool.Pool {
		config, err := pgxpool.ParseConfig(url)
		if err != nil {
			t.Fatal(err)
		}
		config.MaxConns = 4
		config.ConnConfig.RuntimeParams["role"] = role
		pool, err := pgxpool.NewWithConfig(t.Context(), config)
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(pool.Close)
		return pool
	}
	g.enqueue, g.work, g.admin = as(roles.Enqueue), as(roles.Work), as(roles.Admin)
	return g
}

// in fills the schema's name into a text.
func (g *granted) in(text string) string {
	return strings.ReplaceAll(text, "{s}", pgx.Identifier{g.schema}.Sanitize())
}

// denied fails the test unless each statement is refused for want of privilege.
func (g *granted) denied(t *testing.T, pool *pgxpool.Pool, statements ...string) {
	t.Helper()
	for _, statement := range statements {
		_, err := pool.Exec(t.Context(), g.in(statement))
		wantDenied(t, statement, err)
	}
}

func wantDenied(t *testing.T, what string, err error) {
	t.Helper()
	var pe *pgconn.PgError
	if !errors.As(err, &pe) || pe.Code != "42501" {
		t.Errorf("%s: %v, want insufficient_privilege", what, err)
	}
}

// The schemas in which the roles are tried.
var roleSchemas = []string{"simplequeue", `Odd "schema"'s; --`}

// A role that may enqueue does so by every way there is, and can do nothing else:
// neither read what others have inserted, nor change it, nor call what acts for
// the owner.
func TestEnqueueRoleInsertsAndNothingElse(t *testing.T) {
	t.Parallel()
	for _, schema := range roleSchemas {
		t.Run(schema, func(t *testing.T) {
			t.Parallel()
			g := newGranted(t, schema)
			q := newQueue(t, g.enqueue, simplequeue.Options{Schema: schema})
			owner := newQueue(t, g.owner, simplequeue.Options{Schema: schema})
			ctx := t.Context()
			big := strings.Repeat("x", 5000)
			secret := insert(t, owner, simplequeue.NewJob{Queue: "others", Payload: "secret", UniqueKey: "taken"})

			insert(t, q, simplequeue.NewJob{Queue: "a", Payload: 1, Fingerprint: "f", Metadata: map[string]string{"k": "v"}})
			insert(t, q, simplequeue.NewJob{Queue: "a", Payload: big, Raw: []byte{1}})
			insert(t, q, simplequeue.NewJob{Queue: "a", Delay: time.Hour, Fingerprint: "f", Payload: big})
			for i, job := range []simplequeue.NewJob{{Queue: "a", Fingerprint: "f"}, {Queue: "a", Payload: big}} {
				if _, err := q.InsertMany(ctx, repeat(300, job)); err != nil {
					t.Fatalf("InsertMany %d: %v", i, err)
				}
			}
			chosen := simplequeue.NewJob{Queue: "a", ID: uuid.New(), UniqueKey: "mine"}
			insert(t, q, chosen)
			for name, job := range map[string]simplequeue.NewJob{
				"known id":     chosen,
				"taken key":    {Queue: "others", UniqueKey: "taken", ID: uuid.New()},
				"replaced":     {Queue: "a", UniqueKey: "mine", Payload: big, Unique: simplequeue.Unique{OnConflict: simplequeue.ConflictReplace}},
				"put off":      {Queue: "a", UniqueKey: "mine", Delay: time.Hour, Unique: simplequeue.Unique{OnConflict: simplequeue.ConflictReplace}},
				"put off more": {Queue: "a", UniqueKey: "mine", Delay: 2 * time.Hour, Unique: simplequeue.Unique{OnConflict: simplequeue.ConflictDebounce}},
			} {
				if r, err := q.Insert(ctx, job); err != nil || !r.Duplicate && name != "put off more" {
					t.Errorf("%s: %+v, %v", name, r, err)
				}
			}
			for range 2 {
				if _, err := q.Insert(ctx, simplequeue.NewJob{Queue: "a", Payload: map[string]int{"user": 7}, Unique: simplequeue.Unique{Fields: []string{"user"}, Window: time.Hour}}); err != nil {
					t.Errorf("derived key: %v", err)
				}
			}
			if err := owner.SetQueueLimit(ctx, "small", 2); err != nil {
				t.Fatal(err)
			}
			insert(t, q, simplequeue.NewJob{Queue: "small"})
			err := pgx.BeginFunc(ctx, g.enqueue, func(tx pgx.Tx) error {
				if _, err := q.InsertTx(ctx, tx, simplequeue.NewJob{Queue: "small"}); err != nil {
					return err
				}
				if _, err := q.InsertTx(ctx, tx, simplequeue.NewJob{Queue: "small"}); !errors.Is(err, simplequeue.ErrQueueFull) {
					t.Errorf("a third job: %v", err)
				}
				for _, call := range []string{
					"SELECT {s}.enqueue('sql', '1')",
					"SELECT {s}.enqueue('sql', to_jsonb(repeat('x', 5000)), fingerprint => 'f', delay => '1 hour', raw => 'x')",
					"SELECT {s}.enqueue('sql', '{\"user\": 1.0}', unique_fields => '{user}', unique_window => '1 day', unique_zone => 'Europe/Paris', keep_archive => '1 day')",
					"SELECT {s}.enqueue('sql', '{\"user\": 1}', unique_fields => '{user}', unique_window => '1 day', unique_zone => 'Europe/Paris', on_conflict => 'replace')",
					"SELECT {s}.enqueue('others', unique_key => 'taken', job_id => gen_random_uuid())",
					"SELECT {s}.enqueue('gates', order_key => 'o', fairness_key => 'f', block_dead => true)",
					"SELECT {s}.enqueue('gates', order_key => 'o', unique_key => 'turn')",
					"SELECT {s}.enqueue('gates', order_key => 'other', unique_key => 'turn', on_conflict => 'replace')",
					"SELECT c.committed FROM {s}.enqueue('gates', order_key => 'o', hold => '1 hour') AS e, {s}.commit_held(ARRAY[e.id]) AS c",
				} {
					if _, err := tx.Exec(ctx, g.in(call)); err != nil {
						return fmt.Errorf("%s: %w", call, err)
					}
				}
				return nil
			})
			if err != nil {
				t.Errorf("in a transaction: %v", err)
			}
			enqueueAtGates(t, g, q)
			if n, err := owner.Count(ctx, simplequeue.Filter{}); err != nil || n[simplequeue.StatePending]+n[simplequeue.StateWaiting] != 1+3+600+1+1+2+3+3+8 {
				t.Errorf("%v live jobs, %v", n, err)
			}

			_, err = q.Get(ctx, secret)
			wantDenied(t, "Get", err)
			_, err = q.Cancel(ctx, secret, "")
			wantDenied(t, "Cancel", err)
			_, err = q.Purge(ctx, simplequeue.Filter{Queue: "a"})
			wantDenied(t, "Purge", err)
			wantDenied(t, "Pause", q.Pause(ctx, "a", ""))
			wantDenied(t, "SetQueueLimit", q.SetQueueLimit(ctx, "a", 1))
			g.denied(t, g.enqueue,
				"SELECT payload FROM {s}.job_queue", "SELECT id FROM {s}.job_queue", "SELECT payload FROM {s}.job", "SELECT payload FROM {s}.job_payload",
				"SELECT payload FROM {s}.job_queue_archive", "SELECT payload FROM {s}.job_waiting", "SELECT message FROM {s}.job_log",
				"COPY {s}.job_queue TO STDOUT", "DELETE FROM {s}.job_queue", "UPDATE {s}.job_queue SET payload = '1'", "TRUNCATE {s}.job_queue",
				"DELETE FROM {s}.job_unique", "UPDATE {s}.job_lane SET queue = 'x'", "UPDATE {s}.job_slot SET job_id = NULL",
				"INSERT INTO {s}.job_queue (id, queue, lane, attempt) VALUES (gen_random_uuid(), 'a', 0, -5)",
				"INSERT INTO {s}.job_queue (id, queue, lane, seq) VALUES (gen_random_uuid(), 'a', 0, -5)",
				"INSERT INTO {s}.job_queue (id, queue, lane) VALUES (gen_random_uuid(), 'a', 0) RETURNING payload",
				"SELECT gate FROM {s}.job_gated", "INSERT INTO {s}.job_gated (job_id, gate, place) VALUES (gen_random_uuid(), 'o', 1)", "UPDATE {s}.job_gated SET gate = 'o'",
				"DELETE FROM {s}.job_gated", "SELECT gate FROM {s}.job_gate_look", "DELETE FROM {s}.job_gate_look", "INSERT INTO {s}.job_gate_look (gate, after) VALUES ('o', 1)",
				"SELECT gate FROM {s}.job_gate_hold", "DELETE FROM {s}.job_gate_hold", "INSERT INTO {s}.job_gate_weight VALUES ('f', 'k', 9)", "SELECT last_value FROM {s}.job_gate_place",
				"SELECT job_id FROM {s}.job_held", "UPDATE {s}.job_held SET expires_at = now()", "DELETE FROM {s}.job_held", "INSERT INTO {s}.job_held SELECT",
				"SELECT id FROM {s}.job_outcome", "SELECT {s}.expire_outcomes()", "SELECT {s}.fair_time('f', 'k')",
				"INSERT INTO {s}.job_finished SELECT", "INSERT INTO {s}.job_bound (queue, max_live) VALUES ('a', 1)", "INSERT INTO {s}.schema_migration SELECT",
				"SELECT {s}.drop_expired('job_queue_archive')", "SELECT {s}.rotate(1, 1)", "SELECT {s}.make_partitions('job_queue_dlq', '{1}', 1)",
				"SELECT {s}.set_queue_limit('a', 1)", "SELECT {s}.append_error(NULL, 1, '', '', '')",
				"CREATE TABLE {s}.mine ()", "CREATE FUNCTION {s}.mine() RETURNS int LANGUAGE sql AS 'SELECT 1'",
				"CREATE TRIGGER mine BEFORE INSERT ON {s}.job_queue FOR EACH ROW EXECUTE FUNCTION {s}.guard_lane()",
				"ALTER TABLE {s}.job_queue ADD COLUMN mine int", "DROP TABLE {s}.job_queue", "DO $$ BEGIN LOCK TABLE {s}.job_running IN ACCESS EXCLUSIVE MODE; END $$",
			)
		})
	}
}

// enqueueAtGates inserts eight jobs that wait at gates or are held, and lets go
// those that are held.
func enqueueAtGates(t *testing.T, g *granted, q *simplequeue.SimpleQueue) {
	t.Helper()
	ctx := t.Context()
	results, err := q.InsertMany(ctx, []simplequeue.NewJob{
		{Queue: "gates", OrderKey: "o"},
		{Queue: "gates", FairnessKey: "f"},
		{Queue: "gates", OrderKey: "o", FairnessKey: "f", Awaited: true},
		{Queue: "gates", Hold: time.Hour},
		{Queue: "gates", Hold: time.Hour, OrderKey: "o", Delay: time.Hour},
	})
	if err != nil {
		t.Errorf("InsertMany at gates: %v", err)
		return
	}
	if done, err := q.CommitHeld(ctx, results[3].ID, results[4].ID); err != nil || len(done) != 2 {
		t.Errorf("CommitHeld: %v, %v", done, err)
	}
	job := simplequeue.NewJob{Queue: "gates", OrderKey: "o", UniqueKey: "turned"}
	insert(t, q, job)
	job.OrderKey, job.Unique.OnConflict = "other", simplequeue.ConflictReplace
	if r, err := q.Insert(ctx, job); err != nil || !r.Replaced {
		t.Errorf("replace at a gate: %+v, %v", r, err)
	}
	err = pgx.BeginFunc(ctx, g.enqueue, func(tx pgx.Tx) error {
		r, err := q.InsertTx(ctx, tx, simplequeue.NewJob{Queue: "gates", Hold: time.Hour, FairnessKey: "f"})
		if err != nil {
			return err
		}
		if _, err := q.CommitHeldTx(ctx, tx, r.ID); err != nil {
			return err
		}
		_, err = q.InsertTx(ctx, tx, simplequeue.NewJob{Queue: "gates", OrderKey: "o"})
		return err
	})
	if err != nil {
		t.Errorf("gates in a transaction: %v", err)
	}
}

// What each role may do with each table and function, told by the database: a
// table or function that comes later has to be thought of here.
func TestPrivilegesOfTheRoles(t *testing.T) {
	t.Parallel()
	g := newGranted(t, "simplequeue")
	list := func(pool *pgxpool.Pool, query string) []string {
		t.Helper()
		rows, err := pool.Query(t.Context(), query)
		if err != nil {
			t.Fatal(err)
		}
		names, err := pgx.CollectRows(rows, pgx.RowTo[string])
		if err != nil {
			t.Fatal(err)
		}
		return names
	}
	const tables = `SELECT c.relname || ' ' || p.privilege FROM pg_class AS c
		CROSS JOIN unnest('{SELECT,INSERT,UPDATE,DELETE,TRUNCATE,REFERENCES,TRIGGER}'::text[]) AS p(privilege)
		WHERE c.relnamespace = 'simplequeue'::regnamespace AND c.relkind IN ('r', 'p', 'v')
		  AND (has_table_privilege(c.oid, p.privilege)
		       OR p.privilege IN ('SELECT', 'INSERT', 'UPDATE', 'REFERENCES') AND has_any_column_privilege(c.oid, p.privilege))
		ORDER BY 1`
	const functions = `SELECT p.proname::text FROM pg_proc AS p
		WHERE p.pronamespace = 'simplequeue'::regnamespace AND has_function_privilege(p.oid, 'EXECUTE') ORDER BY 1`
	want := []string{
		"job_bound SELECT", "job_client_id DELETE", "job_client_id INSERT", "job_client_id SELECT", "job_fingerprint INSERT",
		"job_gate_look INSERT", "job_gated INSERT", "job_lane INSERT", "job_lane SELECT", "job_payload INSERT", "job_queue INSERT", "job_unique INSERT", "job_unique SELECT", "job_waiting INSERT",
	}
	if got := list(g.enqueue, tables); !slices.Equal(got, want) {
		t.Errorf("enqueue: tables %v, want %v", got, want)
	}
	want = []string{"canonical", "commit_held", "enqueue", "hold_jobs", "jobs_known", "take_over", "take_slots", "unique_holder", "unique_key"}
	if got := list(g.enqueue, functions); !slices.Equal(got, want) {
		t.Errorf("enqueue: functions %v, want %v", got, want)
	}
	all := list(g.owner, functions)
	if got := list(g.admin, functions); !slices.Equal(got, all) {
		t.Errorf("admin: functions %v, want %v", got, all)
	}
	all = slices.DeleteFunc(all, func(name string) bool { return name == "set_queue_limit" })
	if got := list(g.work, functions); !slices.Equal(got, all) {
		t.Errorf("work: functions %v, want %v", got, all)
	}
	for role, pool := range map[string]*pgxpool.Pool{"work": g.work, "admin": g.admin} {
		may := map[string]bool{}
		for _, p := range list(pool, tables) {
			may[p] = true
		}
		for _, name := range list(g.owner, "SELECT relname::text FROM pg_class WHERE relnamespace = 'simplequeue'::regnamespace AND relkind IN ('r', 'p', 'v')") {
			operate := name == "job_bound" || name == "job_pause" || name == "job_gate_weight"
			for _, p := range []string{"SELECT", "INSERT", "UPDATE", "DELETE", "TRUNCATE", "REFERENCES", "TRIGGER"} {
				want := p == "SELECT" || p != "TRUNCATE" && p != "REFERENCES" && p != "TRIGGER" &&
					name != "schema_migration" && (role == "admin" || !operate)
				if may[name+" "+p] != want {
					t.Errorf("%s: %s on %s is %v, want %v", role, p, name, may[name+" "+p], want)
				}
			}
		}
		var may2 bool
		if err := pool.QueryRow(t.Context(), "SELECT has_schema_privilege('simplequeue', 'CREATE')").Scan(&may2); err != nil || may2 {
			t.Errorf("%s: CREATE in the schema is %v, %v", role, may2, err)
		}
	}
}

// Functions that act for the schema's owner have a search_path of their own,
// with pg_temp behind the catalog, and may be called by nobody by default.
// https://www.postgresql.org/docs/current/sql-createfunction.html#SQL-CREATEFUNCTION-SECURITY
func TestFunctionsThatActForTheOwnerAreSafe(t *testing.T) {
	t.Parallel()
	pool := pgtest.New(t)
	rows, err := pool.Query(t.Context(), `
		SELECT p.proname, coalesce(array_to_string(p.proconfig, ';'), ''),
		       EXISTS (SELECT FROM aclexplode(coalesce(p.proacl, acldefault('f', p.proowner))) AS a WHERE a.grantee = 0)
		FROM pg_proc AS p WHERE p.pronamespace = 'simplequeue'::regnamespace AND p.prosecdef`)
	if err != nil {
		t.Fatal(err)
	}
	defer rows.Close()
	n := 0
	for rows.Next() {
		var name, config string
		var public bool
		if err := rows.Scan(&name, &config, &public); err != nil {
			t.Fatal(err)
		}
		n++
		if !strings.Contains(config, "search_path=pg_catalog, pg_temp") || public {
			t.Errorf("%s: settings %q, callable by everybody %v", name, config, public)
		}
	}
	if rows.Err() != nil || n < 13 {
		t.Errorf("%d functions, %v", n, rows.Err())
	}
}

// A role that shadows PostgreSQL's own functions and operators, where it may
// create objects, changes nothing about what functions of the owner do.
func TestHostileSearchPathOfAnEnqueuer(t *testing.T) {
	t.Parallel()
	g := newGranted(t, "simplequeue")
	for _, statement := range []string{
		`CREATE TEMP TABLE job_unique (scope text, key text, job_id uuid)`,
		`CREATE TEMP TABLE job_bound (queue text, max_live integer)`,
		`CREATE FUNCTION pg_temp.jobs_known(uuid[]) RETURNS SETOF uuid LANGUAGE sql AS 'SELECT gen_random_uuid()'`,
		`CREATE FUNCTION pg_temp.format(text, VARIADIC text[]) RETURNS text LANGUAGE plpgsql AS $$ BEGIN RAISE 'format of %', current_user; END $$`,
		`CREATE FUNCTION pg_temp.clock_timestamp() RETURNS timestamptz LANGUAGE plpgsql AS $$ BEGIN RAISE 'clock of %', current_user; END $$`,
		`CREATE FUNCTION pg_temp.same(text, text) RETURNS boolean LANGUAGE plpgsql AS $$ BEGIN RAISE 'operator of %', current_user; END $$`,
		`CREATE OPERATOR pg_temp.= (LEFTARG = text, RIGHTARG = text, FUNCTION = pg_temp.same)`,
		`SET search_path = pg_temp, pg_catalog`,
		`SELECT simplequeue.enqueue('a', '{"n": 1.0}', unique_key => 'k', unique_fields => '{n}', job_id => gen_random_uuid())`,
		`SELECT simplequeue.enqueue('a', '{"n": 1}', unique_key => 'k', unique_fields => '{n}', on_conflict => 'replace')`,
	} {
		conn, err := g.enqueue.Acquire(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		if _, err := conn.Exec(t.Context(), statement); err != nil {
			t.Errorf("%s: %v", statement, err)
		}
		conn.Release() // one at a time, so it is the same one
	}
}

// A role that may work runs the whole life of jobs: every outcome, sweeps,
// archive, dead letters, partitions and their expiry, and what handlers ask for.
// It owns nothing, and has no say in how queues are run.
func TestWorkRoleRunsTheWholeLife(t *testing.T) {
	t.Parallel()
	for _, schema := range roleSchemas {
		t.Run(schema, func(t *testing.T) {
			t.Parallel()
			g := newGranted(t, schema)
			ctx := t.Context()
			ins := newQueue(t, g.enqueue, simplequeue.Options{Schema: schema})
			owner := newQueue(t, g.owner, simplequeue.Options{Schema: schema})
			said := &errorLog{}
			opts := briefLeases(simplequeue.Options{
				Schema: schema, LogSink: simplequeue.LogTable(), Retention: simplequeue.Retention{Archive: 40 * 24 * time.Hour},
				Logger: said.logger(slog.LevelInfo),
				Handlers: []simplequeue.Handler{simplequeue.HandlerFunc("a", func(ctx context.Context, job *simplequeue.Job) error {
					q := simplequeue.FromContext(ctx)
					simplequeue.Logger(ctx).Info("runs")
					switch job.Kind {
					case "retry":
						if job.Attempt == 1 {
							return simplequeue.RetryAfter(time.Millisecond, errors.New("once"))
						}
						return nil
					case "reschedule":
						if job.ReprocessCount == 0 {
							return simplequeue.RescheduleAfter(time.Millisecond)
						}
						return nil
					case "dead":
						return simplequeue.Critical(errors.New("dead"))
					case "cancelled":
						<-ctx.Done()
						return ctx.Err()
					case "checkpoint":
						if err := job.Checkpoint(ctx, strings.Repeat("y", 3000), nil); err != nil {
							return err
						}
						if _, err := simplequeue.Step(ctx, job, "one", func(context.Context) (int, error) { return 1, nil }); err != nil {
							return err
						}
						return job.SetResult("done")
					case "tx":
						return pgx.BeginFunc(ctx, g.work, func(tx pgx.Tx) error {
							if _, err := q.InsertTx(ctx, tx, simplequeue.NewJob{Queue: "a", UniqueKey: "follow-up", ID: uuid.New()}); err != nil {
								return err
							}
							return job.CompleteTx(ctx, tx)
						})
					}
					return nil
				})},
			})
			q := newQueue(t, g.work, opts)
			stop := start(t, q)
			want := map[uuid.UUID]simplequeue.State{}
			for kind, end := range map[string]simplequeue.State{
				"plain": simplequeue.StateCompleted, "retry": simplequeue.StateCompleted, "reschedule": simplequeue.StateCompleted,
				"dead": simplequeue.StateCritical, "checkpoint": simplequeue.StateCompleted, "tx": simplequeue.StateCompleted,
			} {
				want[insert(t, ins, simplequeue.NewJob{Queue: "a", Kind: kind, UniqueKey: kind, Fingerprint: "f", Payload: strings.Repeat("x", 2000)})] = end
			}
			for kind, job := range map[string]simplequeue.NewJob{
				"retry": {OrderKey: "o", Awaited: true}, "dead": {OrderKey: "o"}, "reschedule": {FairnessKey: "f", OrderKey: "o"},
				"checkpoint": {FairnessKey: "f"}, "plain": {Hold: time.Hour, OrderKey: "o"}, "tx": {OrderKey: "o", Awaited: true, Retention: simplequeue.Retention{Archive: simplequeue.KeepNothing}},
			} {
				end := simplequeue.StateCompleted
				if job.Queue, job.Kind = "a", kind; kind == "dead" {
					end = simplequeue.StateCritical
				}
				id := insert(t, ins, job)
				if job.Hold > 0 {
					if _, err := ins.CommitHeld(ctx, id); err != nil {
						t.Errorf("CommitHeld: %v", err)
					}
				}
				if kind != "tx" {
					want[id] = end
				} else if info, err := q.Wait(ctx, id); err != nil || info.State != end {
					t.Errorf("Wait: %v, %v", info.State, err)
				}
			}
			cancelled := insert(t, ins, simplequeue.NewJob{Queue: "a", Kind: "cancelled"})
			awaitState(t, owner, cancelled, simplequeue.StateRunning)
			if _, err := q.CancelAndWait(ctx, cancelled, "test"); err != nil {
				t.Errorf("CancelAndWait: %v", err)
			}
			for id, end := range want {
				awaitState(t, q, id, end)
			}
			eventually(t, "all is quiet", func() bool {
				n, err := q.Count(ctx, simplequeue.Filter{States: []simplequeue.State{simplequeue.StatePending, simplequeue.StateRunning, simplequeue.StateWaiting}})
				return err == nil && len(n) == 0
			})
			if h := q.Health(); !h.OK {
				t.Errorf("health: %v", h.Problems)
			}
			if err := stop(); err != nil {
				t.Errorf("Run: %v", err)
			}
			for _, line := range said.lines() {
				if strings.Contains(line, "42501") || strings.Contains(line, "level=ERROR") {
					t.Errorf("logged: %s", line)
				}
			}

			// A worker that died, its partition, and one whose day has passed.
			dead := insert(t, ins, simplequeue.NewJob{Queue: "b"})
			if _, err := g.owner.Exec(ctx, g.in(`CREATE TABLE {s}.job_queue_dlq_p20200101 PARTITION OF {s}.job_queue_dlq FOR VALUES FROM ('2020-01-01') TO ('2020-01-02')`)); err != nil {
				t.Fatal(err)
			}
			claims, err := q.Claim(ctx, "b", 1, time.Minute)
			if err != nil || len(claims) != 1 {
				t.Fatalf("Claim: %v, %v", claims, err)
			}
			if _, err := g.owner.Exec(ctx, g.in("UPDATE {s}.job_running SET claimed_at = now() - interval '1 hour'; UPDATE {s}.job_sweep SET continuous_since = '-infinity', swept_at = now() - interval '6 seconds' WHERE name = 'reaper'")); err != nil {
				t.Fatal(err)
			}
			r, err := reaper.New(g.work, reaper.Options{Schema: schema})
			if err != nil {
				t.Fatal(err)
			}
			eventually(t, "the claim of the dead worker is found", func() bool {
				result, err := r.Once(ctx)
				if err != nil {
					t.Fatalf("reaper: %v", err)
				}
				return result.Requeued == 1
			})
			if _, err := q.Cancel(ctx, dead, ""); err != nil {
				t.Errorf("Cancel: %v", err)
			}
			j, err := janitor.New(g.work, janitor.Options{Schema: schema, Keep: janitor.Keep{DeadLetter: 50 * 86400}})
			if err != nil {
				t.Fatal(err)
			}
			if result, err := j.Once(ctx); err != nil || result.Dropped != 1 || result.DeadLettered != 1 {
				t.Errorf("janitor: %+v, %v, want one partition dropped and one dead letter", result, err)
			}
			if _, err := q.Redrive(ctx, simplequeue.Filter{IDs: []uuid.UUID{dead}}, simplequeue.RedriveOptions{}); err != nil {
				t.Errorf("Redrive: %v", err)
			}
			lines := 0
			for id := range want {
				for _, err := range q.JobLog(ctx, id) {
					if err != nil {
						t.Errorf("JobLog: %v", err)
					}
					lines++
				}
			}
			if lines < len(want) {
				t.Errorf("%d lines of %d jobs are in the log", lines, len(want))
			}

			wantDenied(t, "Pause", q.Pause(ctx, "a", ""))
			wantDenied(t, "SetQueueLimit", q.SetQueueLimit(ctx, "a", 1))
			wantDenied(t, "SetFairWeight", q.SetFairWeight(ctx, "a", "k", 2))
			g.denied(t, g.work,
				"CREATE TABLE {s}.mine ()", "DROP TABLE {s}.job_queue", "TRUNCATE {s}.job_queue_dlq", "ALTER TABLE {s}.job_queue ADD COLUMN mine int",
				"DELETE FROM {s}.schema_migration", "INSERT INTO {s}.job_pause (queue) VALUES ('a')", "DELETE FROM {s}.job_bound",
				"CREATE TRIGGER mine BEFORE INSERT ON {s}.job_queue FOR EACH ROW EXECUTE FUNCTION {s}.guard_lane()",
				"CREATE FUNCTION {s}.mine() RETURNS int LANGUAGE sql AS 'SELECT 1'", "DROP FUNCTION {s}.rotate",
			)
		})
	}
}

// A role that administers runs queues, and migrates nothing.
func TestAdminRoleRunsQueues(t *testing.T) {
	t.Parallel()
	for _, schema := range roleSchemas {
		t.Run(schema, func(t *testing.T) {
			t.Parallel()
			g := newGranted(t, schema)
			ctx := t.Context()
			q := newQueue(t, g.admin, simplequeue.Options{Schema: schema})
			ins := newQueue(t, g.enqueue, simplequeue.Options{Schema: schema})
			insert(t, ins, simplequeue.NewJob{Queue: "a"})
			for what, do := range map[string]func() error{
				"SetQueueLimit": func() error {
					return errors.Join(q.SetQueueLimit(ctx, "a", 3), q.SetQueueLimit(ctx, "a", 1), q.SetQueueLimit(ctx, "a", simplequeue.Unlimited))
				},
				"SetFairWeight": func() error { return q.SetFairWeight(ctx, "a", "k", 2) },
				"Pause":         func() error { return errors.Join(q.Pause(ctx, "b", "why"), q.Resume(ctx, "b")) },
				"Drain":         func() error { return q.Drain(ctx, "c", "why") },
				"Queues": func() error {
					_, err := q.Queues(ctx)
					return err
				},
				"Workers": func() error {
					_, err := q.Workers(ctx)
					return err
				},
				"Change": func() error {
					id := insert(t, ins, simplequeue.NewJob{Queue: "d"})
					return q.Change(ctx, id, simplequeue.Change{Payload: "new"})
				},
				"cancel, redrive, purge": func() error {
					id := insert(t, ins, simplequeue.NewJob{Queue: "e"})
					f := simplequeue.Filter{IDs: []uuid.UUID{id}}
					if _, err := q.Cancel(ctx, id, ""); err != nil {
						return err
					}
					j, err := janitor.New(g.admin, janitor.Options{Schema: schema})
					if err != nil {
						return err
					}
					if _, err := j.Once(ctx); err != nil {
						return err
					}
					if _, err := q.Redrive(ctx, f, simplequeue.RedriveOptions{}); err != nil {
						return err
					}
					if _, err := q.Cancel(ctx, id, ""); err != nil {
						return err
					}
					if _, err := j.Once(ctx); err != nil {
						return err
					}
					_, err = q.Purge(ctx, f)
					return err
				},
			} {
				if err := do(); err != nil {
					t.Errorf("%s: %v", what, err)
				}
			}
			if err := migrate.UpPool(ctx, g.admin, schema); err != nil {
				t.Errorf("a migration that has nothing to do: %v", err)
			}
			g.denied(t, g.admin,
				"CREATE TABLE {s}.mine ()", "DROP TABLE {s}.job_queue", "TRUNCATE {s}.job_queue_dlq", "DELETE FROM {s}.schema_migration",
				"ALTER TABLE {s}.job_queue ADD COLUMN mine int", "DROP FUNCTION {s}.rotate",
			)
		})
	}
}
