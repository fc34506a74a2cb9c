// Package simplequeuetest tests programs that use simplequeue: what they insert,
// and what their handlers do. It runs jobs by the parts of the engine that run
// them in production, one after the other, in the test.
//
// A test needs jobs that are its own. Either it works in a transaction that it
// rolls back, through a queue that [In] has put there, or it has a schema of its
// own in the same database, made by [Schema]. A handler that needs no database at
// all is called by [Process].
//
// Times are the database's, which no test can stop. A test that does not want to
// wait for a retry or a delayed job lets time go by with [Advance]. Process asks
// no database, so that inside testing/synctest all time is the test's.
//
// Nothing here starts a server, or needs more than the program's pool.
package simplequeuetest
