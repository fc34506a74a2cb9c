package simplequeue

import "time"

// FinishAside returns the options with every outcome sent through
// job_finished, where the janitor picks it up.
func (o Options) FinishAside() Options {
	o.finishAside = true
	return o
}

// PendingInserts is how many calls wait to be taken into a group, and how many
// goroutines are there to take them.
func (q *SimpleQueue) PendingInserts() (calls, flushers int) {
	q.groups.mu.Lock()
	defer q.groups.mu.Unlock()
	return len(q.groups.pending), q.groups.flushers
}

// JSONSize is by how many bytes JSON counts.
func JSONSize(text string) int64 {
	size, _ := jsonSize([]byte(text))
	return size
}

// LimitGroups sets how long a group of inserts waits for the database.
func (q *SimpleQueue) LimitGroups(d time.Duration) { q.groups.limit = d }

// Waiters is how many calls wait for a job to end.
func (q *SimpleQueue) Waiters() int {
	q.waits.mu.Lock()
	defer q.waits.mu.Unlock()
	n := 0
	for _, j := range q.waits.jobs {
		n += len(j.callers)
	}
	return n
}

// Listening reports whether what is told of jobs that are waited for is heard.
func (q *SimpleQueue) Listening() bool {
	q.waits.mu.Lock()
	defer q.waits.mu.Unlock()
	return q.waits.listening
}

// EndedChannel is the channel on which jobs that are waited for are told of.
func (q *SimpleQueue) EndedChannel() string { return endedChannel(q.wakes.channel) }
