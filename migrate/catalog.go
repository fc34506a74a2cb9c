package migrate

import (
	"cmp"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"fmt"
	"regexp"
	"slices"
	"strings"

	"github.com/jackc/pgx/v5"
)

// A fact is one thing in the catalog: a table, a column, an index.
type fact struct {
	name string // kind and name, such as "column job_queue.seq"
	def  string // how it is defined, on one line
}

// catalogSQL lists what a schema holds as (name, definition, function body).
// It asks only what PostgreSQL 14 to 18 answer alike: not the definitions of
// views, which print differently, but their columns; not the NOT NULL
// constraints that newer versions name, but the columns' flag. Left out are
// partitions by day, which come and go while the queue runs; what extensions own;
// storage parameters, which operators tune; and comments and grants.
const catalogSQL = `
WITH ns AS (
    SELECT oid FROM pg_namespace WHERE nspname = '{schema_name}'
), rel AS (
    SELECT c.*
    FROM pg_class AS c
    JOIN ns ON ns.oid = c.relnamespace
    WHERE NOT c.relispartition
      AND NOT EXISTS (
          SELECT FROM pg_depend AS d
          WHERE d.classid = 'pg_class'::regclass AND d.objid = c.oid AND d.deptype = 'e')
), col AS (
    SELECT rel.relname, rel.relkind, a.attname, a.attnum,
           format_type(a.atttypid, a.atttypmod)
           || CASE WHEN a.attcollation <> t.typcollation THEN ' collate ' || o.collname ELSE '' END
           || CASE WHEN a.attnotnull THEN ' not null' ELSE '' END
           || CASE a.attidentity WHEN 'a' THEN ' identity always' WHEN 'd' THEN ' identity by default' ELSE '' END
           || CASE WHEN d.adbin IS NULL THEN '' WHEN a.attgenerated <> '' THEN ' generated ' ELSE ' default ' END
           || coalesce(pg_get_expr(d.adbin, d.adrelid), '') AS def
    FROM rel
    JOIN pg_attribute AS a ON a.attrelid = rel.oid AND a.attnum > 0 AND NOT a.attisdropped
    JOIN pg_type AS t ON t.oid = a.atttypid
    LEFT JOIN pg_collation AS o ON o.oid = a.attcollation
    LEFT JOIN pg_attrdef AS d ON d.adrelid = a.attrelid AND d.adnum = a.attnum
    WHERE rel.relkind IN ('r', 'p', 'f', 'c', 'v', 'm')
), owned_type AS (
    SELECT t.*
    FROM pg_type AS t
    JOIN ns ON ns.oid = t.typnamespace
    WHERE NOT EXISTS (
        SELECT FROM pg_depend AS d
        WHERE d.classid = 'pg_type'::regclass AND d.objid = t.oid AND d.deptype = 'e')
)
SELECT 'table ' || relname,
       CASE relpersistence WHEN 'p' THEN 'logged' WHEN 'u' THEN 'unlogged' ELSE 'temporary' END
       || coalesce(' partition by ' || pg_get_partkeydef(oid), '')
       || CASE WHEN relrowsecurity THEN ' row security' ELSE '' END,
       NULL
FROM rel
WHERE relkind IN ('r', 'p', 'f')
UNION ALL
SELECT 'partition ' || c.relname, pg_get_expr(c.relpartbound, c.oid), NULL
FROM pg_class AS c
JOIN ns ON ns.oid = c.relnamespace
WHERE c.relispartition AND c.relkind = 'r' AND c.relname !~ '_p[0-9]{8}$'
UNION ALL
SELECT 'column ' || relname || '.' || attname, def, NULL
FROM col
WHERE relkind IN ('r', 'p', 'f', 'c')
UNION ALL
SELECT CASE relkind WHEN 'v' THEN 'view ' ELSE 'materialized view ' END || relname,
       string_agg(attname || ' ' || def, ', ' ORDER BY attnum), NULL
FROM col
WHERE relkind IN ('v', 'm')
GROUP BY relkind, relname
UNION ALL
SELECT 'index ' || c.relname,
       pg_get_indexdef(i.indexrelid) || CASE WHEN i.indisvalid THEN '' ELSE ' (invalid)' END, NULL
FROM rel
JOIN pg_index AS i ON i.indrelid = rel.oid
JOIN pg_class AS c ON c.oid = i.indexrelid
WHERE rel.relkind IN ('r', 'p', 'm')
UNION ALL
SELECT 'constraint ' || rel.relname || '.' || k.conname,
       CASE k.contype WHEN 'c' THEN 'check' WHEN 'f' THEN 'foreign key' ELSE 'exclude' END
       || CASE WHEN k.convalidated THEN '' ELSE ' (not valid)' END, NULL
FROM rel
JOIN pg_constraint AS k ON k.conrelid = rel.oid
WHERE k.contype IN ('c', 'f', 'x')
  AND k.conparentid = 0
UNION ALL
SELECT 'trigger ' || rel.relname || '.' || t.tgname,
       pg_get_triggerdef(t.oid) || CASE t.tgenabled WHEN 'O' THEN '' WHEN 'D' THEN ' (disabled)' ELSE ' (replica)' END, NULL
FROM rel
JOIN pg_trigger AS t ON t.tgrelid = rel.oid
WHERE NOT t.tgisinternal
  AND t.tgparentid = 0
UNION ALL
SELECT 'sequence ' || rel.relname, format_type(s.seqtypid, NULL), NULL
FROM rel
JOIN pg_sequence AS s ON s.seqrelid = rel.oid
WHERE NOT EXISTS (
    SELECT FROM pg_depend AS d
    WHERE d.classid = 'pg_class'::regclass AND d.objid = rel.oid AND d.deptype = 'i')
UNION ALL
SELECT 'type ' || t.typname,
       'enum (' || string_agg(quote_literal(e.enumlabel), ', ' ORDER BY e.enumsortorder) || ')', NULL
FROM owned_type AS t
JOIN pg_enum AS e ON e.enumtypid = t.oid
GROUP BY t.typname
UNION ALL
SELECT 'type ' || t.typname,
       CASE t.typtype WHEN 'r' THEN 'range' ELSE 'domain ' || format_type(t.typbasetype, t.typtypmod) END
       || CASE WHEN t.typnotnull THEN ' not null' ELSE '' END, NULL
FROM owned_type AS t
WHERE t.typtype IN ('d', 'r')
UNION ALL
SELECT CASE p.prokind WHEN 'p' THEN 'procedure ' WHEN 'a' THEN 'aggregate ' ELSE 'function ' END
       || p.proname || '(' || pg_get_function_identity_arguments(p.oid) || ')',
       coalesce('returns ' || pg_get_function_result(p.oid) || ' ', '')
       || 'language ' || l.lanname
       || CASE p.provolatile WHEN 'i' THEN ' immutable' WHEN 's' THEN ' stable' ELSE ' volatile' END
       || CASE p.proparallel WHEN 's' THEN ' parallel safe' WHEN 'r' THEN ' parallel restricted' ELSE '' END
       || CASE WHEN p.proisstrict THEN ' strict' ELSE '' END
       || CASE WHEN p.prosecdef THEN ' security definer' ELSE '' END
       || CASE WHEN p.proleakproof THEN ' leakproof' ELSE '' END
       || coalesce((SELECT string_agg(' set ' || s.setting, '' ORDER BY s.n)
                    FROM unnest(p.proconfig) WITH ORDINALITY AS s(setting, n)), ''),
       p.prosrc
FROM pg_proc AS p
JOIN ns ON ns.oid = p.pronamespace
JOIN pg_language AS l ON l.oid = p.prolang
WHERE NOT EXISTS (
    SELECT FROM pg_depend AS d
    WHERE d.classid = 'pg_proc'::regclass AND d.objid = p.oid AND d.deptype = 'e')`

// catalog reads the facts of a schema, sorted by name, inside a transaction
// begun by beginReadTx. The schema's own name reads {schema} in them.
func (m *migrator) catalog(ctx context.Context, conn *pgx.Conn, schema string) ([]fact, error) {
	rows, err := query(ctx, conn, render("SELECT quote_ident('{schema_name}')", schema))
	if err != nil {
		return nil, err
	}
	neutral := schemaNeutral(string(rows[0][0]))
	bodies := m.bodies(schema)

	if rows, err = query(ctx, conn, render(catalogSQL, schema)); err != nil {
		return nil, fmt.Errorf("read the catalog: %w", err)
	}
	facts := make([]fact, 0, len(rows))
	for _, row := range rows {
		name, arguments, ok := strings.Cut(string(row[0]), "(")
		if ok { // the types of a function's arguments
			name += "(" + neutral(arguments)
		}
		f := fact{name: oneLine(name), def: oneLine(neutral(string(row[1])))}
		if body := string(row[2]); body != "" {
			sum := sha256.Sum256([]byte(cmp.Or(bodies[body], body)))
			f.def += " body " + hex.EncodeToString(sum[:8])
		}
		facts = append(facts, f)
	}
	slices.SortFunc(facts, func(a, b fact) int { return cmp.Compare(a.name, b.name) })
	return facts, nil
}

// bodies maps the body of each function in the migrations, as it is in the
// database, to the body with placeholders. Going back from a body to its
// placeholders would be guesswork for a schema named like a word in it.
func (m *migrator) bodies(schema string) map[string]string {
	bodies := make(map[string]string)
	for _, mig := range m.migrations {
		for _, body := range dollarQuoted(mig.text) {
			bodies[render(body, schema)] = body
		}
	}
	return bodies
}

// schemaNeutral returns a function that replaces the schema's name in what the
// catalog prints, where ident is the name as the catalog quotes it.
func schemaNeutral(ident string) func(string) string {
	// The second form is the name inside a string, as in nextval('s.x'::regclass).
	name := "(?:" + regexp.QuoteMeta(ident) + "|" + regexp.QuoteMeta(escapeLiteral(ident)) + ")"
	qualified := regexp.MustCompile(`(^|[^\pL\pN_$".])` + name + `\.`)
	listed := regexp.MustCompile(`( set search_path=(?:[^=]*, )?)` + name + `(,| |$)`)
	return func(s string) string {
		s = qualified.ReplaceAllString(s, "${1}{schema}.")
		return listed.ReplaceAllString(s, "${1}{schema}${2}")
	}
}

// oneLine keeps the separators of catalog.txt out of a value.
func oneLine(s string) string {
	return strings.NewReplacer("\t", `\t`, "\r", `\r`, "\n", `\n`).Replace(s)
}

var openingTag = regexp.MustCompile(`^\$(?:[A-Za-z_][A-Za-z0-9_]*)?\$`)

// dollarQuoted returns the dollar-quoted strings of an SQL text.
func dollarQuoted(text string) []string {
	var found []string
	for text != "" {
		skip := 1
		switch {
		case strings.HasPrefix(text, "--"):
			skip = endOf(text, 2, "\n")
		case strings.HasPrefix(text, "/*"):
			skip = endOf(text, 2, "*/")
		case text[0] == '\'', text[0] == '"': // a doubled quote reads as two strings
			skip = endOf(text, 1, text[:1])
		case text[0] == '$':
			if tag := openingTag.FindString(text); tag != "" {
				skip = endOf(text, len(tag), tag)
				found = append(found, strings.TrimSuffix(text[len(tag):skip], tag))
			}
		}
		text = text[skip:]
	}
	return found
}

// endOf returns where text continues after the next end, looked for from from.
func endOf(text string, from int, end string) int {
	if i := strings.Index(text[from:], end); i >= 0 {
		return from + i + len(end)
	}
	return len(text)
}
