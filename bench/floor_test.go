package main

import (
	"context"
	"fmt"
	"testing"

	"github.com/simplequeue/simplequeue/internal/pgtest"
)

// partition makes job_queue and job_running tables of four partitions each.
const partition = `
SET search_path = simplequeue;
DROP VIEW job, job_live;
ALTER TABLE job_queue RENAME TO old_queue;
ALTER TABLE job_running RENAME TO old_running;
CREATE SEQUENCE test_seq;
CREATE TABLE job_queue (LIKE old_queue INCLUDING DEFAULTS) PARTITION BY LIST ((seq % 4));
ALTER TABLE job_queue ALTER COLUMN seq SET DEFAULT nextval('simplequeue.test_seq');
CREATE TABLE job_running (LIKE old_running INCLUDING DEFAULTS) PARTITION BY LIST ((seq % 4));
ALTER TABLE job_running ALTER COLUMN claim_id SET DEFAULT nextval('simplequeue.test_seq');
CREATE INDEX ON job_queue (queue, lane, seq);
CREATE INDEX ON job_running (claim_id);
`

// TestFloorOnPartitions: ctids repeat from partition to partition, and the plain
// SQL must take each row for what it is.
func TestFloorOnPartitions(t *testing.T) {
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
	if len(f.lanes) != 1 {
		t.Fatalf("lanes of an unpartitioned table: %v", f.lanes)
	}
	sql := partition
	for i := range 4 {
		sql += fmt.Sprintf("CREATE TABLE job_queue_%d PARTITION OF job_queue FOR VALUES IN (%[1]d);\n", i)
		sql += fmt.Sprintf("CREATE TABLE job_running_%d PARTITION OF job_running FOR VALUES IN (%[1]d);\n", i)
	}
	conn := pgtest.Pool(t, f.setup.URL, 1)
	if _, err := conn.Exec(ctx, sql); err != nil {
		t.Fatal(err)
	}
	if err := f.findLanes(ctx); err != nil {
		t.Fatal(err)
	}
	tr := &trial{runner: &runner{config: config{call: 100}}, contestant: f, setup: f.setup, ledger: &ledger{}}

	// A claim takes the rows that it has locked and no others.
	if err := tr.insertAll(ctx, 100); err != nil {
		t.Fatal(err)
	}
	claimed := 0
	for _, lane := range f.lanes {
		tag, err := f.pool.Exec(ctx, fmt.Sprintf(floorClaim, lane), benchQueue, 0, 10)
		if err != nil {
			t.Fatal(err)
		}
		if tag.RowsAffected() != 10 {
			t.Errorf("a claim of 10 jobs from %s took %d", lane, tag.RowsAffected())
		}
		claimed += int(tag.RowsAffected())
	}
	if claimed != 40 {
		t.Errorf("%d jobs claimed from %v, want 40 from four tables", claimed, f.lanes)
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
