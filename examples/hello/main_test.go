package main

import (
	"bytes"
	"context"
	"strings"
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
	for _, want := range []string{"Hello, World!", "attempt 1", "The job is completed."} {
		if !strings.Contains(out.String(), want) {
			t.Errorf("output lacks %q:\n%s", want, &out)
		}
	}

	var archived, live int
	err := pool.QueryRow(t.Context(), `
		SELECT (SELECT count(*) FROM simplequeue.job_queue_archive WHERE payload = '"World"'),
		       (SELECT count(*) FROM simplequeue.job WHERE finished_at IS NULL)`).Scan(&archived, &live)
	if err != nil {
		t.Fatal(err)
	}
	if archived != 1 || live != 0 {
		t.Errorf("%d jobs in the archive and %d live, want 1 and 0", archived, live)
	}
}
