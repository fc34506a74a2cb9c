// Package pgtest gives every test a clean database on a real PostgreSQL.
//
// A package that uses it hands its TestMain over:
//
//	func TestMain(m *testing.M) { pgtest.Main(m) }
//
// The first test that asks starts one server for the test binary, see package
// pgserver; SIMPLEQUEUE_TEST_DATABASE_URL names an existing one instead. Each
// database is a copy of a migrated template, so that tests run in parallel
// without seeing each other.
package pgtest
