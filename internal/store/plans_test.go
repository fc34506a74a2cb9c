package store_test

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgtype"
	"github.com/jackc/pgx/v5/pgxpool"

	"github.com/simplequeue/simplequeue/internal/pgtest"
	"github.com/simplequeue/simplequeue/internal/store"
)

// planNode is a node of EXPLAIN (ANALYZE, BUFFERS, FORMAT JSON).
type planNode struct {
	Type       string  `json:"Node Type"`
	Relation   string  `json:"Relation Name"`
	Index      string  `json:"Index Name"`
	Subplan    string  `json:"Subplan Name"`
	Rows       float64 `json:"Actual Rows"`
	Loops      float64 `json:"Actual Loops"`
	Filtered   float64 `json:"Rows Removed by Filter"`
	JoinFilter float64 `json:"Rows Removed by Join Filter"`
	Rechecked  float64 `json:"Rows Removed by Index Recheck"`
	Hit        int     `json:"Shared Hit Blocks"`
	Read       int     `json:"Shared Read Blocks"`
	Plans      []planNode
}

// cost is what a plan has done, and what about it is wrong.
type cost struct {
	rows     int // produced by all nodes and thrown away by filters
	buffers  int // shared; those of a CTE may count twice
	sorted   int // rows, by the largest sort
	problems []string
}

// add adds a node and those below it.
func (c *cost) add(n *planNode, whole []string) {
	rows := int(n.Loops * (n.Rows + n.Filtered + n.JoinFilter + n.Rechecked))
	c.rows += rows
	if strings.HasPrefix(n.Subplan, "CTE ") || n.Subplan == "" && c.buffers == 0 {
		c.buffers += n.Hit + n.Read
	}
	reads := func(table string) bool { return n.Relation == table || strings.HasPrefix(n.Relation, table+"_") }
	if n.Type == "Seq Scan" && n.Loops > 0 && !slices.ContainsFunc(whole, reads) {
		c.problems = append(c.problems, fmt.Sprintf("a Seq Scan of %s", n.Relation))
	}
	if n.Type == "Sort" || n.Type == "Incremental Sort" {
		for _, below := range n.Plans {
			c.sorted = max(c.sorted, int(below.Loops*below.Rows))
		}
	}
	for i := range n.Plans {
		c.add(&n.Plans[i], whole)
	}
}

var errRollback = errors.New("rolled back")

// explain runs a statement with the engine's settings, or the caller's where it
// is the caller who runs it, and takes back what it has done.
func explain(t *testing.T, pool *pgxpool.Pool, s *hotStatement, mode, options string) (out string, err error) {
	t.Helper()
	db := &store.DB{Schema: store.NewSchema(pgtest.Schema), Pool: pool}
	run := func(ctx context.Context, tx pgx.Tx) error {
		if _, err := tx.Exec(ctx, "SET LOCAL plan_cache_mode = "+mode); err != nil {
			return err
		}
		name := fmt.Sprintf("plan of %s in %d", s.name, s.slot)
		text := strings.ReplaceAll(s.text, "{schema}", pgtest.Schema)
		if text == "" {
			text = db.SQLs(s.statement(t))[s.slot]
		}
		d, err := tx.Conn().Prepare(ctx, name, text)
		if err != nil {
			return err
		}
		args := make([]string, len(s.args))
		for i, arg := range s.args {
			if args[i], err = literal(tx.Conn().TypeMap(), d.ParamOIDs[i], arg); err != nil {
				return fmt.Errorf("argument %d: %w", i+1, err)
			}
		}
		list := ""
		if len(args) > 0 {
			list = "(" + strings.Join(args, ", ") + ")"
		}
		rows, err := tx.Query(ctx, "EXPLAIN (ANALYZE, BUFFERS, "+options+") EXECUTE "+pgx.Identifier{name}.Sanitize()+list, pgx.QueryExecModeSimpleProtocol)
		if err != nil {
			return err
		}
		lines, err := pgx.CollectRows(rows, pgx.RowTo[string])
		if err != nil {
			return err
		}
		out = strings.Join(lines, "\n")
		return errRollback
	}
	if s.caller {
		err = pgx.BeginFunc(t.Context(), pool, func(tx pgx.Tx) error { return run(t.Context(), tx) })
	} else {
		err = db.InTx(t.Context(), time.Minute, run)
	}
	if errors.Is(err, errRollback) {
		err = nil
	}
	return out, err
}

func literal(types *pgtype.Map, oid uint32, arg any) (string, error) {
	text, err := types.Encode(oid, pgtype.TextFormatCode, arg, nil)
	if err != nil {
		return "", err
	}
	if text == nil {
		return "NULL", nil
	}
	return "'" + strings.ReplaceAll(string(text), "'", "''") + "'", nil
}

// measure runs a statement and says what it cost.
func measure(t *testing.T, pool *pgxpool.Pool, s *hotStatement, mode string) (cost, error) {
	t.Helper()
	text, err := explain(t, pool, s, mode, "FORMAT JSON")
	if err != nil {
		return cost{}, err
	}
	var plans []struct{ Plan planNode }
	if err := json.Unmarshal([]byte(text), &plans); err != nil {
		return cost{}, err
	}
	var c cost
	c.add(&plans[0].Plan, s.whole)
	return c, nil
}

// wrong is what a statement did that it must not.
func (s *hotStatement) wrong(c cost, dead bool) []string {
	problems := c.problems
	if c.rows > s.rows {
		problems = append(problems, fmt.Sprintf("%d rows read, at most %d", c.rows, s.rows))
	}
	if c.buffers > s.buffers && (!dead || !s.walksDead) {
		problems = append(problems, fmt.Sprintf("%d buffers touched, at most %d", c.buffers, s.buffers))
	}
	if c.sorted > s.sorts {
		problems = append(problems, fmt.Sprintf("%d rows sorted, at most %d", c.sorted, s.sorts))
	}
	return problems
}

const (
	generic = "force_generic_plan"
	custom  = "force_custom_plan"
)

// TestPlans: whatever the statistics say, each hot statement does what its batch
// asks for and no more, however long the backlog is: it reads no large table as
// a whole, sorts no backlog, and touches a number of rows and pages that goes
// with the batch. With SIMPLEQUEUE_TEST_LONG=1 the backlog is a million jobs in
// each place and custom plans are made in each state of the statistics, else it is
// 10,000 and they are made with stale ones; with -update docs/plans.md is written.
func TestPlans(t *testing.T) {
	t.Parallel()
	d := &plansData{n: 10_000, pool: pgtest.New(t)}
	long := os.Getenv("SIMPLEQUEUE_TEST_LONG") != ""
	if long {
		d.n = 1_000_000
	}
	hot := d.hot()
	check := func(statistics string, pool *pgxpool.Pool, modes ...string) {
		if !long && statistics != "stale statistics" {
			modes = modes[:1]
		}
		for _, s := range hot {
			for _, mode := range modes {
				c, err := measure(t, pool, s, mode)
				if err != nil {
					t.Errorf("%s, %s, %s: %v", s.name, statistics, mode, err)
					continue
				}
				t.Logf("%s, %s, %s: %d rows, %d buffers, %d sorted", s.name, statistics, mode, c.rows, c.buffers, c.sorted)
				for _, problem := range s.wrong(c, statistics == "dead rows") {
					t.Errorf("%s, %s, %s: %s", s.name, statistics, mode, problem)
				}
			}
		}
	}
	d.prepare(t)
	d.fill(t)
	check("no statistics", d.pool, generic, custom)

	// A plan lives as long as its connection, here from the empty table on.
	d.drain(t)
	kept := pgtest.Pool(t, d.pool.Config().ConnString(), 1)
	for _, s := range hot {
		if _, err := measure(t, kept, s, generic); err != nil {
			t.Errorf("%s, on empty tables: %v", s.name, err)
		}
	}
	d.fill(t)
	check("planned on empty tables", kept, generic)
	check("stale statistics", d.pool, generic, custom)
	if *update {
		writePlans(t, d, hot)
	}
	d.analyze(t)
	check("fresh statistics", d.pool, generic, custom)
	d.kill(t)
	check("dead rows", d.pool, generic, custom)
}

// TestPlansAreOfAllStatements: a new statement is measured too, or there is a
// reason why not.
func TestPlansAreOfAllStatements(t *testing.T) {
	t.Parallel()
	schema := store.NewSchema(pgtest.Schema)
	seen := map[store.Statement]bool{}
	d := &plansData{n: 1000}
	for _, s := range append(d.hot(), d.operators()...) {
		if s.text == "" {
			seen[s.statement(t)] = true
		}
	}
	for _, st := range store.All() {
		text := strings.ReplaceAll(schema.SQL(st), `"`, "")
		if !seen[st] && !slices.ContainsFunc(plainStatements, func(part string) bool { return strings.Contains(text, part) }) {
			t.Errorf("nothing measures\n%s", text)
		}
	}
}
