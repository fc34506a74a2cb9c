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
	want := `asking how many readings there are
attempt 1 begins at reading 0
attempt 2 begins at reading 300
the program is stopped and started again
attempt 2 begins at reading 600
completed: 1000 readings, the largest is 999
the job's log:
  attempt 1: begins {"next": 0}
  attempt 2: begins {"next": 300}
  attempt 2: begins {"next": 600}
  attempt 2: all imported 
`
	if out.String() != want {
		t.Errorf("output:\n%s\nwant:\n%s", &out, want)
	}
	var readings, steps int
	err := pool.QueryRow(t.Context(), `
		SELECT (SELECT count(*) FROM simplequeue_import.readings), (SELECT count(*) FROM simplequeue.job_payload)`).Scan(&readings, &steps)
	if err != nil || readings != 1000 || steps != 0 {
		t.Errorf("%d readings, %d payloads left behind, %v, want 1000 and 0", readings, steps, err)
	}
}
