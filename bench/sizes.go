package main

import "context"

// sizes are those of a contestant's tables, partitions included.
type sizes struct {
	tables, indexes int64 // bytes; tables with what they have put aside in TOAST
	live            int64 // bytes of tables and indexes that hold unfinished jobs
	deadTuples      int64 // as the server's statistics know them, up to a second late
}

// readSizes adds up the tables of a schema. A partitioned table has no storage
// of its own; its partitions are tables of the same schema.
func (t *trial) readSizes(ctx context.Context) (s sizes, err error) {
	err = t.db.QueryRow(ctx, `
SELECT coalesce(sum(pg_table_size(c.oid)), 0)::bigint,
       coalesce(sum(pg_indexes_size(c.oid)), 0)::bigint,
       coalesce(sum(pg_total_relation_size(c.oid)) FILTER (WHERE $2 = '' OR c.relname !~ $2), 0)::bigint,
       coalesce(sum(pg_stat_get_dead_tuples(c.oid)), 0)::bigint
FROM pg_class AS c
WHERE c.relkind = 'r' AND c.relnamespace = $1::text::regnamespace`, t.about.Schema, t.about.Archive).
		Scan(&s.tables, &s.indexes, &s.live, &s.deadTuples)
	return s, err
}

// tableNames are the contestant's tables, quoted, that hold rows.
func (t *trial) tableNames(ctx context.Context) (names []string, err error) {
	err = t.db.QueryRow(ctx, `
SELECT coalesce(array_agg(c.oid::regclass::text ORDER BY c.oid), '{}')
FROM pg_class AS c
WHERE c.relkind IN ('r', 'p') AND NOT c.relispartition AND c.relnamespace = $1::text::regnamespace`, t.about.Schema).Scan(&names)
	return names, err
}
