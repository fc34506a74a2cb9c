package main

import (
	"context"
	"time"

	"github.com/jackc/pgx/v5"
)

// Contestant is a queue under test. One value serves one run, or one worker
// process of a run.
type Contestant interface {
	About() About
	// Lacks says why the contestant cannot do what a scenario needs, or "".
	Lacks(feature) string
	// Open connects; Migrate then makes the tables in an empty database.
	Open(ctx context.Context) error
	Migrate(ctx context.Context) error
	// Insert commits jobs in one call, the fastest way there is for many.
	Insert(ctx context.Context, jobs []Job) error
	// InsertOne commits one job as a program would that has only one. It
	// reports false if another live job holds the key.
	InsertOne(ctx context.Context, job Job) (inserted bool, err error)
	// Run works until ctx ends, and returns once it has stopped.
	Run(ctx context.Context, work Work) error
	// Settled reports whether every job that is due within the next half hour
	// is in its last state.
	Settled(ctx context.Context) (bool, error)
	Close()
}

// txInserter is a contestant with the feature transactions.
type txInserter interface {
	InsertTx(ctx context.Context, tx pgx.Tx, job Job) error
}

// keyInserter is a contestant with the feature keys.
type keyInserter interface {
	// InsertKeyed commits jobs with different keys in one call, the fastest way
	// there is to refuse those whose keys are held by other live jobs. It
	// reports of each job whether it was inserted.
	InsertKeyed(ctx context.Context, jobs []Job) (inserted []bool, err error)
}

// historian is a contestant with the feature history.
type historian interface {
	// FillHistory adds n finished jobs.
	FillHistory(ctx context.Context, n int) error
}

// counting is a contestant whose library counts what it does.
type counting interface {
	// Counters is asked when the workers have stopped. The counts of all
	// processes are added up.
	Counters() map[string]float64
}

// contestants by name; each file adds its own.
var contestants = map[string]func(Setup) Contestant{}

// Work handles one attempt, the first of which has the number 1. An error is a
// failed attempt, to be tried again after about a second.
type Work func(ctx context.Context, p Payload, attempt int) error

// About describes a contestant.
type About struct {
	Version  string
	Settings string // those that differ from its defaults
	Schema   string // where its tables are
	Archive  string // regular expression of its tables that hold only finished jobs; "" if there are none
	// AtLeastOnce: a job that runs twice is counted and reported, and does not
	// fail the run.
	AtLeastOnce    bool
	Heartbeat      string // regular expression of its heartbeat statements; "" if it has none
	HeartbeatEvery time.Duration
}

// feature is what a scenario needs beyond bulk inserts and handlers that succeed.
type feature string

const (
	retries      feature = "retries"
	keys         feature = "unique keys"
	delays       feature = "scheduled jobs"
	transactions feature = "inserts in a caller's transaction"
	queues       feature = "many queues"
	priorities   feature = "ten priorities"
	history      feature = "finished jobs kept"
	processes    feature = "several processes"
	leases       feature = "jobs that run for long"
	order        feature = "jobs in order"
	fairness     feature = "fair shares"
)

// Setup is what a scenario asks of a contestant. It is handed to worker
// processes as JSON.
type Setup struct {
	Contestant string
	URL        string
	Conns      int           // size of the contestant's connection pool
	Queues     []string      // what the workers serve
	Processes  int           // worker processes, which share the permits; 0: the workers are part of this process
	Fail       int           // percent of attempts that fail
	Hold       time.Duration // how long a handler takes
	Bytes      int           // size of a payload as JSON
}

// share is this process's part of what all workers have together.
func (s Setup) share(total int) int { return max(1, total/max(1, s.Processes)) }

// Job is one job to insert. What is zero is not asked for.
type Job struct {
	Payload  Payload
	Queue    string
	Priority int    // 0 to 9
	Key      string // unique key
	OrderKey string
	FairKey  string
	Delay    time.Duration
}

// setKey gives the job a unique key. Some contestants make theirs of the payload.
func (j *Job) setKey(key string) { j.Key, j.Payload.Key = key, key }

const benchQueue = "bench"

// maxTries is the number of attempts that a job has: more than any job needs.
const maxTries = 25
