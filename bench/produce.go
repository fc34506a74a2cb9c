package main

import (
	"context"
	"fmt"
	"time"
)

// insert commits n jobs in one call. It is not interrupted, so that it is known
// what is in the queue.
func (t *trial) insert(ctx context.Context, n int) error {
	first, err := t.ledger.take(n)
	if err != nil {
		return err
	}
	jobs := make([]Job, n)
	for i := range jobs {
		jobs[i] = t.job(first + i)
	}
	if t.ledger.duplicate != nil {
		return t.insertKeyed(ctx, jobs)
	}
	if err := t.contestant.Insert(context.WithoutCancel(ctx), jobs); err != nil {
		return fmt.Errorf("insert: %w", err)
	}
	t.ledger.commit(first, n)
	return nil
}

// insertKeyed commits those of the jobs whose keys nobody holds.
func (t *trial) insertKeyed(ctx context.Context, jobs []Job) error {
	inserted, err := t.contestant.(keyInserter).InsertKeyed(context.WithoutCancel(ctx), jobs)
	if err != nil {
		return fmt.Errorf("insert: %w", err)
	}
	for i, in := range inserted {
		if in {
			t.ledger.commit(jobs[i].Payload.N, 1)
		}
	}
	return nil
}

// insertOne commits one job by itself, with a key unless that is "". It returns
// the job's number, and -1 if another job holds the key.
func (t *trial) insertOne(ctx context.Context, key string) (n int, err error) {
	if n, err = t.ledger.take(1); err != nil {
		return 0, err
	}
	job := t.job(n)
	job.setKey(key)
	inserted, err := t.contestant.InsertOne(context.WithoutCancel(ctx), job)
	if err != nil {
		return 0, fmt.Errorf("insert one: %w", err)
	}
	if !inserted {
		return -1, nil
	}
	t.ledger.commit(n, 1)
	return n, nil
}

func (t *trial) job(n int) Job {
	job := Job{Queue: benchQueue, Payload: newPayload(n, t.setup.Bytes)}
	if t.shape != nil {
		t.shape(n, &job)
	}
	return job
}

// insertAll inserts n jobs in calls of -call.
func (t *trial) insertAll(ctx context.Context, n int) error {
	for n > 0 {
		if err := ctx.Err(); err != nil {
			return context.Cause(ctx)
		}
		part := min(n, t.call)
		if err := t.insert(ctx, part); err != nil {
			return err
		}
		n -= part
	}
	return nil
}

// producers is how many insert at once where the scenario is steady work: enough
// to keep the workers busy while one of them waits for the disk.
const producers = 2

// produce inserts batches, flat out, but stays at most -ahead jobs ahead of the
// workers.
func (t *trial) produce(ctx context.Context) error {
	for ctx.Err() == nil {
		if t.ledger.ahead() > int64(t.ahead) {
			if wait(ctx, time.Millisecond) != nil {
				return nil
			}
			continue
		}
		if err := t.insert(ctx, t.batch); err != nil {
			return err
		}
	}
	return nil
}

// pace inserts -rate jobs a second, in one call each 10 ms, however fast the
// workers are. Where it cannot keep up its batches grow.
func (t *trial) pace(ctx context.Context) error {
	begin, inserted := time.Now(), 0
	return every(ctx, 10*time.Millisecond, func(int) error {
		n := min(int(time.Since(begin).Seconds()*t.rate)-inserted, t.ahead)
		if n < 1 {
			return nil
		}
		inserted += n
		return t.insert(ctx, n)
	})
}

// load runs producers and tasks, and measures the jobs done in d once the work
// has got going. If that is so slow that none is done, it takes longer.
func (t *trial) load(ctx context.Context, d time.Duration, tasks ...func(context.Context) error) error {
	return alongside(ctx, func(ctx context.Context) error {
		for t.ledger.done.Load() == 0 {
			if err := wait(ctx, time.Millisecond); err != nil {
				return err
			}
		}
		if err := wait(ctx, min(2*time.Second, d/10)); err != nil {
			return err
		}
		if err := t.begin(ctx, t.ledger.done.Load, d); err != nil {
			return err
		}
		if err := wait(ctx, d); err != nil {
			return err
		}
		if err := t.until(ctx, func() (bool, error) { return t.ledger.done.Load() > t.measured.begun.count, nil }); err != nil {
			return err
		}
		return t.end(ctx)
	}, tasks...)
}
