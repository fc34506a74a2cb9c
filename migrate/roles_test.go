package migrate_test

import (
	"os"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/simplequeue/simplequeue/migrate"
)

// TestRolesFile keeps roles.sql at the root what Grants returns.
func TestRolesFile(t *testing.T) {
	t.Parallel()
	const file = "../roles.sql"
	want, err := migrate.Grants("simplequeue", migrate.Roles{})
	if err != nil {
		t.Fatal(err)
	}
	if *update {
		if err := os.WriteFile(file, []byte(want), 0o644); err != nil {
			t.Fatal(err)
		}
		return
	}
	got, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(want, strings.ReplaceAll(string(got), "\r\n", "\n")); diff != "" {
		t.Errorf("roles.sql is not what Grants returns, run go test ./migrate -update (-want +got):\n%s", diff)
	}
}

// Names of roles and schemas that would not be taken as they are.
func TestGrantsChecksNames(t *testing.T) {
	t.Parallel()
	for _, c := range []struct {
		schema string
		roles  migrate.Roles
		want   string
	}{
		{"", migrate.Roles{}, "schema"},
		{"a$$b", migrate.Roles{}, "schema"},
		{strings.Repeat("s", 60), migrate.Roles{}, "68 bytes"},
		{"s", migrate.Roles{Work: "pg_work"}, "reserved"},
		{"s", migrate.Roles{Work: "public"}, "reserved"},
		{"s", migrate.Roles{Admin: "a$x$b"}, "$x$"},
		{"s", migrate.Roles{Admin: "a\nb"}, "control"},
		{"s", migrate.Roles{Enqueue: "\xff"}, "UTF-8"},
	} {
		if text, err := migrate.Grants(c.schema, c.roles); err == nil || !strings.Contains(err.Error(), c.want) || text != "" {
			t.Errorf("%q %+v: %v, want an error about %q", c.schema, c.roles, err, c.want)
		}
	}
}
