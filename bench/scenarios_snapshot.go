package main

import (
	"context"
	"fmt"
	"strings"
	"sync/atomic"
	"time"

	"github.com/jackc/pgx/v5"
)

var snapshotScenarios = []scenario{
	{name: "pinned-plain", baseline: "steady", run: pinnedPlain},
	{name: "pinned", needs: []feature{retries, keys}, baseline: "steady", setup: failing, run: pinned},
	{name: "dump", baseline: "steady", run: dump},
	{name: "readers", baseline: "steady", run: readers},
}

// pinnedPlain: steady for long, while a snapshot keeps the server from cleaning
// up behind the queue.
func pinnedPlain(ctx context.Context, t *trial) error {
	return t.steadyFor(ctx, seconds(t.pinnedSeconds), t.pin)
}

// pinned: the same with failing attempts and hot keys, which leave more behind.
func pinned(ctx context.Context, t *trial) error {
	defer t.noteAttempts()
	return t.steadyFor(ctx, seconds(t.pinnedSeconds), t.pin, t.reuseKeys)
}

// hotKeys is how many keys reuseKeys goes round.
const hotKeys = 100

// reuseKeys inserts 200 jobs a second, each with the key of a job that may live
// yet.
func (t *trial) reuseKeys(ctx context.Context) error {
	skipped, all := 0, 0
	defer func() { t.extra["keys_taken_percent"] = 100 * float64(skipped) / float64(max(1, all)) }()
	return every(ctx, 5*time.Millisecond, func(i int) error {
		n, err := t.insertOne(ctx, fmt.Sprintf("key-%02d", i%hotKeys))
		if n < 0 {
			skipped++
		}
		all++
		return err
	})
}

// pin holds a snapshot, and a transaction id, until ctx ends.
func (t *trial) pin(ctx context.Context) error {
	return t.inSnapshot(ctx, func(tx pgx.Tx) error {
		if _, err := tx.Exec(ctx, "SELECT txid_current()"); err != nil {
			return err
		}
		<-ctx.Done()
		return nil
	})
}

// inSnapshot runs f in a transaction on a connection of its own. That it is cut
// short by the end of ctx is no error.
func (t *trial) inSnapshot(ctx context.Context, f func(pgx.Tx) error) error {
	conn, err := pgx.Connect(context.WithoutCancel(ctx), t.setup.URL)
	if err != nil {
		return err
	}
	defer conn.Close(context.WithoutCancel(ctx))
	err = pgx.BeginTxFunc(context.WithoutCancel(ctx), conn, pgx.TxOptions{IsoLevel: pgx.RepeatableRead}, f)
	if ctx.Err() != nil {
		return nil
	}
	return err
}

// dump: steady for long, while something like pg_dump has all tables locked
// against changes of their definition, and holds a snapshot. Then how much of
// the space that the queue has taken meanwhile comes back.
func dump(ctx context.Context, t *trial) error {
	tables, err := t.tableNames(ctx)
	if err != nil {
		return err
	}
	hold := func(ctx context.Context) error {
		return t.inSnapshot(ctx, func(tx pgx.Tx) error {
			if _, err := tx.Exec(ctx, "LOCK TABLE "+strings.Join(tables, ", ")+" IN ACCESS SHARE MODE"); err != nil {
				return err
			}
			if _, err := tx.Exec(ctx, "SELECT txid_current()"); err != nil {
				return err
			}
			<-ctx.Done()
			return nil
		})
	}
	t.latency = true
	return t.withWorkers(ctx, func(ctx context.Context) error {
		if err := t.load(ctx, seconds(t.pinnedSeconds), hold, t.produce, t.produce); err != nil {
			return err
		}
		held := t.sizes.live
		if err := t.settle(ctx); err != nil {
			return err
		}
		if err := wait(ctx, seconds(t.recoverSeconds)); err != nil {
			return err
		}
		after, err := t.readSizes(ctx)
		if err != nil {
			return err
		}
		const mb = 1 << 20
		t.extra["live_tables_mb_held"], t.extra["live_tables_mb_after"] = float64(held)/mb, float64(after.live)/mb
		t.extra["space_back_percent"] = 100 * float64(held-after.live) / float64(max(1, held))
		t.extra["dead_tuples_after"] = float64(after.deadTuples)
		return nil
	})
}

// readers: steady, while four connections read all tables from end to end over
// and over.
func readers(ctx context.Context, t *trial) error {
	tables, err := t.tableNames(ctx)
	if err != nil {
		return err
	}
	var scans atomic.Int64
	read := func(ctx context.Context) error {
		for ctx.Err() == nil {
			if err := t.inSnapshot(ctx, func(tx pgx.Tx) error {
				for _, table := range tables {
					if _, err := tx.Exec(ctx, "SELECT count(*) FROM "+table); err != nil {
						return err
					}
				}
				return nil
			}); err != nil {
				return err
			}
			scans.Add(1)
		}
		return nil
	}
	begin := time.Now()
	if err := t.steadyFor(ctx, seconds(t.seconds), read, read, read, read); err != nil {
		return err
	}
	t.extra["scans_of_all_tables_per_s"] = float64(scans.Load()) / time.Since(begin).Seconds()
	return nil
}
