package main

import (
	"context"
	"fmt"
	"testing"

	"github.com/simplequeue/simplequeue/internal/pgtest"
)

// TestFloorOnAllTables: ctids repeat from table to table of the rings, and the
// plain SQL must take each row for what it is.
func TestFloorOnAllTables(t *testing.T) {
	t.Parallel()
	ctx := t.Context()
	f := &floor{setup: Setup{URL: pgtest.EmptyDatabase(t), Conns: 6, Queues: []string{benchQueue}, Bytes: smallPayload}}
	if err := f.Open(ctx); err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	if err := f.Migrate(ctx); err != nil {
		t.Fatal(err)
	}
	conn := pgtest.Pool(t, f.setup.URL, 1)
	tr := &trial{runner: &runner{config: config{call: 100}}, contestant: f, setup: f.setup, ledger: &ledger{}}

	// A claim takes the rows that it has locked and no others.
	for i := range len(f.tables) {
		const chunk = 1 << 18 // rows in a row of one table
		if _, err := conn.Exec(ctx, fmt.Sprintf("ALTER TABLE simplequeue.job_queue ALTER seq RESTART %d", i*chunk+1)); err != nil {
			t.Fatal(err)
		}
		if err := tr.insertAll(ctx, 25); err != nil {
			t.Fatal(err)
		}
	}
	claimed := 0
	for _, table := range f.tables {
		tag, err := f.pool.Exec(ctx, fmt.Sprintf(floorClaim, table), benchQueue, 0, 10)
		if err != nil {
			t.Fatal(err)
		}
		if tag.RowsAffected() != 10 {
			t.Errorf("a claim of 10 jobs from %s took %d", table, tag.RowsAffected())
		}
		claimed += int(tag.RowsAffected())
	}
	if claimed != 40 {
		t.Errorf("%d jobs claimed from %v, want 40 from four tables", claimed, f.tables)
	}
	if _, err := conn.Exec(ctx, "DELETE FROM simplequeue.job_running; DELETE FROM simplequeue.job_queue"); err != nil {
		t.Fatal(err)
	}
	tr.ledger = &ledger{}

	err := tr.withWorkers(ctx, func(ctx context.Context) error {
		if err := tr.insertAll(ctx, 3000); err != nil {
			return err
		}
		for range 20 {
			if _, err := tr.insertOne(ctx, ""); err != nil {
				return err
			}
		}
		return tr.settle(ctx)
	})
	if err != nil {
		t.Fatal(err)
	}
	if err := tr.ledger.check(false); err != nil {
		t.Error(err)
	}
	var archived, distinct int
	if err := conn.QueryRow(ctx, "SELECT count(*), count(DISTINCT id) FROM simplequeue.job_queue_archive").Scan(&archived, &distinct); err != nil {
		t.Fatal(err)
	}
	if archived != 3020 || distinct != 3020 {
		t.Errorf("%d jobs archived, %d distinct", archived, distinct)
	}
}
