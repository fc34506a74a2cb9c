package store

import (
	"context"
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/jackc/pgx/v5"
)

// Filter selects jobs; zero fields select all.
type Filter struct {
	IDs         []string // nil for all, empty for none
	Queue       string
	Kind        string
	UniqueKey   string
	Fingerprint string
	OrderKey    string
	FairnessKey string
	States      []string
	Metadata    map[string]string

	CreatedFrom, CreatedBefore   *time.Time
	FinishedFrom, FinishedBefore *time.Time
}

// source is a table of jobs, as an inspector reads it.
type source struct {
	table    string
	states   []string // of its rows
	state    string   // of a row j, as an expression; the table's column where there is none
	live     bool
	expiring bool // partitioned by expires_on
}

var (
	deadStates = []string{"failed", "cancelled", "unprocessable", "critical_failure", "bad_job"}

	sources = []source{
		{table: "job_waiting", states: []string{"waiting"}, state: "'waiting'", live: true},
		{table: "job_queue", states: []string{"pending"}, state: "'pending'", live: true},
		{table: "job_running", states: []string{"running", "cancelling"}, live: true, state: `CASE WHEN EXISTS (
        SELECT FROM {schema}.job_cancel AS c
        WHERE c.claim_id = j.claim_id AND c.claim_nonce = j.claim_nonce) THEN 'cancelling' ELSE 'running' END`},
		{table: "job_finished", states: append([]string{"completed"}, deadStates...), state: "j.state"},
		{table: "job_queue_archive", states: []string{"completed"}, state: "'completed'", expiring: true},
		{table: "job_queue_dlq", states: deadStates, state: "j.state", expiring: true},
	}
)

// query is a statement in the making.
type query struct {
	args []any
}

// arg adds an argument and returns its place.
func (q *query) arg(v any) string {
	q.args = append(q.args, v)
	return fmt.Sprintf("$%d", len(q.args))
}

// of are the sources that may hold rows that match.
func (f *Filter) of() []source {
	var list []source
	for _, s := range sources {
		wanted := len(f.States) == 0 || slices.ContainsFunc(s.states, func(state string) bool { return slices.Contains(f.States, state) })
		if wanted && (!s.live || f.FinishedFrom == nil && f.FinishedBefore == nil) {
			list = append(list, s)
		}
	}
	return list
}

// allOf reports whether every row of the source is in a state that is asked for.
func (f *Filter) allOf(s source) bool {
	return len(f.States) == 0 || !slices.ContainsFunc(s.states, func(state string) bool { return !slices.Contains(f.States, state) })
}

// conditions are those of the filter on a row j of the source. They are built,
// not one text with "$1 IS NULL OR", so that the planner sees which indexes
// apply. within is how a list of ids is asked: a live job's key and fingerprint
// have tables with an index.
func (f *Filter) conditions(q *query, s source, within, span string) []string {
	var list []string
	add := func(format string, v any) { list = append(list, fmt.Sprintf(format, q.arg(v))) }
	if f.IDs != nil {
		add("j.id = ANY (%s::text[]::uuid[])", f.IDs)
	}
	if f.Queue != "" {
		add("j.queue = %s::text", f.Queue)
	}
	if f.Kind != "" {
		add("j.kind = %s::text", f.Kind)
	}
	if f.UniqueKey != "" {
		add("j.unique_key = %s::text", f.UniqueKey)
		if s.live {
			// The primary key starts with the scope: the queue, or empty for a
			// global key. Every queue of a live job has a lane.
			list = append(list, fmt.Sprintf(within, fmt.Sprintf(
				`SELECT u.job_id FROM {schema}.job_unique AS u WHERE u.key = %s::text AND u.scope = ANY (ARRAY(
          SELECT DISTINCT ltrim(l.queue, '*') FROM {schema}.job_lane AS l WHERE %[2]s::text IN ('', ltrim(l.queue, '*')) UNION ALL SELECT ''))`,
				q.arg(f.UniqueKey), q.arg(f.Queue))))
		}
	}
	if f.Fingerprint != "" {
		add("j.fingerprint = %s::text", f.Fingerprint)
		if s.live {
			list = append(list, fmt.Sprintf(within, fmt.Sprintf(
				"SELECT f.job_id FROM {schema}.job_fingerprint AS f WHERE f.fingerprint = %s::text%s", q.arg(f.Fingerprint), span)))
		}
	}
	if f.OrderKey != "" {
		add("j.props ->> 'order_key' = %s::text", f.OrderKey)
	}
	if f.FairnessKey != "" {
		add("j.props ->> 'fairness_key' = %s::text", f.FairnessKey)
	}
	for _, k := range sortedKeys(f.Metadata) {
		list = append(list, fmt.Sprintf("j.props -> 'metadata' ->> %s::text = %s::text", q.arg(k), q.arg(f.Metadata[k])))
	}
	for _, t := range []struct {
		format string
		at     *time.Time
	}{
		{"j.created_at >= %s::timestamptz", f.CreatedFrom},
		{"j.created_at < %s::timestamptz", f.CreatedBefore},
		{"j.finished_at >= %s::timestamptz", f.FinishedFrom},
		{"j.finished_at < %s::timestamptz", f.FinishedBefore},
	} {
		if t.at != nil {
			add(t.format, *t.at)
		}
	}
	if s.expiring && f.FinishedFrom != nil {
		// A row never expires before it has finished: older partitions are not read.
		add("j.expires_on >= %s::date", f.FinishedFrom.UTC().Format(time.DateOnly))
	}
	if !f.allOf(s) {
		list = append(list, fmt.Sprintf("%s = ANY (%s::text[])", s.state, q.arg(f.States)))
	}
	return list
}

func sortedKeys(m map[string]string) []string {
	keys := make([]string, 0, len(m))
	for k := range m {
		keys = append(keys, k)
	}
	slices.Sort(keys)
	return keys
}

// walks reports whether a page may have to step over rows that do not match.
func (f *Filter) walks() bool {
	if f.IDs != nil {
		return false
	}
	if f.Queue != "" || f.Kind != "" || f.UniqueKey != "" || f.Fingerprint != "" || f.OrderKey != "" || f.FairnessKey != "" || len(f.Metadata) > 0 ||
		f.CreatedFrom != nil || f.CreatedBefore != nil || f.FinishedFrom != nil || f.FinishedBefore != nil {
		return true
	}
	return slices.ContainsFunc(f.of(), func(s source) bool { return !f.allOf(s) })
}

// Place is where a page begins: behind an id, in one direction or the other.
type Place struct {
	After  string // "" for the start
	Newest bool   // greatest ids first
}

// behind is the condition that an id lies behind a place, and order the way.
func (p Place) behind(q *query, id string) string {
	if p.After == "" {
		return ""
	}
	return fmt.Sprintf("%s %s %s::text::uuid", id, p.sign(), q.arg(p.After))
}

func (p Place) sign() string {
	if p.Newest {
		return "<"
	}
	return ">"
}

func (p Place) order() string {
	if p.Newest {
		return "DESC"
	}
	return "ASC"
}

func and(conds []string) string {
	conds = slices.DeleteFunc(conds, func(c string) bool { return c == "" })
	if len(conds) == 0 {
		return "true"
	}
	return strings.Join(conds, " AND ")
}

// horizon asks for the id up to which slice rows of every table lie behind the
// place: a page that goes no further reads no more than that, whatever it finds.
// No row comes back where all tables end before.
func (f *Filter) horizon(p Place, slice int) (string, []any) {
	q := &query{}
	var list []string
	add := func(from, id, order string, conds ...string) {
		list = append(list, fmt.Sprintf("(SELECT %s AS id FROM {schema}.%s WHERE %s ORDER BY %s %s OFFSET %d LIMIT 1)",
			id, from, and(conds), order, p.order(), slice-1))
	}
	live := false
	for _, s := range f.of() {
		if s.live && f.UniqueKey != "" {
			continue // few, and found by the key
		}
		if s.live && f.Fingerprint != "" {
			if !live {
				live = true
				behind := ""
				if p.After != "" {
					behind = fmt.Sprintf("uuid_send(f.job_id) %s uuid_send(%s::text::uuid)", p.sign(), q.arg(p.After))
				}
				add("job_fingerprint AS f", "f.job_id", "uuid_send(f.job_id)", "f.fingerprint = "+q.arg(f.Fingerprint)+"::text", behind)
			}
			continue
		}
		conds := []string{p.behind(q, "j.id")}
		if s.table == "job_queue_dlq" && f.Queue != "" {
			conds = append(conds, "j.queue = "+q.arg(f.Queue)+"::text") // there is an index
		}
		add(s.table+" AS j", "j.id", "j.id", conds...)
	}
	if len(list) == 0 {
		return "", nil
	}
	return fmt.Sprintf("SELECT h.id FROM (%s) AS h ORDER BY h.id %s LIMIT 1", strings.Join(list, "\nUNION ALL "), p.order()), q.args
}

// pick asks for the ids of a page: from every table as many as the page holds,
// of these the first, all as one statement sees them. A job that moves from
// table to table is in exactly one of them.
func (f *Filter) pick(q *query, p Place, upto string, limit int) string {
	var list []string
	for _, s := range f.of() {
		conds := []string{p.behind(q, "j.id")}
		if upto != "" {
			conds = append(conds, fmt.Sprintf("j.id %s= %s::text::uuid", opposite(p.sign()), q.arg(upto)))
		}
		span := ""
		if s.live && f.Fingerprint != "" { // the same, as the index has it
			if p.After != "" {
				span += fmt.Sprintf(" AND uuid_send(f.job_id) %s uuid_send(%s::text::uuid)", p.sign(), q.arg(p.After))
			}
			if upto != "" {
				span += fmt.Sprintf(" AND uuid_send(f.job_id) %s= uuid_send(%s::text::uuid)", opposite(p.sign()), q.arg(upto))
			}
		}
		conds = append(conds, f.conditions(q, s, "j.id = ANY (ARRAY(%s))", span)...)
		list = append(list, fmt.Sprintf("(SELECT j.id FROM {schema}.%s AS j WHERE %s ORDER BY j.id %s LIMIT %d)",
			s.table, and(conds), p.order(), limit))
	}
	if len(list) == 0 {
		return "SELECT NULL::uuid WHERE false"
	}
	return fmt.Sprintf("SELECT p.id FROM (%s) AS p ORDER BY p.id %s LIMIT %d", strings.Join(list, "\n  UNION ALL "), p.order(), limit)
}

func opposite(sign string) string {
	if sign == "<" {
		return ">"
	}
	return "<"
}

// rows asks for the jobs whose ids have been picked, in the same snapshot.
func (f *Filter) rows(p Place, ids string) string {
	return "SELECT " + infoColumns + "\nFROM {schema}." + f.view() + " AS j\nWHERE j.id = ANY (ARRAY(" + ids + "))\nORDER BY j.id " + p.order()
}

const inspectLimit = 30 * time.Second

// Page returns up to limit jobs that match, from a place on, and the place
// where it stopped, "" at the end. It reads at most slice rows of each table.
func (db *DB) Page(ctx context.Context, f Filter, p Place, limit, slice int) (infos []Info, next string, err error) {
	next, err = db.page(ctx, &f, p, limit, slice, func(ids string) string { return f.rows(p, ids) }, func(row pgx.Rows) ([16]byte, error) {
		var i Info
		err := i.scan(row)
		infos = append(infos, i)
		return i.ID, err
	})
	return infos, next, err
}

// PageIDs is Page for the ids alone.
func (db *DB) PageIDs(ctx context.Context, f Filter, p Place, limit, slice int) (ids [][16]byte, next string, err error) {
	next, err = db.page(ctx, &f, p, limit, slice, func(ids string) string { return ids }, func(row pgx.Rows) (id [16]byte, err error) {
		err = row.Scan(&id)
		ids = append(ids, id)
		return id, err
	})
	return ids, next, err
}

func (db *DB) page(ctx context.Context, f *Filter, p Place, limit, slice int,
	text func(ids string) string, scan func(pgx.Rows) ([16]byte, error),
) (next string, err error) {
	upto := ""
	if f.walks() {
		if upto, err = db.askHorizon(ctx, f, p, slice); err != nil {
			return "", err
		}
	}
	q := &query{}
	sql := text(f.pick(q, p, upto, limit))
	n, last := 0, [16]byte{}
	err = db.Tx(ctx, inspectLimit, Step{Text: sql, Args: q.args, Scan: func(row pgx.Rows) (err error) {
		n++
		last, err = scan(row)
		return err
	}})
	if n < limit {
		return upto, err
	}
	return uuids([][16]byte{last})[0], err
}

func (db *DB) askHorizon(ctx context.Context, f *Filter, p Place, slice int) (upto string, err error) {
	sql, args := f.horizon(p, slice)
	if sql == "" {
		return "", nil
	}
	err = db.Tx(ctx, inspectLimit, Step{Text: sql, Args: args, Scan: func(row pgx.Rows) error {
		var id [16]byte
		if err := row.Scan(&id); err != nil {
			return err
		}
		upto = uuids([][16]byte{id})[0]
		return nil
	}})
	return upto, err
}

// Count returns how many jobs match, by state.
func (db *DB) Count(ctx context.Context, f Filter) (map[string]int64, error) {
	counts := map[string]int64{}
	q := &query{}
	var list []string
	for _, s := range f.of() {
		list = append(list, fmt.Sprintf("SELECT %s AS state, count(*) FROM {schema}.%s AS j WHERE %s GROUP BY 1",
			s.state, s.table, and(f.conditions(q, s, "j.id IN (%s)", ""))))
	}
	if len(list) == 0 {
		return counts, nil
	}
	rows, err := db.Pool.Query(ctx, db.expand(strings.Join(list, "\nUNION ALL ")), q.args...)
	if err != nil {
		return nil, err
	}
	defer rows.Close()
	for rows.Next() {
		var state string
		var n int64
		if err := rows.Scan(&state, &n); err != nil {
			return nil, err
		}
		counts[state] += n
	}
	return counts, rows.Err()
}
