package model

// The most that a State has room for.
const (
	maxJobs    = 3
	maxWorkers = 2
	maxHolds   = 2
)

// Place is the table that a job's row is in.
type Place uint8

// A job has one row.
const (
	Nowhere  Place = iota // not inserted yet
	Gated                 // job_waiting, for its turn in its order key
	Waiting               // job_waiting, for its time
	Queued                // job_queue
	Running               // job_running
	Finished              // job_finished
	Kept                  // job_queue_archive or job_queue_dlq
)

// End is how a job has ended.
type End uint8

// None of them can be left.
const (
	Live End = iota
	Completed
	Failed
	Cancelled
	Bad
)

// Age tells whether the lease of a claim is over, and why.
type Age uint8

// A worker that is awake beats in time, unless nobody can.
const (
	Fresh  Age = iota
	Silent     // its worker has not beaten for a lease
	CutOff     // nobody could beat for a lease
)

// What Cancel has answered about a job.
type told uint8

const (
	toldNothing told = iota
	toldCancelled
	toldAsked
)

// Fence proves a claim. 0, 0 is none.
type Fence struct{ Claim, Nonce uint8 }

// Job is a job's row and what hangs on it.
type Job struct {
	Place            Place
	End              End
	Attempt, Crashes uint8
	Due              bool  // of a waiting job: its time has come
	Fence            Fence // of a running job
	Age              Age
	Asked            bool // job_cancel has the claim

	// What the promises are checked against; no statement reads them.
	starts uint8 // of handlers, but for those given back
	told   told
}

// Hold is a claim in the memory of a worker. Job 0 is none.
type Hold struct {
	Job   uint8 // from 1
	Fence Fence
	// Of a settle that does not lock its row first: it has begun, and has seen
	// that the job is to be cancelled.
	begun, saw bool
}

// Worker is a process.
type Worker struct {
	Asleep bool  // suspended
	Picked uint8 // the job, from 1, that its claim has found and not yet taken
	Holds  [maxHolds]Hold
}

// DB is what a failover to an old standby sets back.
type DB struct {
	Jobs      [maxJobs]Job
	Key       uint8 // the job, from 1, that holds the unique key; 0: free
	Inside    uint8 // the job, from 1, inside of the order key's gate; 0: none
	Look      bool  // the gate is to be looked at
	NextClaim uint8
}

// budget is how often what could go on for ever may still happen.
type budget struct{ claims, backs, crashes, sleeps, lost, cancels, outages, rewinds uint8 }

// State is one moment of everything.
type State struct {
	DB
	Workers   [maxWorkers]Worker
	NextNonce uint8

	seen   [maxJobs]Fence // by the sweep that is under way
	sweeps bool

	cancels     uint8 // the job, from 1, that a Cancel is under way for
	phase       uint8 // the table that it visits next
	cancelFence Fence // that a Cancel without a lock has seen

	saved  DB
	copied bool
	left   budget
}

// ended reports whether a job has come to its end.
func (j *Job) ended() bool { return j.End != Live }

// claimed reports whether job i is running under f.
func (s *State) claimed(i int, f Fence) bool {
	return s.Jobs[i].Place == Running && s.Jobs[i].Fence == f
}

// cared reports whether a worker that is awake holds the claim of job i.
func (s *State) cared(i int) bool {
	for _, w := range s.Workers {
		for _, h := range w.Holds {
			if !w.Asleep && int(h.Job) == i+1 && h.Fence == s.Jobs[i].Fence {
				return true
			}
		}
	}
	return false
}

// free is a slot of the worker, or nil.
func (w *Worker) free() *Hold {
	for i := range w.Holds {
		if w.Holds[i].Job == 0 {
			return &w.Holds[i]
		}
	}
	return nil
}
