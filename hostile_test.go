package simplequeue_test

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"maps"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/uuid"
	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgxpool"

	"github.com/simplequeue/simplequeue"
	"github.com/simplequeue/simplequeue/internal/pgtest"
	"github.com/simplequeue/simplequeue/migrate"
)

// hostile are texts that end up as something else wherever a text becomes part
// of a statement, an array, a notification or a template.
var hostile = []string{
	`'; DROP TABLE simplequeue.job_queue; --`,
	`"; DROP SCHEMA simplequeue CASCADE; --`,
	`\'; DELETE FROM simplequeue.job_queue; --`,
	`') ON CONFLICT DO NOTHING; TRUNCATE simplequeue.job_queue; --`,
	`$$; DROP TABLE simplequeue.job_queue; $$`,
	`$1 $2 $17 ${x} %s %d %n %I %L`,
	`{schema}.{job} {slot} {x.job}`,
	`{a,"b",NULL}`,
	`NULL`,
	`\N`,
	`\`,
	`\\`,
	`"`,
	`'`,
	`/* */ -- `,
	`U&'\0041' E'\x41'`,
	`(,"",)`,
	`0:emails`,
	`!`,
	`=`,
	`?probe`,
	` leading and trailing `,
	"\u202etxt.exe\u2066 \u200b \ufeff",
	"\U0001F4A9 \u00e9 e\u0301 \uffff",
	`<script>alert(1)</script>&amp;`,
	`../../etc/passwd`,
	`{"json": [1, "\u0041"]}`,
}

// multiline are those that names of queues may not hold.
var multiline = []string{"a\nb", "0:x\n!", "a\r\nb\tc\x01\x7f", "COPY\n\\.\n"}

// wire are the ways in which pgx sends statements; in the last one it writes
// arguments into the text.
var wire = map[string]pgx.QueryExecMode{
	"prepared": pgx.QueryExecModeCacheStatement, "simple protocol": pgx.QueryExecModeSimpleProtocol,
}

// TestHostileTextsComeBackByteForByte puts hostile texts into every text of a
// job, by every way of inserting, and finds them as they were: in the database,
// in the handler and in what filters find.
func TestHostileTextsComeBackByteForByte(t *testing.T) {
	t.Parallel()
	for name, mode := range wire {
		for _, schema := range []string{"simplequeue", `"; DROP SCHEMA public; --'{job}{slot}{x.job}{table}`} {
			t.Run(name+" "+schema, func(t *testing.T) {
				t.Parallel()
				url := pgtest.EmptyDatabase(t)
				if err := migrate.UpPool(t.Context(), pgtest.Pool(t, url, 1), schema); err != nil {
					t.Fatal(err)
				}
				config, err := pgxpool.ParseConfig(url)
				if err != nil {
					t.Fatal(err)
				}
				config.ConnConfig.DefaultQueryExecMode = mode
				pool, err := pgxpool.NewWithConfig(t.Context(), config)
				if err != nil {
					t.Fatal(err)
				}
				t.Cleanup(pool.Close)
				tryHostile(t, pool, schema)
			})
		}
	}
}

func tryHostile(t *testing.T, pool *pgxpool.Pool, schema string) {
	ctx := t.Context()
	seen := make(chan *simplequeue.Job, 1000)
	q := newQueue(t, pool, simplequeue.Options{
		Schema: schema, Name: hostile[0], LogSink: simplequeue.LogTable(),
		Handlers: []simplequeue.Handler{simplequeue.HandlerFunc("*", func(ctx context.Context, job *simplequeue.Job) error {
			simplequeue.Logger(ctx).Info(job.Kind, "text", job.Kind)
			if job.Attempt == 1 {
				return simplequeue.RetryAfter(time.Millisecond, errors.New(job.Kind))
			}
			seen <- job
			if err := job.SetResult(job.Kind); err != nil {
				return err
			}
			return nil
		})},
	})
	want := map[uuid.UUID]simplequeue.NewJob{}
	keep := func(job simplequeue.NewJob, r simplequeue.Inserted, err error) {
		t.Helper()
		if err != nil || r.Duplicate {
			t.Errorf("insert %q: %+v, %v", job.Queue, r, err)
			return
		}
		want[r.ID] = job
	}
	jobOf := func(text, way string) simplequeue.NewJob {
		queue := text
		if slices.Contains(multiline, text) || strings.Contains(text, "*") {
			queue = "queue"
		}
		return simplequeue.NewJob{
			Queue: queue, Kind: text, Fingerprint: text, Payload: map[string]string{text: text}, Raw: []byte(text),
			UniqueKey: way + text, Metadata: map[string]string{text: text}, TraceContext: map[string]string{text: text},
		}
	}
	var copied []simplequeue.NewJob
	for _, text := range append(slices.Clone(hostile), multiline...) {
		job := jobOf(text, "one ")
		job.OrderKey, job.FairnessKey = text, text
		r, err := q.Insert(ctx, job)
		keep(job, r, err)

		job = jobOf(text, "")
		job.UniqueKey = ""
		r, err = q.Insert(ctx, job)
		keep(job, r, err)
		copied = append(copied, slices.Repeat([]simplequeue.NewJob{job}, 7)...) // enough for a COPY

		err = pgx.BeginFunc(ctx, pool, func(tx pgx.Tx) error {
			job := jobOf(text, "tx ")
			job.Unique = simplequeue.Unique{Fields: []string{"."}, Window: time.Hour}
			r, err := q.InsertTx(ctx, tx, job)
			keep(job, r, err)
			job = jobOf(text, "sql ")
			job.OrderKey, job.FairnessKey = text, text
			payload, err := json.Marshal(job.Payload)
			if err != nil {
				return err
			}
			props, err := json.Marshal(job.Metadata)
			if err != nil {
				return err
			}
			r = simplequeue.Inserted{}
			err = tx.QueryRow(ctx, "SELECT id, duplicate FROM "+pgx.Identifier{schema}.Sanitize()+
				".enqueue($1::text, $2::text::jsonb, $3::text, unique_key => $4::text, fingerprint => $5::text, metadata => $6::text::jsonb, trace_context => $6::text::jsonb, raw => $7::bytea, order_key => $8::text, fairness_key => $8::text)",
				job.Queue, string(payload), job.Kind, job.UniqueKey, job.Fingerprint, string(props), job.Raw, job.OrderKey).Scan(&r.ID, &r.Duplicate)
			keep(job, r, err)
			return err
		})
		if err != nil {
			t.Errorf("transaction with %q: %v", text, err)
		}
	}
	results, err := q.InsertMany(ctx, copied)
	if err != nil || len(results) < 200 {
		t.Fatalf("InsertMany: %v", err)
	}
	for i, r := range results {
		keep(copied[i], r, nil)
	}
	for _, text := range append(slices.Clone(hostile), multiline...) {
		for field, f := range map[string]simplequeue.Filter{
			"Kind": {Kind: text}, "Fingerprint": {Fingerprint: text}, "Metadata": {Metadata: map[string]string{text: text}}, "UniqueKey": {UniqueKey: "one " + text},
			"OrderKey": {OrderKey: text}, "FairnessKey": {FairnessKey: text},
		} {
			n, err := q.Count(ctx, f)
			least := int64(11)
			switch field {
			case "UniqueKey":
				least = 1
			case "OrderKey", "FairnessKey":
				least = 2
			}
			if err != nil || n[simplequeue.StatePending]+n[simplequeue.StateWaiting] != least {
				t.Errorf("jobs of %s %q: %v, %v, want %d", field, text, n, err, least)
			}
		}
		if !slices.Contains(multiline, text) && !strings.Contains(text, "*") {
			if err := errors.Join(q.Pause(ctx, text, text), q.Resume(ctx, text), q.SetQueueLimit(ctx, text, 1000), q.SetQueueLimit(ctx, text, simplequeue.Unlimited), q.SetFairWeight(ctx, text, text, 2)); err != nil {
				t.Errorf("operate queue %q: %v", text, err)
			}
		}
	}
	cancelled := jobOf("cancelled", "one ")
	cancelled.Queue, cancelled.Delay = "queue", time.Hour
	id := insert(t, q, cancelled)
	if _, err := q.Cancel(ctx, id, hostile[0]); err != nil {
		t.Errorf("Cancel: %v", err)
	}
	start(t, q)
	if info := awaitState(t, q, id, simplequeue.StateCancelled); info.Reason != hostile[0] {
		t.Errorf("reason %q", info.Reason)
	}
	for range want {
		select {
		case job := <-seen:
			checkHostile(t, "handler", job, want[job.ID])
		case <-time.After(30 * time.Second):
			t.Fatal("not all jobs have run")
		}
	}
	for id, job := range want {
		info := awaitState(t, q, id, simplequeue.StateCompleted)
		checkHostile(t, "archive", &info.Job, job)
		var result string
		if err := json.Unmarshal(info.Result, &result); err != nil || result != job.Kind || info.LastError() != job.Kind && !strings.ContainsRune(job.Kind, 0) {
			t.Errorf("%q: result %q, last error %q, %v", job.Kind, result, info.LastError(), err)
		}
	}
	workers, err := q.Workers(ctx)
	if err != nil || len(workers) != 1 || workers[0].Name != hostile[0] {
		t.Errorf("workers %+v, %v", workers, err)
	}
}

// checkHostile compares a job with what was inserted.
func checkHostile(t *testing.T, where string, got *simplequeue.Job, want simplequeue.NewJob) {
	t.Helper()
	var payload map[string]string
	err := json.Unmarshal(got.Payload, &payload)
	key := got.UniqueKey
	if want.Unique.Window > 0 { // a digest and a time follow
		key = key[:min(len(key), len(want.UniqueKey))]
	}
	if err != nil || got.Queue != want.Queue || got.Kind != want.Kind || got.Fingerprint != want.Fingerprint || got.OrderKey != want.OrderKey || got.FairnessKey != want.FairnessKey || key != want.UniqueKey ||
		!bytes.Equal(got.Raw, want.Raw) || !maps.Equal(got.Metadata, want.Metadata) || !maps.Equal(got.TraceContext, want.TraceContext) ||
		!maps.Equal(payload, want.Payload.(map[string]string)) {
		t.Errorf("%s: %+v, want %+v (%v)", where, got, want, err)
	}
}
