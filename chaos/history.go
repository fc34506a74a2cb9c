package main

import (
	"fmt"
	"time"

	"github.com/google/uuid"
)

// history is everything that is known of a run when it is over. The witness, a
// server that no fault touches, has what processes say; the audit in the database
// under test has each move of a job. All times are of one machine's clock.
type history struct {
	setup setup
	// rewind is the time whose commits a failover or a restore has lost, nil if
	// none was: what was acknowledged in it may be gone.
	rewind *span
	// strict: nothing may take a job from a worker that lives.
	strict bool
	// loses: workers that live lose leases.
	loses bool

	inserts []insertion
	cancels []cancelling
	runs    []handlerRun
	moves   []move // in order, of the timeline that survived
	finals  []final
	parts   []part
	effects map[uuid.UUID]int // rows that handlers wrote in the transactions that completed jobs
	reports []report          // in order
	lives   []life
	faults  []span
	quiet   time.Time // when the wait for quiet ended
	// quietAfter is how long that was after the last fault.
	quietAfter time.Duration
	leftovers  map[string]int // rows of tables that a quiet queue leaves empty
	bytes      map[string]int64
	// connections are those of each worker at rest.
	connections map[string]int
}

// span is a time.
type span struct {
	what       string
	begin, end time.Time
	outage     bool // nobody could sweep, or claim anything
}

// meets reports whether what was asked and answered at these times may have
// happened within the span.
func (s *span) meets(asked, answered time.Time) bool {
	return s != nil && asked.Before(s.end) && !answered.Before(s.begin)
}

// What a producer knows of a job that it wanted to insert.
const (
	acked      = "acked"
	duplicate  = "duplicate"   // skipped; holder has the key
	refused    = "refused"     // a definite error: it is not there
	rolledBack = "rolled back" // by the producer
	inDoubt    = ""            // may be there or not
)

// insertion is one job that a producer wanted to insert. What it does not answer
// for is in doubt.
type insertion struct {
	tag      string // in the job's payload
	workload string
	call     uuid.UUID // the call that it was part of
	nth      int       // its place in the call
	key      string    // the unique key
	order    string    // the order key
	delay    time.Duration
	asked    time.Time // before the call
	id       uuid.UUID // nil if the producer never learned it
	outcome  string
	holder   uuid.UUID // of a duplicate
	answered time.Time // after the call
	// released is when the commit of a held job was about to be asked for, zero if
	// it never was.
	released time.Time
}

// cancelling is a call of Cancel that was answered.
type cancelling struct {
	job             uuid.UUID
	state           string // what it returned
	asked, answered time.Time
}

// handlerRun is one call of a handler.
type handlerRun struct {
	job                       uuid.UUID
	process                   string
	queue                     string
	attempt, reprocess, crash int
	start                     time.Time
	end                       time.Time // zero if it never ended
	outcome                   string
	// As it began: how many handlers of its queue were inside of the process, at
	// least, how many permits of the queue were taken, and how many there were.
	inside, permits, limit int
}

// part is one run of a step, or of what a checkpoint follows.
type part struct {
	job                uuid.UUID
	name, process      string
	attempt, reprocess int
	ran                time.Time
	saved              time.Time // when the handler knew that it was, zero if it never did
}

// What a handler's run came to.
const (
	runOK        = "ok"
	runLate      = "ok, after its context had ended"
	runError     = "error"
	runPanicked  = "panicked"
	runLost      = "lease lost"
	runShutdown  = "shutdown"
	runCancelled = "cancelled"
)

// move is a row that entered or left a table.
type move struct {
	n                         int64
	at                        time.Time
	place                     string // the table
	entered                   bool   // false: it left
	job                       uuid.UUID
	claim, nonce              int64
	attempt, reprocess, crash int
	state, reason, key        string
	due                       time.Time // of a row of job_waiting, zero where that is not known
	process                   string    // whose session it was
}

func (m *move) String() string {
	verb := "left"
	if m.entered {
		verb = "entered"
	}
	text := fmt.Sprintf("%s #%d %s %s %s, attempt %d, crashes %d", m.at.Format("15:04:05.000000"), m.n, m.job, verb, m.place, m.attempt, m.crash)
	if m.claim != 0 {
		text += fmt.Sprintf(", claim %d/%d", m.claim, m.nonce)
	}
	if m.state != "" {
		text += ", " + m.state
	}
	if m.reason != "" {
		text += " (" + m.reason + ")"
	}
	return text + ", by " + m.process
}

func (r *handlerRun) String() string {
	end := "never ended"
	if !r.end.IsZero() {
		end = fmt.Sprintf("ended %s: %s", r.end.Format("15:04:05.000000"), r.outcome)
	}
	return fmt.Sprintf("%s %s ran in %s, attempt %d, reschedules %d, crashes %d, %s", r.start.Format("15:04:05.000000"), r.job, r.process, r.attempt, r.reprocess, r.crash, end)
}

// final is a row of the view of all jobs at the end.
type final struct {
	id       uuid.UUID
	tag      string
	workload string // the queue
	state    string
	attempt  int
	crash    int
	lost     int // entries "worker_lost" of the error history
	key      string

	fingerprint string
}

// report is what a worker says of itself.
type report struct {
	process              string
	at                   time.Time
	running, stuck, free int
	inFlight, permits    int // claims; permits of queues in use
	handlers             int // that have begun and not returned
	payloadBytes         int64
	healthy              bool
	problems             string
	lost, givenOff       int64
	goroutines           int
	memory               int64 // bytes that the process has from the system
}

// life is a process from its start to its end.
type life struct {
	process    string
	start, end time.Time // end is zero if it lived to the end of the run
	how        string    // killed, stopped, or how else it ended
	unexpected bool      // nobody ended it
}

// violation is one thing that must not be.
type violation struct {
	Invariant string   `json:"invariant"`
	Text      string   `json:"text"`
	Events    []string `json:"events,omitempty"`
}

func (v violation) String() string { return v.Invariant + ": " + v.Text }
