package spool

import (
	"encoding/binary"
	"encoding/json"
	"fmt"
	"time"

	"go.etcd.io/bbolt"

	"github.com/simplequeue/simplequeue"
)

// Stats is a snapshot of a Spool.
type Stats struct {
	Jobs      int       // that wait
	Bytes     int64     // of what waits and what is set aside
	Since     time.Time // when the first that waits came, zero if none does
	AsideJobs int       // that are set aside, as far as it is known
	Aside     int       // entries that are set aside
	Spooled   int64     // jobs written to the file since Open
	Replayed  int64     // jobs inserted from it since Open
	Err       error     // why the last try to replay failed
}

// Stats returns a snapshot.
func (s *Spool) Stats() Stats {
	f := s.file
	f.mu.Lock()
	st := Stats{Jobs: f.jobs, Bytes: f.bytes + f.asideBytes, AsideJobs: f.asideJobs, Aside: f.aside}
	f.mu.Unlock()
	st.Spooled, st.Replayed = s.spooled.Load(), s.replayed.Load()
	if first, err := s.Waiting(1); err == nil && len(first) > 0 {
		st.Since = first[0].At
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	st.Err = s.err
	return st
}

// unwell is how long jobs may wait before that is a problem.
const unwell = 3 * time.Second

// Problem says what operators should know: that jobs wait, since when and why,
// and that some are set aside. It is "" when there is nothing.
func (s *Spool) Problem() string {
	st := s.Stats()
	problem := ""
	if st.Jobs > 0 && time.Since(st.Since) > unwell {
		problem = fmt.Sprintf("spool: %d jobs wait in %s since %s", st.Jobs, s.path, st.Since.Format(time.RFC3339))
		if st.Err != nil {
			problem += ": " + st.Err.Error()
		}
	}
	if st.Aside > 0 {
		if problem != "" {
			problem += "; "
		}
		problem += fmt.Sprintf("spool: %d calls are set aside in %s", st.Aside, s.path)
	}
	return problem
}

// Entry is one call of Insert or InsertMany in the file.
type Entry struct {
	Number uint64 // later calls have larger ones
	At     time.Time
	Jobs   []simplequeue.NewJob // each with its ID, and Payload as json.RawMessage
	// Reason says why it was set aside, and AsideAt when.
	Reason  string
	AsideAt time.Time
	// Data is the record as it is in the file, where Jobs cannot be read from it.
	Data []byte
}

// Waiting returns the calls that wait to be replayed, oldest first, at most so
// many.
func (s *Spool) Waiting(most int) (entries []Entry, err error) {
	records, err := s.file.after(0, most, 1<<40)
	for _, r := range records {
		entries = append(entries, entryOf(r.number, r.value))
	}
	return entries, err
}

// Aside returns the calls that were set aside, oldest first, at most so many.
// They stay until [Spool.Retry] or [Spool.Discard].
func (s *Spool) Aside(most int) (entries []Entry, err error) {
	err = s.file.view(func(tx *bbolt.Tx) error {
		c := tx.Bucket(bucketAside).Cursor()
		for k, v := c.First(); k != nil && len(entries) < most; k, v = c.Next() {
			var r asideRecord
			if err := json.Unmarshal(v, &r); err != nil {
				r = asideRecord{Reason: "the entry cannot be read: " + err.Error(), Value: append([]byte(nil), v...)}
			}
			e := entryOf(binary.BigEndian.Uint64(k), r.Value)
			e.Reason, e.AsideAt = r.Reason, r.At
			entries = append(entries, e)
		}
		return nil
	})
	return entries, err
}

func entryOf(number uint64, value []byte) Entry {
	e := Entry{Number: number}
	var jobs simplequeue.SpooledJobs
	body, _, problem := decode(value)
	if problem != "" || jobs.UnmarshalBinary(body) != nil {
		e.Data = value
		return e
	}
	e.At, e.Jobs = jobs.At, jobs.Jobs
	return e
}

// Retry puts entries that are set aside back, behind all that waits. It fails
// with [ErrNoEntry], and for an entry that cannot be read; nothing has changed
// then.
func (s *Spool) Retry(numbers ...uint64) error {
	if err := s.file.takeAside(numbers, true); err != nil {
		return err
	}
	select {
	case s.added <- struct{}{}:
	default:
	}
	return nil
}

// Discard deletes entries that are set aside. It fails with [ErrNoEntry]; nothing
// has changed then.
func (s *Spool) Discard(numbers ...uint64) error { return s.file.takeAside(numbers, false) }
