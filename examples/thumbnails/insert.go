package main

import (
	"context"
	"fmt"
	"os"
	"slices"
	"strconv"
	"strings"

	"github.com/google/uuid"
	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgxpool"

	"github.com/simplequeue/simplequeue"
)

// inserted is what became of the pictures.
type inserted struct {
	jobs       int       // new jobs
	duplicates int       // files with the same content as another
	queued     int       // a job of an earlier run that did not finish is there
	done       int       // completed by an earlier run, and the thumbnail is there
	broken     int       // an earlier run found them unprocessable
	sheet      uuid.UUID // the job of the contact sheet
}

func (i inserted) String() string {
	parts := []string{"Inserted " + count(i.jobs, "job")}
	if i.duplicates > 0 {
		parts = append(parts, count(i.duplicates, "duplicate")+" skipped")
	}
	for _, p := range []struct {
		n    int
		text string
	}{
		{i.queued, "already queued"},
		{i.done, "already done"},
		{i.broken, "known to be broken"},
	} {
		if p.n > 0 {
			parts = append(parts, fmt.Sprintf("%d %s", p.n, p.text))
		}
	}
	return strings.Join(parts, ", ")
}

// memoryKey is the metadata of a job that tells the budget it was made for.
const memoryKey = "memory"

// insertJobs inserts a job for every content that is not dealt with yet, and
// the job of the contact sheet, in one transaction: a contact sheet cannot miss
// thumbnails that are yet to be inserted.
func insertJobs(ctx context.Context, pool *pgxpool.Pool, q *simplequeue.SimpleQueue, c *config, pictures []picture) (inserted, error) {
	var result inserted
	before, err := dealtWith(ctx, pool, c, pictures)
	if err != nil {
		return result, err
	}
	var jobs []simplequeue.NewJob
	for _, p := range pictures {
		switch before[p.hash] {
		case simplequeue.StateCompleted:
			result.done++
		case simplequeue.StateUnprocessable:
			result.broken++
		default:
			jobs = append(jobs, simplequeue.NewJob{
				Queue:     thumbnails,
				UniqueKey: p.hash,
				Payload:   thumbnailJob{Name: p.name, Source: p.path, Target: p.thumbnail(c.out)},
				Metadata:  map[string]string{memoryKey: strconv.FormatInt(c.memory, 10)},
			})
		}
	}

	// Two runs at the same time wait for each other's keys: in the same order,
	// or each might wait for the other.
	slices.SortStableFunc(jobs, func(a, b simplequeue.NewJob) int { return strings.Compare(a.UniqueKey, b.UniqueKey) })

	err = pgx.BeginFunc(ctx, pool, func(tx pgx.Tx) error {
		ours := map[uuid.UUID]bool{}
		for batch := range slices.Chunk(jobs, 1000) {
			answers, err := q.InsertManyTx(ctx, tx, batch)
			if err != nil {
				return err
			}
			for _, a := range answers {
				switch {
				case !a.Duplicate:
					ours[a.ID] = true
					result.jobs++
				case ours[a.ID]:
					result.duplicates++
				default:
					result.queued++
				}
			}
		}
		sheet, err := q.InsertTx(ctx, tx, newSheetJob(c))
		result.sheet = sheet.ID
		return err
	})
	return result, err
}

// A job that was unprocessable for want of memory is worth trying again with
// more of it; the unprocessable ones therefore count up to their budget.
const dealtWithSQL = `
SELECT a.unique_key, a.state
FROM simplequeue.job_queue_archive AS a
WHERE a.queue = $1 AND a.unique_key = ANY ($2)
UNION
SELECT d.unique_key, d.state
FROM simplequeue.job_queue_dlq AS d
WHERE d.queue = $1 AND d.unique_key = ANY ($2)
  AND d.state = 'unprocessable' AND (d.props #>> '{metadata,memory}')::bigint >= $3`

// dealtWith tells how earlier runs ended for contents that need no other.
func dealtWith(ctx context.Context, pool *pgxpool.Pool, c *config, pictures []picture) (map[string]simplequeue.State, error) {
	thumbnailOf := map[string]string{}
	var hashes []string
	for _, p := range pictures {
		if _, seen := thumbnailOf[p.hash]; !seen {
			thumbnailOf[p.hash] = p.thumbnail(c.out)
			hashes = append(hashes, p.hash)
		}
	}
	rows, err := pool.Query(ctx, dealtWithSQL, thumbnails, hashes, c.memory)
	if err != nil {
		return nil, err
	}
	before := map[string]simplequeue.State{}
	var key string
	var state simplequeue.State
	_, err = pgx.ForEachRow(rows, []any{&key, &state}, func() error {
		if state == simplequeue.StateCompleted {
			if _, err := os.Stat(thumbnailOf[key]); err != nil {
				return nil // it is to be made again
			}
		}
		before[key] = state
		return nil
	})
	return before, err
}
