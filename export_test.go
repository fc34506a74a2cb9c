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

// LimitGroups sets how long a group of inserts waits for the database.
func (q *SimpleQueue) LimitGroups(d time.Duration) { q.groups.limit = d }

// Waiters is how many calls wait for a job to end.
func (q *SimpleQueue) Waiters() int {
	q.ends.mu.Lock()
	defer q.ends.mu.Unlock()
	n := 0
	for _, list := range q.ends.waiting {
		n += len(list)
	}
	return n
}
