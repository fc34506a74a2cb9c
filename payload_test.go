package simplequeue_test

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"math/rand/v2"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/google/uuid"

	"github.com/simplequeue/simplequeue"
	"github.com/simplequeue/simplequeue/backoff"
	"github.com/simplequeue/simplequeue/internal/pgtest"
)

// Payloads of any size arrive whole, on either side of the size above which
// they are stored apart, and more of them at once than a claim fetches.
func TestPayloadsOfAnySizeArriveWhole(t *testing.T) {
	t.Parallel()
	pool := pgtest.New(t)
	sizes := []int{0, 1, 1022, 1023, 1024, 1025, 100_000}
	for range 14 {
		sizes = append(sizes, 1<<20-100) // 14 MiB in all
	}
	var mu sync.Mutex
	wrong := map[int]string{}
	var ran atomic.Int64
	q := newQueue(t, pool, handler("a", func(_ context.Context, job *simplequeue.Job) error {
		var i int
		if _, err := fmt.Sscan(job.Kind, &i); err != nil {
			return err
		}
		var text string
		err := job.Decode(&text)
		if raw := job.Raw; err != nil || len(text) != sizes[i]/2 || len(raw) != sizes[i]-sizes[i]/2 || len(bytes.Trim(raw, "\xff")) != 0 || strings.Trim(text, "y") != "" {
			mu.Lock()
			wrong[i] = fmt.Sprintf("%d and %d bytes, %v", len(text), len(raw), err)
			mu.Unlock()
		}
		ran.Add(1)
		return nil
	}))
	var jobs []simplequeue.NewJob
	for i, n := range sizes {
		jobs = append(jobs, simplequeue.NewJob{
			Queue: "a", Kind: fmt.Sprint(i), Payload: strings.Repeat("y", n/2), Raw: bytes.Repeat([]byte{0xff}, n-n/2),
		})
	}
	if _, err := q.InsertMany(t.Context(), jobs); err != nil {
		t.Fatal(err)
	}
	start(t, q)
	eventually(t, "all ran", func() bool { return int(ran.Load()) == len(sizes) })
	for i, problem := range wrong {
		t.Errorf("payload of %d bytes arrived as %s", sizes[i], problem)
	}
	eventually(t, "no payload is left behind", func() bool {
		return queryOne[int](t, pool, "SELECT count(*) FROM simplequeue.job_payload") == 0
	})
}

// The boundary is where it is said to be: up to 1 kB a payload travels in the
// row.
func TestPayloadsAboveAKilobyteAreStoredApart(t *testing.T) {
	t.Parallel()
	pool := pgtest.New(t)
	q := newQueue(t, pool, simplequeue.Options{})
	for size, apart := range map[int]int{1024: 0, 1025: 1} {
		id := insert(t, q, simplequeue.NewJob{Queue: "a", Raw: make([]byte, size)})
		if n := queryOne[int](t, pool, "SELECT count(*) FROM simplequeue.job_payload WHERE id = $1", id); n != apart {
			t.Errorf("a payload of %d bytes has %d rows in job_payload, want %d", size, n, apart)
		}
	}
	// A number counts with all the digits that it arrives with.
	for payload, size := range map[string]int{"1e1023": 0, "1e1024": 1025, "[1e600,1e600]": 1205} {
		id := insert(t, q, simplequeue.NewJob{Queue: "a", Payload: json.RawMessage(payload)})
		if n := queryOne[int](t, pool, "SELECT payload_bytes FROM simplequeue.job_queue WHERE id = $1", id); n != size {
			t.Errorf("%s counts with %d bytes as stored apart, want %d", payload, n, size)
		}
	}
}

// A number counts with the bytes that PostgreSQL prints for it, or that it is
// written with if those are more.
func TestNumbersCountAsTheyArePrinted(t *testing.T) {
	t.Parallel()
	pool := pgtest.New(t)
	r := rand.New(rand.NewPCG(1, 2))
	digits := func(n int) string {
		b := make([]byte, n)
		for i := range b {
			b[i] = "00123456789"[r.IntN(11)]
		}
		return string(b)
	}
	var texts []string
	for range 3000 {
		n := []string{"0", "1", "20", "100", digits(r.IntN(9)) + "7"}[r.IntN(5)]
		if len(n) > 1 {
			n = "1" + n
		}
		if r.IntN(2) == 0 {
			n = "-" + n
		}
		if r.IntN(2) == 0 {
			n += "." + digits(1+r.IntN(8))
		}
		texts = append(texts, n+[]string{"", "e0", "E+007", fmt.Sprint("e", r.IntN(30)-15)}[r.IntN(4)])
	}
	texts = append(texts, "1e100000", "-1.5e99999", "1e-15990", "0e100000", "0e-15990")
	rows, err := pool.Query(t.Context(), "SELECT n, greatest(octet_length(n), octet_length(n::jsonb::text)) FROM unnest($1::text[]) AS n", texts)
	if err != nil {
		t.Fatal(err)
	}
	seen := 0
	for rows.Next() {
		var text string
		var want int64
		if err := rows.Scan(&text, &want); err != nil {
			t.Fatal(err)
		}
		if got := simplequeue.JSONSize(text); got != want {
			t.Errorf("%s counts with %d bytes, want %d", text, got, want)
		}
		seen++
	}
	if rows.Err() != nil || seen != len(texts) {
		t.Errorf("%d numbers of %d, %v", seen, len(texts), rows.Err())
	}
}

// A large payload is written once and not again until the job ends, however
// often the job moves.
func TestALargePayloadIsNotRewritten(t *testing.T) {
	t.Parallel()
	pool := pgtest.New(t)
	places := make(chan string, 10)
	q := newQueue(t, pool, simplequeue.Options{
		Backoff: backoff.Constant(time.Millisecond),
		Handlers: []simplequeue.Handler{simplequeue.HandlerFunc("a", func(ctx context.Context, job *simplequeue.Job) error {
			var place string
			if err := pool.QueryRow(ctx, "SELECT xmin::text || ctid::text || xmax::text FROM simplequeue.job_payload").Scan(&place); err != nil {
				return simplequeue.Critical(err)
			}
			places <- place
			switch {
			case len(job.Payload) != 100_002:
				return simplequeue.Critical(errors.New("payload is gone"))
			case job.Attempt == 3:
				return nil
			case job.Attempt == 2 && job.ReprocessCount == 0:
				return simplequeue.RescheduleAfter(0)
			}
			return errors.New("again")
		})},
	})
	id := insert(t, q, simplequeue.NewJob{Queue: "a", Payload: strings.Repeat("x", 100_000), Delay: time.Millisecond})
	first := queryOne[string](t, pool, "SELECT xmin::text || ctid::text || xmax::text FROM simplequeue.job_payload")
	start(t, q)
	if got := awaitState(t, q, id, simplequeue.StateCompleted); len(got.Payload) != 100_002 {
		t.Errorf("the archived payload has %d bytes", len(got.Payload))
	}
	close(places)
	n := 0
	for p := range places {
		n++
		if p != first {
			t.Errorf("the payload's row is %s at run %d, was %s", p, n, first)
		}
	}
	if n != 4 {
		t.Errorf("the job ran %d times, want 4", n)
	}
}

// A payload that no longer fits the handler's type ends the job, with the
// payload kept for a look.
func TestAPayloadThatDoesNotDecodeIsUnprocessable(t *testing.T) {
	t.Parallel()
	type now struct{ N int }
	pool := pgtest.New(t)
	q := newQueue(t, pool, simplequeue.Options{Handlers: []simplequeue.Handler{
		simplequeue.Typed("a", func(context.Context, *simplequeue.Job, now) error { return nil }),
	}})
	start(t, q)
	id := insert(t, q, simplequeue.NewJob{Queue: "a", Payload: json.RawMessage(`{"N": "many"}`)})
	got := awaitState(t, q, id, simplequeue.StateUnprocessable)
	if got.Attempt != 1 || string(got.Payload) != `{"N": "many"}` || !strings.Contains(got.LastError(), "N") {
		t.Errorf("after attempt %d: payload %s, error %q", got.Attempt, got.Payload, got.LastError())
	}
}

// A payload that the server cannot send, put there by SQL, ends its job as one
// that is gone does, and disturbs no job that was claimed with it.
func TestAPayloadThatCannotBeReadIsUnprocessable(t *testing.T) {
	t.Parallel()
	pool := pgtest.New(t)
	q := newQueue(t, pool, handler("a", func(context.Context, *simplequeue.Job) error { return nil }))
	before := insert(t, q, simplequeue.NewJob{Queue: "a", Raw: make([]byte, 2000)})
	id := insert(t, q, simplequeue.NewJob{Queue: "a", Raw: make([]byte, 2000)})
	after := insert(t, q, simplequeue.NewJob{Queue: "a", Raw: make([]byte, 2000)})
	if _, err := pool.Exec(t.Context(), "UPDATE simplequeue.job_payload SET payload = $2::text::jsonb WHERE id = $1",
		id, "["+strings.Repeat("1e100000,", 11_000)+"1]"); err != nil {
		t.Fatal(err)
	}
	start(t, q)
	eventually(t, "the job is a dead letter", func() bool {
		return queryOne[string](t, pool, "SELECT coalesce(max(state::text), '') FROM simplequeue.job WHERE id = $1", id) == "unprocessable"
	})
	for _, other := range []uuid.UUID{before, after} {
		if got := awaitState(t, q, other, simplequeue.StateCompleted); got.Attempt != 1 {
			t.Errorf("a neighbour took %d attempts", got.Attempt)
		}
	}
}

// TestNoIndexOfPayloads: every index is a B-tree of columns that jobs have for
// it, so that none grows with what payloads hold.
func TestNoIndexOfPayloads(t *testing.T) {
	t.Parallel()
	pool := pgtest.New(t)
	makeRoom(t, pool)
	var found []string
	if err := pool.QueryRow(t.Context(), `
		SELECT array_agg(i.indexrelid::regclass::text)
		FROM pg_index AS i
		JOIN pg_class AS c ON c.oid = i.indexrelid
		JOIN pg_am AS a ON a.oid = c.relam
		WHERE c.relnamespace = 'simplequeue'::regnamespace
		  AND (a.amname <> 'btree' OR EXISTS (
		      SELECT FROM pg_attribute AS t
		      WHERE t.attrelid = i.indexrelid AND t.atttypid IN ('jsonb'::regtype, 'bytea'::regtype)
		        AND t.attname <> 'uuid_send'))`).Scan(&found); err != nil {
		t.Fatal(err)
	}
	if found != nil {
		t.Errorf("indexes of what payloads hold: %v", found)
	}
}
