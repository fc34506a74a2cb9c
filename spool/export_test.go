package spool

import "github.com/simplequeue/simplequeue"

// Target is what the SimpleQueue has given the spool.
func Target(s *Spool) *simplequeue.SpoolTarget { return s.target }

// AddRecord writes a record.
func AddRecord(s *Spool, body []byte, jobs int) {
	if err := s.file.add(body, jobs); err != nil {
		panic(err)
	}
}
