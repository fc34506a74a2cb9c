package migrate

import (
	"crypto/sha256"
	"encoding/binary"
	"fmt"
	"regexp"
	"strings"
	"unicode"
	"unicode/utf8"
)

// maxSchemaBytes is the longest identifier PostgreSQL keeps; it cuts longer
// ones silently (NAMEDATALEN - 1).
const maxSchemaBytes = 63

// dollarTag is what could end the dollar-quoted body of a function.
var dollarTag = regexp.MustCompile(`\$([\pL_][\pL\pN_]*)?\$`)

// SchemaError says that a name cannot be used for a schema.
type SchemaError struct {
	Schema string // the name as it was given
	Reason string // what is wrong with it, and what to do
}

// Error names the schema, what is wrong with it and the way out.
func (e *SchemaError) Error() string {
	return fmt.Sprintf("schema name %q %s", e.Schema, e.Reason)
}

// ValidateSchema reports whether schema can name the schema of a queue. Names
// are always quoted, so upper case, spaces, quotes and keywords are allowed.
// Refused, with a [*SchemaError], are names that are empty, longer than 63
// bytes, not UTF-8, reserved by PostgreSQL (pg_...), or that hold a control
// character or a dollar-quote tag such as $$.
func ValidateSchema(schema string) error {
	refuse := func(format string, args ...any) error {
		return &SchemaError{Schema: schema, Reason: fmt.Sprintf(format, args...)}
	}
	switch {
	case schema == "":
		return refuse("is empty: set a name, for example %q", "simplequeue")
	case len(schema) > maxSchemaBytes:
		return refuse("is %d bytes long: PostgreSQL keeps %d, shorten it", len(schema), maxSchemaBytes)
	case !utf8.ValidString(schema):
		return refuse("is not valid UTF-8: choose another name")
	case strings.ContainsFunc(schema, unicode.IsControl):
		return refuse("holds a control character: remove it")
	case strings.HasPrefix(schema, "pg_"):
		return refuse("begins with pg_, which PostgreSQL reserves: choose another name")
	}
	if tag := dollarTag.FindString(schema); tag != "" {
		return refuse("holds %s, which would end a function's body: remove it", tag)
	}
	return nil
}

// quoteIdent returns name as a quoted SQL identifier.
func quoteIdent(name string) string {
	return `"` + strings.ReplaceAll(name, `"`, `""`) + `"`
}

// escapeLiteral returns s as it stands between the quotes of an SQL string,
// with standard_conforming_strings on.
func escapeLiteral(s string) string {
	return strings.ReplaceAll(s, `'`, `''`)
}

// render fills the placeholders of an SQL text: {schema} is the quoted
// identifier, {schema_name} the name for use inside a string literal.
func render(text, schema string) string {
	return strings.NewReplacer(
		"{schema}", quoteIdent(schema),
		"{schema_name}", escapeLiteral(schema),
	).Replace(text)
}

// lockKey is the advisory lock that migrations of a schema take. Advisory locks
// belong to one database, so the schema's name is all it needs to hold.
func lockKey(schema string) int64 {
	sum := sha256.Sum256([]byte("simplequeue migrate " + schema))
	return int64(binary.BigEndian.Uint64(sum[:8]))
}
