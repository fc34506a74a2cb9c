package migrate

import (
	_ "embed"
	"fmt"
	"strconv"
	"strings"
	"unicode"
	"unicode/utf8"
)

//go:embed roles.sql
var rolesText string

// Roles are the names of the roles that [Grants] is about. An empty name is the
// schema's with "_enqueue", "_work" or "_admin" behind it.
type Roles struct {
	Enqueue string // inserts jobs, and neither reads nor changes those of others
	Work    string // runs jobs: what Run, janitor and reaper do, and what handlers may ask for
	Admin   string // does what Work does, and sets limits, pauses and shares of queues
}

// Grants returns SQL that lets three roles do their part and nothing else, for
// the owner of the schema to run: by psql, or by Exec of one connection without
// arguments. It makes the roles if they are not there, takes back what they had,
// takes from PUBLIC the right to call the schema's functions, and grants. Run it
// again after each migration.
//
// None of the roles may migrate: that needs the owner of the schema.
//
// Errors are a [*SchemaError], and an error that names the role for a name that
// PostgreSQL would not take as it is.
func Grants(schema string, roles Roles) (string, error) {
	if err := ValidateSchema(schema); err != nil {
		return "", err
	}
	values := []string{"{lock}", strconv.FormatInt(lockKey(schema), 10)}
	for _, r := range []struct{ part, name string }{{"enqueue", roles.Enqueue}, {"work", roles.Work}, {"admin", roles.Admin}} {
		if r.name == "" {
			r.name = schema + "_" + r.part
		}
		if problem := roleProblem(r.name); problem != "" {
			return "", fmt.Errorf("migrate: the role to %s, %q, %s", r.part, r.name, problem)
		}
		values = append(values, "{"+r.part+"}", quoteIdent(r.name), "{"+r.part+"_name}", escapeLiteral(r.name))
	}
	values = append(values, "{schema}", quoteIdent(schema))
	return strings.NewReplacer(values...).Replace(rolesText), nil
}

// roleProblem says what is wrong with the name of a role.
func roleProblem(name string) string {
	switch {
	case len(name) > maxSchemaBytes:
		return fmt.Sprintf("is %d bytes long: PostgreSQL keeps %d, name it in Roles", len(name), maxSchemaBytes)
	case !utf8.ValidString(name):
		return "is not valid UTF-8"
	case strings.ContainsFunc(name, unicode.IsControl):
		return "holds a control character"
	case strings.HasPrefix(name, "pg_"), name == "public", name == "none":
		return "is reserved by PostgreSQL"
	}
	if tag := dollarTag.FindString(name); tag != "" {
		return "holds " + tag + ", which would end a DO block: name another"
	}
	return ""
}
