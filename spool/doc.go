// Package spool keeps inserts in a file on this machine while the database
// cannot be reached, and makes them when it is back: in order and exactly once,
// also if the process, or the machine, dies meanwhile.
//
//	s, err := spool.Open("/var/lib/shop/jobs.spool", spool.Options{})
//	...
//	queue, err := simplequeue.New(pool, simplequeue.Options{Spool: s})
//	...
//	go s.Run(ctx) // replays
//	queue.Insert(ctx, job) // as ever; Inserted.Spooled tells where the job is
//
// While nothing waits in the file, an insert goes to the database at once, by
// the same statements as without a spool. One that the database cannot take is
// written to the file; when Insert returns, the file has been synced. As long as
// something waits there, every insert goes behind it, so that none overtakes.
//
// Each call of Insert or InsertMany is replayed as it was made: all of it in one
// transaction, or none. Its jobs have had their ids since they were written, and
// the database skips ids that it knows; it remembers them for seven days, which
// is how long a process may be down between the replay of a job and the moment
// at which the file has forgotten it.
//
// The file is bounded: beyond [Options].MaxJobs and MaxBytes an insert fails
// with [ErrFull]. What the database refuses for good, and what cannot be read
// any more, is set aside in the same file, logged, shown by Health and
// [Spool.Aside], and holds up nothing. Nothing is ever deleted that was not
// inserted, but by [Spool.Discard].
package spool
