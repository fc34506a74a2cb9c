package simplequeue

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"maps"
	"slices"
)

// InsertFunc inserts jobs: all of them, but for duplicates, or none. The results
// are in the order of jobs, one for each.
type InsertFunc func(ctx context.Context, jobs []NewJob) ([]Inserted, error)

// InsertMiddleware wraps what inserts jobs, on every path: Insert and InsertMany
// and their forms for a transaction. It runs in the caller's goroutine, once a
// call, before the jobs are checked.
//
// It may change the jobs, which are its own copy down to their maps and lists, but
// for Payload; refuse them with an error, which the caller gets as it is; and look
// at the results, which inside a caller's transaction are not committed yet. It
// passes on the context it was given, or one made from that. Jobs inserted by
// simplequeue.enqueue in SQL, and the copies of a [SimpleQueue.Replay], do not pass
// through it.
type InsertMiddleware = func(next InsertFunc) InsertFunc

// insertTarget finds, in the context of an insert with middleware, where its
// jobs go.
type insertTarget struct{}

// insertThrough is an insert that ends in last, through the middleware if there
// is any.
func (q *SimpleQueue) insertThrough(ctx context.Context, jobs []NewJob, last InsertFunc) ([]Inserted, error) {
	if q.inserts == nil || len(jobs) == 0 {
		return last(ctx, jobs)
	}
	own := make([]NewJob, len(jobs))
	for i, j := range jobs {
		j.Raw = bytes.Clone(j.Raw)
		j.Metadata, j.TraceContext = maps.Clone(j.Metadata), maps.Clone(j.TraceContext)
		j.Unique.Fields = slices.Clone(j.Unique.Fields)
		own[i] = j
	}
	results, err := q.inserts(context.WithValue(ctx, insertTarget{}, last), own)
	if err != nil {
		return nil, err
	}
	if len(results) != len(jobs) {
		return nil, fmt.Errorf("simplequeue: insert middleware returned %d results for %d jobs: return one for each", len(results), len(jobs))
	}
	return results, nil
}

// chainInserts wraps the end of an insert into the middleware, the first one
// outermost; nil where there is none.
func chainInserts(middleware []InsertMiddleware) InsertFunc {
	if len(middleware) == 0 {
		return nil
	}
	chain := InsertFunc(func(ctx context.Context, jobs []NewJob) ([]Inserted, error) {
		last, ok := ctx.Value(insertTarget{}).(InsertFunc)
		if !ok {
			return nil, errors.New("simplequeue: insert middleware passed on a context that was not made from the one it was given")
		}
		return last(ctx, jobs)
	})
	for _, m := range slices.Backward(middleware) {
		chain = m(chain)
	}
	return chain
}
