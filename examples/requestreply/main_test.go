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
	for _, want := range []string{
		`"to be or not to be": 200 OK: {"Words":6,"Letters":13}`,
		`"": 422 Unprocessable Entity: there is no text`,
		`"very long and more": 504 Gateway Timeout: no answer in time`,
		"the worker gave up: simplequeue: job cancelled",
	} {
		if !strings.Contains(out.String(), want) {
			t.Errorf("output lacks %q:\n%s", want, &out)
		}
	}
	var kept int
	if err := pool.QueryRow(t.Context(), "SELECT count(*) FROM simplequeue.job").Scan(&kept); err != nil {
		t.Fatal(err)
	}
	if kept != 0 {
		t.Errorf("%d jobs are kept, want none", kept)
	}
}
