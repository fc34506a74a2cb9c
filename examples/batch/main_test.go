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
	want := `999 measurements written in batches of up to 100
refused: -1 K is colder than can be
`
	if out.String() != want {
		t.Errorf("output:\n%s\nwant:\n%s", &out, want)
	}
	var rows, completed int
	if err := pool.QueryRow(t.Context(), `
		SELECT (SELECT count(*) FROM measurement), (SELECT count(*) FROM simplequeue.job_queue_archive)`).Scan(&rows, &completed); err != nil {
		t.Fatal(err)
	}
	if rows != 999 || completed != 999 {
		t.Errorf("%d rows and %d completed jobs, want 999 each", rows, completed)
	}
}
