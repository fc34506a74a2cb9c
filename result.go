package simplequeue

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
)

// SetResult gives the job a result, which is stored with its completion, in the
// same statement: a job that has completed has its result, and one that has not
// has none. v is encoded as JSON at once; the last call wins, and SetResult(nil)
// takes the result back. The result of an attempt that does not complete is
// dropped. It is read by [JobInfo.Result] and [ResultOf].
//
// A value that does not encode, that PostgreSQL cannot store or that is larger
// than Options.MaxPayloadBytes is an [*InvalidValueError], and changes nothing.
// A job's methods are for its handler's goroutine.
func (j *Job) SetResult(v any) error {
	if v == nil {
		j.result = ""
		return nil
	}
	text, _, err := encodeValue("result", v, j.maxBytes())
	if err != nil {
		return err
	}
	j.result = string(text)
	return nil
}

// TypedResult is [Typed] for a function that returns a result, which is stored
// as by [Job.SetResult] when the function returns no error, or [Complete].
func TypedResult[T, R any](queue string, process func(ctx context.Context, job *Job, payload T) (R, error)) Handler {
	return Typed(queue, func(ctx context.Context, job *Job, payload T) error {
		result, err := process(ctx, job, payload)
		var o *outcome
		if err == nil || errors.As(err, &o) && o.action == actComplete {
			if err := job.SetResult(result); err != nil {
				return err
			}
		}
		return err
	})
}

// ResultOf decodes the result of a job that has completed. A job without one,
// because it has not completed or has set none, is [ErrNoResult].
func ResultOf[R any](job JobInfo) (result R, err error) {
	if job.Result == nil {
		return result, fmt.Errorf("%w: %v is %s", ErrNoResult, job.ID, job.State)
	}
	if err := json.Unmarshal(job.Result, &result); err != nil {
		return result, fmt.Errorf("simplequeue: decode result of job %v: %w", job.ID, err)
	}
	return result, nil
}

// maxDepth bounds the nesting of what a running job stores: PostgreSQL reads
// JSON recursively, and refuses what is too deep for its stack.
const maxDepth = 1000

// encodeValue encodes what a running job stores, and says how many bytes that
// has when the database prints it. It refuses all that PostgreSQL would refuse,
// for then it is too late: in the transaction of an outcome.
func encodeValue(what string, v any, limit int) (text []byte, size int, err error) {
	text, err = encodeJSON(v)
	if err != nil {
		return nil, 0, &InvalidValueError{Name: what, Reason: "does not encode as JSON", Err: err}
	}
	if len(text) > limit {
		return nil, 0, tooLarge(what, int64(len(text)), len(text), limit)
	}
	printed, problem := jsonSize(text)
	if problem != "" {
		return nil, 0, &InvalidValueError{Name: what, Reason: problem}
	}
	if printed > int64(limit) {
		return nil, 0, tooLarge(what, printed, len(text), limit)
	}
	if problem := depthProblem(text, maxDepth); problem != "" {
		return nil, 0, &InvalidValueError{Name: what, Reason: problem}
	}
	return text, int(printed), nil
}

// tooLarge is the error about a size, of a text that has so many bytes as it is
// sent.
func tooLarge(what string, size int64, sent, limit int) error {
	return &InvalidValueError{Name: what, Reason: fmt.Sprintf(
		"has %d bytes%s, more than Options.MaxPayloadBytes = %d: raise it, or store the data elsewhere and keep a reference", size, writtenOut(size, sent), limit)}
}

// maxBytes is the bound of what the job stores.
func (j *Job) maxBytes() int {
	if j.run != nil {
		return j.run.queue.opts.MaxPayloadBytes
	}
	return defaultMaxPayload
}
