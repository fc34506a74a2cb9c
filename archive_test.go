package simplequeue_test

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"testing"
	"time"
	"unicode/utf8"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"
	"github.com/google/uuid"
	"github.com/jackc/pgx/v5"

	"github.com/simplequeue/simplequeue"
	"github.com/simplequeue/simplequeue/backoff"
	"github.com/simplequeue/simplequeue/internal/pgtest"
)

// endings are handlers for every way a job can end in a worker, by kind.
var endings = map[string]func(ctx context.Context, job *simplequeue.Job) error{
	"nil":      func(context.Context, *simplequeue.Job) error { return nil },
	"complete": func(context.Context, *simplequeue.Job) error { return simplequeue.Complete() },
	"second": func(_ context.Context, job *simplequeue.Job) error {
		if job.Attempt == 1 {
			return errors.New("first")
		}
		return nil
	},
	"error":         func(_ context.Context, job *simplequeue.Job) error { return fmt.Errorf("attempt %d", job.Attempt) },
	"panic":         func(context.Context, *simplequeue.Job) error { panic("oh") },
	"cancel":        func(context.Context, *simplequeue.Job) error { return simplequeue.Cancel(errors.New("not needed")) },
	"critical":      func(context.Context, *simplequeue.Job) error { return simplequeue.Critical(errors.New("disk gone")) },
	"unprocessable": func(context.Context, *simplequeue.Job) error { return simplequeue.Unprocessable(errors.New("no JSON")) },
	"reschedule":    func(context.Context, *simplequeue.Job) error { return simplequeue.RescheduleAfter(0) },
}

// endAll runs a job of each kind to its end, and returns the rows that are
// left, by kind, when the sweeps have nothing more to do.
func endAll(t *testing.T, opts simplequeue.Options) (map[string]simplequeue.JobInfo, map[string]string) {
	pool := pgtest.New(t)
	mux := simplequeue.NewMux("a")
	for kind, process := range endings {
		mux.HandleFunc(kind, process)
	}
	opts.Handlers = []simplequeue.Handler{mux}
	opts.Backoff = backoff.Constant(time.Millisecond)
	opts.JanitorInterval = 20 * time.Millisecond
	opts.MaxReschedules = 2
	q := newQueue(t, pool, opts)
	start(t, q)
	ids := map[string]uuid.UUID{}
	for kind := range endings {
		job := allFields()
		job.Queue, job.Kind, job.UniqueKey, job.MaxAttempts = "a", kind, kind, 2
		if kind == "panic" {
			job.Raw = make([]byte, 5000)
		}
		ids[kind] = insert(t, q, job)
	}
	waiting := insert(t, q, simplequeue.NewJob{Queue: "b", Kind: "waiting", Delay: time.Hour})
	if _, err := q.Cancel(t.Context(), waiting, "obsolete"); err != nil {
		t.Fatal(err)
	}
	ids["waiting"] = waiting
	const moved = "SELECT (SELECT count(*) FROM simplequeue.job_queue_archive) + (SELECT count(*) FROM simplequeue.job_queue_dlq)"
	eventually(t, "all jobs are archived or dead letters", func() bool { return queryOne[int](t, pool, moved) == len(ids) })
	for _, table := range []string{"job_queue", "job_waiting", "job_running", "job_finished", "job_unique", "job_fingerprint", "job_payload"} {
		if n := queryOne[int](t, pool, "SELECT count(*) FROM simplequeue."+table); n != 0 {
			t.Errorf("%s holds %d rows when all jobs have ended", table, n)
		}
	}
	rows := map[string]simplequeue.JobInfo{}
	tables := map[string]string{}
	for kind, id := range ids {
		rows[kind] = get(t, q, id)
		tables[kind] = queryOne[string](t, pool, `SELECT 'archive' FROM simplequeue.job_queue_archive WHERE id = $1
			UNION ALL SELECT 'dlq' FROM simplequeue.job_queue_dlq WHERE id = $1`, id)
	}
	return rows, tables
}

// Completed jobs end in the archive and all others in the dead letter queue,
// with the reason and the history of their errors; nothing else is left of
// them. An outcome that takes the detour over job_finished ends the same.
func TestEveryEndingHasItsTableItsReasonAndItsHistory(t *testing.T) {
	t.Parallel()
	for name, aside := range map[string]bool{"direct": false, "aside": true} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			var opts simplequeue.Options
			if aside {
				opts = opts.FinishAside()
			}
			rows, tables := endAll(t, opts)
			type ending struct {
				Table   string
				State   simplequeue.State
				Reason  string
				Attempt int
				Errors  []string
			}
			got := map[string]ending{}
			for kind, r := range rows {
				e := ending{Table: tables[kind], State: r.State, Reason: r.Reason, Attempt: r.Attempt}
				for i, one := range r.Errors {
					e.Errors = append(e.Errors, fmt.Sprintf("%d %s: %s", one.Attempt, one.Reason, one.Error))
					if one.At.IsZero() || (one.Stack != "") != (kind == "panic" && i == len(r.Errors)-1) {
						t.Errorf("%s: entry %d has time %v and %d bytes of stack", kind, i, one.At, len(one.Stack))
					}
				}
				got[kind] = e
				if r.FinishedAt.IsZero() || kind != "waiting" && (r.StartedAt.IsZero() || r.WorkerID == uuid.Nil) {
					t.Errorf("%s: started %v, finished %v, worker %v", kind, r.StartedAt, r.FinishedAt, r.WorkerID)
				}
				if want := allFields(); kind != "waiting" && (!cmp.Equal(want.Metadata, r.Metadata) || r.UniqueKey != kind || r.Fingerprint != want.Fingerprint ||
					len(r.Payload) == 0 || len(r.Raw) == 0 || r.Priority != want.Priority || r.MaxAttempts != 2 || r.Timeout != want.Timeout) {
					t.Errorf("%s: the row lost something: %+v", kind, r)
				}
			}
			const archive, dlq = "archive", "dlq"
			want := map[string]ending{
				"nil":           {archive, simplequeue.StateCompleted, "", 1, nil},
				"complete":      {archive, simplequeue.StateCompleted, "", 1, nil},
				"second":        {archive, simplequeue.StateCompleted, "", 2, []string{"1 retry: first"}},
				"error":         {dlq, simplequeue.StateFailed, "failed 2 of 2 attempts", 2, []string{"1 retry: attempt 1", "2 failed: attempt 2"}},
				"panic":         {dlq, simplequeue.StateFailed, "failed 2 of 2 attempts", 2, []string{"1 retry: panic: oh", "2 failed: panic: oh"}},
				"cancel":        {dlq, simplequeue.StateCancelled, "not needed", 1, []string{"1 cancelled: not needed"}},
				"critical":      {dlq, simplequeue.StateCritical, "critical failure", 1, []string{"1 critical_failure: disk gone"}},
				"unprocessable": {dlq, simplequeue.StateUnprocessable, "unprocessable", 1, []string{"1 unprocessable: no JSON"}},
				"reschedule":    {dlq, simplequeue.StateBadJob, "rescheduled 2 times", 1, []string{"1 bad_job: reschedule after 0s"}},
				"waiting":       {dlq, simplequeue.StateCancelled, "obsolete", 0, nil},
			}
			if d := cmp.Diff(want, got); d != "" {
				t.Errorf("endings (-want +got):\n%s", d)
			}
		})
	}
}

// The detour over job_finished changes nothing in a row but its times.
func TestOutcomesSetAsideLeaveTheSameRows(t *testing.T) {
	t.Parallel()
	direct, _ := endAll(t, simplequeue.Options{})
	aside, _ := endAll(t, simplequeue.Options{}.FinishAside())
	ignore := cmp.Options{
		ignoreIdentity, cmpopts.EquateEmpty(), cmpopts.IgnoreFields(simplequeue.JobInfo{}, "StartedAt", "FinishedAt", "WorkerID"),
		cmpopts.IgnoreFields(simplequeue.AttemptError{}, "At", "Stack"),
	}
	if d := cmp.Diff(direct, aside, ignore); d != "" {
		t.Errorf("rows differ (-direct +aside):\n%s", d)
	}
}

// What a run produces never keeps a job from ending, whatever bytes it is made
// of and however much it is, and the history is bounded.
func TestAnyErrorTextCanBeStored(t *testing.T) {
	t.Parallel()
	pool := pgtest.New(t)
	huge := strings.Repeat("x☃\x00", 2<<20)
	texts := []string{"", "\x00", "\xff\xfe\x80", `\u0000`, "\xed\xa0\x80", strings.Repeat("\x00", 100_000), huge}
	opts := handler("a", func(_ context.Context, job *simplequeue.Job) error {
		text := texts[job.Priority]
		switch {
		case job.Attempt < 3:
			return simplequeue.RetryAfter(0, errors.New(text))
		case job.Kind == "panic":
			panic(text)
		case job.Kind == "critical":
			return simplequeue.Critical(errors.New(text))
		case job.Kind == "cancel":
			return simplequeue.Cancel(errors.New(text))
		}
		return errors.New(text)
	})
	q := newQueue(t, pool, opts)
	start(t, q)
	ids := map[string]uuid.UUID{}
	for i := range texts {
		for _, kind := range []string{"error", "panic", "critical", "cancel"} {
			ids[fmt.Sprint(kind, i)] = insert(t, q, simplequeue.NewJob{Queue: "a", Kind: kind, Priority: i})
		}
	}
	for name, id := range ids {
		eventually(t, name+" ended", func() bool { return state(t, q, id).Terminal() })
		info := get(t, q, id)
		if len(info.Errors) != 3 {
			t.Errorf("%s: %d errors are recorded, want those of all attempts", name, len(info.Errors))
		}
		for _, e := range info.Errors {
			if !utf8.ValidString(e.Error) || strings.ContainsRune(e.Error, 0) || len(e.Error) > 2<<10 || len(e.Stack) > 4<<10 || strings.Contains(e.Error, "refused") {
				t.Errorf("%s: recorded as %.40q, %d bytes and %d bytes of stack", name, e.Error, len(e.Error), len(e.Stack))
			}
		}
		if size := queryOne[int](t, pool, "SELECT pg_column_size(d.errors) + coalesce(octet_length(d.reason), 0) FROM simplequeue.job_queue_dlq AS d WHERE id = $1", id); size > 32<<10 {
			t.Errorf("%s: its row holds %d bytes of history", name, size)
		}
	}
}

// The history keeps the last ten errors, and only the last one's stack.
func TestTheErrorHistoryIsBounded(t *testing.T) {
	t.Parallel()
	pool := pgtest.New(t)
	huge := strings.Repeat("x", 50<<20)
	q := newQueue(t, pool, simplequeue.Options{
		Backoff: backoff.Constant(time.Millisecond),
		Handlers: []simplequeue.Handler{simplequeue.HandlerFunc("a", func(_ context.Context, job *simplequeue.Job) error {
			if job.Attempt < 24 {
				panic(huge[:1<<20])
			}
			panic(huge)
		})},
	})
	start(t, q)
	got := awaitState(t, q, insert(t, q, simplequeue.NewJob{Queue: "a", MaxAttempts: 25}), simplequeue.StateFailed)
	if len(got.Errors) != 10 || got.Errors[0].Attempt != 16 || got.Errors[9].Attempt != 25 {
		t.Errorf("%d errors, want those of attempts 16 to 25", len(got.Errors))
	}
	for i, e := range got.Errors {
		if len(e.Error) > 2<<10 || len(e.Stack) > 4<<10 || (e.Stack != "") != (i == 9) {
			t.Errorf("entry %d has %d bytes of text and %d of stack", i, len(e.Error), len(e.Stack))
		}
	}
	if size := queryOne[int](t, pool, "SELECT octet_length(errors::text) FROM simplequeue.job_queue_dlq"); size > 32<<10 {
		t.Errorf("the history takes %d bytes", size)
	}
}

// A job may be rescheduled for ever where that is allowed: counters go on far,
// and its row does not grow.
func TestReschedulesWithoutLimit(t *testing.T) {
	t.Parallel()
	pool := pgtest.New(t)
	opts := handler("a", func(_ context.Context, job *simplequeue.Job) error {
		if job.ReprocessCount < 100_003 {
			return simplequeue.RescheduleAfter(0)
		}
		return nil
	})
	opts.MaxReschedules = -1
	q := newQueue(t, pool, opts)
	id := insert(t, q, simplequeue.NewJob{Queue: "a"})
	execute(t, pool, "UPDATE simplequeue.job_queue SET reprocess_count = 99990")
	start(t, q)
	if got := awaitState(t, q, id, simplequeue.StateCompleted); got.ReprocessCount != 100_003 || got.Attempt != 1 || len(got.Errors) != 0 {
		t.Errorf("rescheduled %d times, attempt %d, %d errors", got.ReprocessCount, got.Attempt, len(got.Errors))
	}
}

// The view shows a job in every state, payload included, and so does a plain
// SELECT on the two tables for operators.
func TestTheViewShowsEveryState(t *testing.T) {
	t.Parallel()
	pool := pgtest.New(t)
	hold := make(chan struct{})
	q := newQueue(t, pool, simplequeue.Options{JanitorInterval: time.Hour, Handlers: []simplequeue.Handler{
		simplequeue.HandlerFunc("held", func(context.Context, *simplequeue.Job) error { <-hold; return nil }),
		simplequeue.HandlerFunc("done", func(context.Context, *simplequeue.Job) error { return nil }),
		simplequeue.HandlerFunc("dead", func(context.Context, *simplequeue.Job) error { return simplequeue.Critical(nil) }),
	}})
	start(t, q)
	defer close(hold)
	for _, size := range []int{10, 5000} { // in the row, and apart
		payload := strings.Repeat("x", size)
		ids := map[simplequeue.State]uuid.UUID{
			simplequeue.StateWaiting:    insert(t, q, simplequeue.NewJob{Queue: "none", Payload: payload, Raw: []byte{1}, Delay: time.Hour}),
			simplequeue.StatePending:    insert(t, q, simplequeue.NewJob{Queue: "none", Payload: payload, Raw: []byte{1}}),
			simplequeue.StateRunning:    insert(t, q, simplequeue.NewJob{Queue: "held", Payload: payload, Raw: []byte{1}}),
			simplequeue.StateCancelling: insert(t, q, simplequeue.NewJob{Queue: "held", Payload: payload, Raw: []byte{1}}),
			simplequeue.StateCancelled:  insert(t, q, simplequeue.NewJob{Queue: "none", Payload: payload, Raw: []byte{1}}),
			simplequeue.StateCompleted:  insert(t, q, simplequeue.NewJob{Queue: "done", Payload: payload, Raw: []byte{1}}),
			simplequeue.StateCritical:   insert(t, q, simplequeue.NewJob{Queue: "dead", Payload: payload, Raw: []byte{1}}),
		}
		awaitState(t, q, ids[simplequeue.StateCancelling], simplequeue.StateRunning)
		for _, s := range []simplequeue.State{simplequeue.StateCancelling, simplequeue.StateCancelled} {
			if _, err := q.Cancel(t.Context(), ids[s], ""); err != nil {
				t.Fatal(err)
			}
		}
		for want, id := range ids {
			if got := awaitState(t, q, id, want); len(got.Payload) != size+2 || len(got.Raw) != 1 {
				t.Errorf("%s job has %d bytes of payload and %d raw, want %d and 1", want, len(got.Payload), len(got.Raw), size+2)
			}
		}
	}
	rows, err := pool.Query(t.Context(), "SELECT state FROM simplequeue.job GROUP BY state HAVING count(*) = 2 ORDER BY state")
	if err != nil {
		t.Fatal(err)
	}
	states, err := pgx.CollectRows(rows, pgx.RowTo[string])
	if err != nil {
		t.Fatal(err)
	}
	if want := []string{"cancelled", "cancelling", "completed", "critical_failure", "pending", "running", "waiting"}; !cmp.Equal(want, states) {
		t.Errorf("states %v, want two jobs each of %v", states, want)
	}
}
