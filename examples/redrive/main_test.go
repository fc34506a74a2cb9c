package main

import (
	"bytes"
	"context"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/simplequeue/simplequeue/internal/pgtest"
)

func TestMain(m *testing.M) { pgtest.Main(m) }

func TestRun(t *testing.T) {
	url := pgtest.EmptyDatabase(t)
	t.Setenv("DATABASE_URL", url)
	t.Setenv("SIMPLEQUEUE_TEST_PROVIDER", "environment")
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	var out bytes.Buffer
	if err := run(ctx, &out); err != nil {
		t.Fatalf("run: %v\n%s", err, &out)
	}
	want := `Why is the first mail not sent? ended
Page 1: 100 mails, the first of which failed with "no answer from the relay".
Page 2: 100 mails, the first of which failed with "no answer from the relay".
Page 3: 50 mails, the first of which failed with "no answer from the relay".
Redriven: 1, then 249.
All mails are sent.
`
	if diff := cmp.Diff(want, out.String()); diff != "" {
		t.Error(diff)
	}
	pool := pgtest.Pool(t, url, 1)
	var corrected int
	err := pool.QueryRow(t.Context(), `SELECT count(*) FROM simplequeue.job_queue_archive WHERE payload = '"customer"'`).Scan(&corrected)
	if err != nil || corrected != 1 {
		t.Errorf("%d corrected mails, %v", corrected, err)
	}
}
