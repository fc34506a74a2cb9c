package simplequeue

import (
	"encoding/json"
	"fmt"
	"time"

	"github.com/google/uuid"
)

// State is where a job is in its life.
type State string

// The states of a job. The first four are live, the others terminal.
const (
	StateWaiting       State = "waiting"    // cannot run yet: due later, backing off, behind others at a gate, held, or of a kind nobody here knows
	StatePending       State = "pending"    // runnable now
	StateRunning       State = "running"    // claimed by a worker
	StateCancelling    State = "cancelling" // running, and asked to stop
	StateCompleted     State = "completed"
	StateFailed        State = "failed" // all attempts used
	StateCancelled     State = "cancelled"
	StateUnprocessable State = "unprocessable"
	StateCritical      State = "critical_failure"
	StateBadJob        State = "bad_job" // crashed its worker, or rescheduled itself, too often
)

// Terminal reports whether a job in this state has ended.
func (s State) Terminal() bool {
	switch s {
	case StateWaiting, StatePending, StateRunning, StateCancelling:
		return false
	}
	return true
}

// NewJob describes a job to insert. Only Queue is required.
type NewJob struct {
	// ID identifies the job. The zero value lets the library make one (UUIDv7).
	// A second insert of an id that the caller chose is skipped for seven days,
	// and for as long as the job lives.
	ID uuid.UUID
	// Queue is the queue's name: 1 to 128 bytes of UTF-8 without control
	// characters and without '*'.
	Queue string
	// Kind tells jobs of one queue apart, for a [Mux]; up to 128 bytes.
	Kind string
	// Payload is encoded with encoding/json; a json.RawMessage is taken as it
	// is. nil means no payload. It and Raw have at most Options.MaxPayloadBytes
	// together; a number with an exponent counts with all its digits. JSON is
	// nested at most 10,000 levels deep.
	Payload any
	// Raw is a payload stored byte by byte, beside or instead of Payload.
	Raw []byte
	// Priority is 0 to 9, 0 runs first.
	Priority int
	// RunAt is the earliest time to run, by the database's clock; the zero
	// value and times in the past mean now. At most one of RunAt and Delay may
	// be set.
	RunAt time.Time
	// Delay is how long to wait before the first run, by the database's clock: up
	// to 100 years.
	Delay time.Duration
	// MaxAttempts is how often the job may be started, up to 1,048,576; 0 means the
	// default that the inserting program has for the queue.
	MaxAttempts int
	// UniqueKey admits one live job at a time: while a waiting, pending or
	// running job holds the key, an insert adds no job and returns that one's id;
	// Unique.OnConflict says whether it changes that one. Up to 512 bytes.
	UniqueKey string
	// UniqueGlobal makes the key unique across all queues, not in its own.
	UniqueGlobal bool
	// Unique derives the key from the payload and the time, and says what an
	// insert does that finds it taken.
	Unique Unique
	// Fingerprint marks jobs that belong together: they can be listed, counted
	// and cancelled by it, and the reaper notes live jobs that share one. Up to
	// 512 bytes.
	Fingerprint string
	// OrderKey makes jobs of the queue that share it run one at a time, in the
	// order in which their inserts committed, across all processes. The first of
	// them that has not ended holds the key: also while it is delayed, backs off or
	// is abandoned. See [QueueOptions.BlockDead] for one that ends dead. Up to 512
	// bytes.
	OrderKey string
	// FairnessKey gives jobs of the queue that share it, say those of one tenant,
	// their share: keys with waiting jobs take turns, however many jobs each has,
	// by weight; see [SimpleQueue.SetFairWeight]. Jobs without one do not take
	// part, and go ahead. Up to 512 bytes.
	FairnessKey string
	// Hold makes the insert the first of two phases: the job, whose place in an
	// order and unique key are taken, does not run until [SimpleQueue.CommitHeld].
	// If that does not come within Hold, at most 7 days, the job is deleted as if
	// it had never been inserted. Not together with [ConflictReplace] or
	// [ConflictDebounce].
	Hold time.Duration
	// Metadata travels with the job into the archive or the DLQ. It and
	// TraceContext, with the order and fairness key and what else the job's
	// properties hold, have at most 64 KiB together, as JSON.
	Metadata map[string]string
	// TraceContext travels with the job, for tracing middleware.
	TraceContext map[string]string
	// Timeout bounds one attempt; 0 means the queue's default, [NoTimeout] none. It
	// is kept in whole milliseconds, rounded down, and is 1 ms at least.
	Timeout time.Duration
	// Retention overrides the queue's, field by field.
	Retention Retention
	// Awaited says that somebody is going to wait for the job: see
	// [SimpleQueue.Wait].
	Awaited bool
}

// NoTimeout, as a timeout, lets an attempt run for ever.
const NoTimeout time.Duration = -1

// Retention is how long finished jobs are kept: seconds, rounded up, at most 10 years,
// or [KeepNothing] or [KeepForever]. Rows go with their partition, a day each, so
// they stay up to a day longer. A zero field means the default of the level above:
// job, queue, [Options].
type Retention struct {
	Archive    time.Duration // completed jobs, default 7 days
	DeadLetter time.Duration // all others, default 30 days
}

// Special values of a Retention field.
const (
	KeepNothing time.Duration = -1                // the row is gone when the job ends
	KeepForever time.Duration = 1<<63 - 1         // no expiry
	maxKeep                   = 87600 * time.Hour // 10 years, what the partitions are made for
)

// Inserted is what became of one job of an insert.
type Inserted struct {
	// ID is the job's id; for a duplicate, the id of the live job that holds
	// the unique key (or the id itself, where that was inserted before).
	ID uuid.UUID
	// Duplicate is true when no job was added.
	Duplicate bool
	// Spooled is true when the job is in [Options].Spool, on this machine, and not
	// in the database yet. Whether it is a duplicate shows later.
	Spooled bool
	// Replaced is true when the live job that holds the unique key, which had
	// not started, was changed as Unique.OnConflict says.
	Replaced bool
}

// Job is a job as its handler, or an inspector, sees it.
type Job struct {
	ID             uuid.UUID
	Queue          string
	Kind           string
	Payload        json.RawMessage
	Raw            []byte
	Priority       int
	Attempt        int // the number of this attempt, from 1
	MaxAttempts    int
	ReprocessCount int // how often the job was rescheduled without using an attempt
	CrashCount     int // how often in a row its worker died
	UniqueKey      string
	Fingerprint    string
	OrderKey       string
	FairnessKey    string
	Metadata       map[string]string
	TraceContext   map[string]string
	Timeout        time.Duration // as given at insert, 0 if it was not
	Retention      Retention     // as given at insert
	ParentID       uuid.UUID     // the job whose handler inserted this one
	RootID         uuid.UUID     // the first job of that chain
	CreatedAt      time.Time
	Errors         []AttemptError // failed attempts, oldest first, at most ten

	run     *running // what runs it, nil outside a handler
	result  string   // JSON, as set by SetResult
	gates   []string // that it passes, one after the other
	awaited bool     // as given at insert
}

// AttemptError is the record of one failed attempt.
type AttemptError struct {
	Attempt int       `json:"attempt"` // from 1
	At      time.Time `json:"at"`      // when it was recorded, by the database's clock
	Reason  string    `json:"reason"`  // "retry", "worker_lost", or the state in which the job ended with it
	Error   string    `json:"error"`
	Stack   string    `json:"stack,omitempty"` // of a panic, newest entry only
}

// LastError is the text of the newest failed attempt, or "".
func (j *Job) LastError() string {
	if len(j.Errors) == 0 {
		return ""
	}
	return j.Errors[len(j.Errors)-1].Error
}

// Decode decodes the JSON payload into v. Its error, returned from a handler,
// ends the job as unprocessable: a payload that cannot be read today cannot be
// read at the next attempt either.
func (j *Job) Decode(v any) error {
	if err := json.Unmarshal(j.Payload, v); err != nil {
		return Unprocessable(fmt.Errorf("decode payload: %w", err))
	}
	return nil
}

// props is the part of a job that no statement filters on.
type props struct {
	Metadata     map[string]string `json:"metadata,omitempty"`
	TraceContext map[string]string `json:"trace,omitempty"`
	TimeoutMS    int64             `json:"timeout_ms,omitempty"`
	KeepArchive  int64             `json:"keep_archive,omitempty"` // seconds, janitor.Forever or Nothing
	KeepDLQ      int64             `json:"keep_dlq,omitempty"`
	ParentID     *uuid.UUID        `json:"parent_id,omitempty"`
	RootID       *uuid.UUID        `json:"root_id,omitempty"`
	Codec        string            `json:"payload_codec,omitempty"`
	Bounded      bool              `json:"bounded,omitempty"` // it may have a slot
	OrderKey     string            `json:"order_key,omitempty"`
	FairnessKey  string            `json:"fairness_key,omitempty"`
	Gates        []string          `json:"gates,omitempty"`
	BlockDead    bool              `json:"block_dead,omitempty"` // of its order key
	Awaited      bool              `json:"awaited,omitempty"`    // somebody may be waiting for it
}

func (p *props) empty() bool {
	return len(p.Metadata) == 0 && len(p.TraceContext) == 0 && p.TimeoutMS == 0 &&
		p.KeepArchive == 0 && p.KeepDLQ == 0 && p.ParentID == nil && p.Codec == "" && !p.Bounded && !p.Awaited &&
		p.OrderKey == "" && len(p.Gates) == 0
}
