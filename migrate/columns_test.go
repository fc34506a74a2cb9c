package migrate_test

import (
	"fmt"
	"strings"
	"testing"

	"github.com/simplequeue/simplequeue/internal/pgtest"
	"github.com/simplequeue/simplequeue/migrate"
)

// Programs name the columns that they move. A column that a migration added to a
// table that jobs move between would be dropped by every older program that works
// beside a newer one: what is new about a job goes into props, or into a table of
// its own.
func TestTablesOfJobsKeepTheirColumns(t *testing.T) {
	t.Parallel()
	conn := connect(t, pgtest.EmptyDatabase(t))
	columns := func(table string) string {
		return value(t, conn, fmt.Sprintf(`SELECT coalesce(string_agg(attname || ' ' || format_type(atttypid, atttypmod), ', ' ORDER BY attnum), '')
			FROM pg_attribute WHERE attrelid = to_regclass('simplequeue.%s') AND attnum > 0`, table))
	}
	tables := []string{"job_queue", "job_waiting", "job_running", "job_finished", "job_queue_archive", "job_queue_dlq", "job_outcome"}
	was := map[string]string{}
	for version := 1; version <= migrate.Latest(); version++ {
		_, text, _ := strings.Cut(migrate.SQL("simplequeue"), fmt.Sprintf("\n-- Migration %d:", version))
		text, _, _ = strings.Cut(text, "\n-- Migration ")
		exec(t, conn, "--"+text)
		for _, table := range tables {
			is := columns(table)
			if was[table] != "" && is != was[table] {
				t.Errorf("migration %d changes the columns of %s from\n%s to\n%s", version, table, was[table], is)
			}
			was[table] = is
		}
	}
	for table, columns := range was {
		if columns == "" {
			t.Errorf("there is no %s", table)
		}
	}
}
