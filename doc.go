// Package simplequeue turns PostgreSQL into a job queue and a worker framework.
//
// # The life of a job
//
// [SimpleQueue.Insert] stores a job; inside the caller's transaction with
// [SimpleQueue.InsertTx], so that a job exists if and only if the rows it speaks
// of do. A job that can run now enters the table job_queue, one that is due
// later job_waiting, from where a promoter moves it when its time has come.
//
// [SimpleQueue.Run] works. A poller waits until a global permit is free, and
// claims jobs of all queues that it has handlers for, as many as there are
// permits, in one statement, which moves them to job_running and gives each a
// claim id and a random nonce: the fence. Each job runs in a goroutine of its
// own, which owns a heartbeat goroutine, takes its queue's permit, memory for a
// large payload and then its handler's own permit, if the handler is a
// [Permitter], and calls [Handler.Process].
//
// What Process returns is the outcome. nil completes the job; an error is a
// failed attempt, tried again after a backoff until the attempts are used up;
// the constructors [RetryAfter], [RescheduleAfter], [Cancel], [Critical],
// [Unprocessable] and [Complete] say otherwise. Outcomes are written in batches:
// completed jobs go to job_queue_archive, others that have ended to
// job_queue_dlq, the dead letter queue, both partitioned by the day they expire.
//
// Whoever wants to know what has become of a job waits for it, in any process:
// [SimpleQueue.InsertAndWait], [SimpleQueue.Wait].
//
// A janitor archives what ended outside a worker, and drops expired partitions.
// A reaper finds jobs whose worker has been silent for longer than their lease
// and makes them runnable again, or ends them.
//
// # Guarantees
//
// A committed job is not lost as long as the database keeps it: whatever else
// dies and whenever, it ends in the archive or the dead letter queue, or is still
// live. It is run at least once,
// and finished once: every write of a running job matches its fence, so an
// attempt that has lost its lease changes nothing any more and its context ends
// with [ErrLeaseLost]. Limits of permits are never exceeded. Time is judged by
// the database's clock alone. What a handler does outside the database may
// happen more than once and should bear that.
package simplequeue
