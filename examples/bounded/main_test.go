package main

import (
	"bytes"
	"context"
	"testing"
	"time"

	"github.com/simplequeue/simplequeue/internal/pgtest"
)

func TestMain(m *testing.M) { pgtest.Main(m) }

func TestRun(t *testing.T) {
	url := pgtest.EmptyDatabase(t)
	t.Setenv("DATABASE_URL", url)
	t.Setenv("SIMPLEQUEUE_TEST_PROVIDER", "environment")
	pool := pgtest.Pool(t, url, 2)

	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	var out bytes.Buffer
	if err := run(ctx, &out); err != nil {
		t.Fatalf("run: %v\n%s", err, &out)
	}
	want := `page 1: 202 Accepted
page 2: 202 Accepted
page 3: 202 Accepted
page 4: 503 Service Unavailable, retry after 5 s
page 5: 503 Service Unavailable, retry after 5 s
now a worker starts
page 6: 202 Accepted
`
	if out.String() != want {
		t.Errorf("output:\n%s\nwant:\n%s", &out, want)
	}
	var archived, live int
	if err := pool.QueryRow(t.Context(), `
		SELECT (SELECT count(*) FROM simplequeue.job_queue_archive), (SELECT count(*) FROM simplequeue.job_live)`).Scan(&archived, &live); err != nil {
		t.Fatal(err)
	}
	if archived != 3 || live != 1 {
		t.Errorf("%d jobs in the archive and %d live, want 3 and 1", archived, live)
	}
}
