-- Queues that are paused, for all processes: a row each.
CREATE TABLE {schema}.job_pause (
    queue     text        NOT NULL PRIMARY KEY,
    reason    text        NOT NULL DEFAULT '',
    paused_at timestamptz NOT NULL DEFAULT clock_timestamp()
);

-- What a worker tells operators. kinds has an entry for each queue, or prefix,
-- whose kinds the worker knows one by one; it takes every kind of the others.
-- paused are the queues that it knows to be paused and claims nothing from.
ALTER TABLE {schema}.job_worker
    ADD COLUMN kinds  jsonb,
    ADD COLUMN paused text[] NOT NULL DEFAULT '{}';

-- The dead letters of a queue, page by page. The archive, into which every
-- completed job goes, has no such index.
CREATE INDEX job_queue_dlq_queue ON {schema}.job_queue_dlq (queue, id);
