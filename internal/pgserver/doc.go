// Package pgserver gives examples, benchmarks and tests a PostgreSQL server
// without any setting up. [Start] takes the first of four providers that
// works:
//
//  1. "environment": the server named by a URL in the environment;
//  2. "binaries": PostgreSQL server programs installed on this machine, run
//     in a temporary folder on a free port;
//  3. "docker": a container, through dockertest;
//  4. "embedded": server programs downloaded by embedded-postgres, run like
//     the installed ones.
//
// What Start started, [Server.Stop] stops and removes. A program that dies
// without calling Stop leaves a folder behind whose lock file nobody holds any
// more; the next Start on the machine, by whatever program, stops and removes
// such leftovers.
//
// The servers are for throwing away: they run with fsync off unless the
// settings say otherwise.
package pgserver
