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
	t.Setenv("DATABASE_URL", pgtest.EmptyDatabase(t))
	t.Setenv("SIMPLEQUEUE_TEST_PROVIDER", "environment")
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	var out bytes.Buffer
	if err := run(ctx, &out); err != nil {
		t.Fatalf("run: %v\n%s", err, &out)
	}
	got := map[string]string{}
	for line := range strings.Lines(out.String()) {
		if customer, event, ok := strings.Cut(line, ": "); ok && !strings.Contains(line, "blocked") {
			got[customer] += event[:1]
		}
	}
	for customer, want := range map[string]string{"ada": "12345", "grace": "12345", "edsger": "1245"} {
		if got[customer] != want {
			t.Errorf("%s was told %s, want %s:\n%s", customer, got[customer], want, &out)
		}
	}
	if want := "edsger is blocked by job critical_failure: 410 gone"; strings.Count(out.String(), want) != 1 {
		t.Errorf("output lacks %q:\n%s", want, &out)
	}
}
