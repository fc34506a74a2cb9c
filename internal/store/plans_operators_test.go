package store_test

import (
	"os"
	"testing"
	"time"

	"github.com/simplequeue/simplequeue/internal/pgtest"
	"github.com/simplequeue/simplequeue/internal/store"
)

// operators are the statements that an operator's call runs.
func (d *plansData) operators() []*hotStatement {
	none := []any{nil, nil, nil, false, nil, true, []byte("raw")}
	archived := ids(archiveIDs, 1, plansBatch)
	dead := ids(archiveIDs, d.n+1, plansBatch)
	var claims, nonces []int64
	for i := 1; i <= plansBatch; i++ {
		claims, nonces = append(claims, int64(i*claimStep)), append(nonces, int64(i))
	}
	text := "error"
	list := []*hotStatement{
		{
			name: "changeWaiting", find: "NULL::bigint AS seq, NULL::smallint AS was_lane",
			args:  append([]any{ids(waitingIDs, 1, plansBatch)}, none...),
			whole: []string{"job_lane"}, rows: 2700, buffers: 9000, sorts: plansBatch,
		},
		{
			name: "changeQueued", find: "t.seq, t.lane AS was_lane",
			args:  append([]any{ids(queueIDs, 1, plansBatch)}, none...),
			whole: []string{"job_lane"}, rows: 2700, buffers: 20000, sorts: plansBatch,
		},
		{
			name: "redriveDead", find: "FROM simplequeue.job_queue_dlq AS d\n    WHERE d.id = ANY ($1::text[]::uuid[]) AND d.state",
			args:  []any{dead, nil},
			whole: []string{"job_lane"}, rows: 3000, buffers: 20000, sorts: plansBatch,
		},
		{
			name: "redriveFinished", find: "FROM simplequeue.job_finished AS d\n    WHERE d.id = ANY ($1::text[]::uuid[]) AND d.state",
			args:  []any{ids(finishedIDs, 1, plansBatch), nil},
			whole: []string{"job_lane"}, rows: 3000, buffers: 9000, sorts: plansBatch,
		},
		{
			name: "noteConflicts", find: "'redrive_conflict', jsonb_build_object(",
			args: []any{dead, repeat(plansBatch, "q0"), repeat(plansBatch, "queue190")},
			rows: 14000, buffers: 16000, sorts: plansBatch,
		},
		{
			name: "replayable", find: "a.payload::text",
			args: []any{archived}, rows: 500, buffers: 8000, sorts: plansBatch,
		},
		{
			name: "purgeArchive", find: "DELETE FROM simplequeue.job_queue_archive AS e",
			args: []any{archived}, rows: 1200, buffers: 16000, sorts: plansBatch,
		},
		{
			name: "purgeDead", find: "DELETE FROM simplequeue.job_queue_dlq AS e",
			args: []any{dead}, rows: 1200, buffers: 16000, sorts: plansBatch,
		},
		{
			name: "purgeFinished", find: "DELETE FROM simplequeue.job_finished AS e",
			args: []any{ids(finishedIDs, 1, plansBatch)}, rows: 1200, buffers: 3000, sorts: plansBatch,
		},
		{
			name: "outcomes", find: "FROM simplequeue.job_outcome AS o",
			args: []any{ids(runningIDs, 1, plansBatch)}, whole: []string{"job_running", "job_cancel"},
			rows: 25000, buffers: 16000, sorts: plansRunning,
		},
		{
			name: "outcomes of ended jobs", find: "FROM simplequeue.job_outcome AS o",
			args: []any{archived}, whole: []string{"job_running", "job_cancel"},
			rows: 25000, buffers: 16000, sorts: plansRunning,
		},
		{
			name: "settleOutcome", settles: store.SettleOutcome,
			args: []any{claims, nonces, repeat(plansBatch, "failed"), repeat(plansBatch, ""), repeat(plansBatch, &text), repeat[*string](plansBatch, nil), repeat(plansBatch, "{}")},
			rows: 1500, buffers: 3500,
		},
		{
			name: "expireOutcomes", find: "simplequeue.expire_outcomes()", rows: 1, buffers: 300,
		},
		{
			name: "holds", find: "l.beat_at\n        FROM simplequeue.job_running",
			args: []any{ids(queueIDs, d.n/2, 1)[0]}, whole: []string{"job_running", "job_cancel", "job_pause"},
			rows: 900_000, buffers: 900_000, sorts: plansRunning,
		},
		{
			name: "seeGate", find: "SELECT coalesce(n.gate, '')",
			args: []any{ids(gatedIDs, plansLine-1, 1)[0]}, rows: 400, buffers: 100, sorts: plansLine,
		},
		{
			name: "workers", find: "r.worker_id, count(*) AS n", args: []any{int64(75000)},
			whole: []string{"job_running", "job_worker"}, rows: 40000, buffers: 600, sorts: plansRunning,
		},
		{
			name: "draining", find: "starts_with($1::text", args: []any{"q0", int64(75000)},
			whole: []string{"job_running", "job_worker", "job_pause"}, rows: 12000, buffers: 600,
		},
		{
			name: "queues", find: "FILTER (WHERE c.claim_id IS NULL) AS n", args: []any{int64(1000)},
			whole: []string{"job_running", "job_waiting", "job_lane", "job_pause", "job_cancel"},
			rows:  90000, buffers: 60000, sorts: plansRunning,
		},
	}
	day := time.Now().Add(-24 * time.Hour)
	place := store.Place{After: plansID(archiveIDs, d.n/2)}
	for name, f := range map[string]store.Filter{
		"all": {}, "kind": {Kind: "nobody's"}, "queue": {Queue: "q1"}, "completed": {States: []string{"completed"}}, "failed of a queue": {Queue: "q1", States: []string{"failed"}},
		"fingerprint": {Fingerprint: "f1"}, "unique key": {UniqueKey: "running2"}, "finished lately": {FinishedFrom: &day}, "metadata": {Metadata: map[string]string{"a": "b"}},
		"order key": {OrderKey: "nobody's"}, "fairness key": {FairnessKey: "nobody's"},
	} {
		horizon, args := f.HorizonText(place, 2000)
		list = append(list, &hotStatement{
			name: "horizon of " + name, text: horizon, args: args,
			whole: []string{"job_running"}, rows: 70000, buffers: 30000, sorts: plansRunning,
		})
		upto := ""
		if name != "all" && name != "completed" {
			upto = plansID(archiveIDs, d.n/2+2000)
		}
		page, args := f.PageText(place, upto, 100)
		list = append(list, &hotStatement{
			name: "page of " + name, text: page, args: args,
			whole: []string{"job_running", "job_cancel", "job_lane"}, rows: 70000, buffers: 30000, sorts: plansRunning,
		})
	}
	return list
}

// TestOperatorPlans: what an operator's call reads goes with what it is asked
// for, not with what there is. With SIMPLEQUEUE_TEST_LONG=1 there are a million
// jobs in each place.
func TestOperatorPlans(t *testing.T) {
	t.Parallel()
	d := &plansData{n: 10_000, pool: pgtest.New(t)}
	if os.Getenv("SIMPLEQUEUE_TEST_LONG") != "" {
		d.n = 1_000_000
	}
	d.prepare(t)
	d.fill(t)
	for _, statistics := range []string{"no statistics", "fresh statistics"} {
		for _, s := range d.operators() {
			began := time.Now()
			c, err := measure(t, d.pool, s, generic)
			if err != nil {
				t.Errorf("%s, %s: %v", s.name, statistics, err)
				continue
			}
			t.Logf("%s, %s: %d rows, %d buffers, %d sorted, %v", s.name, statistics, c.rows, c.buffers, c.sorted, time.Since(began).Round(time.Millisecond))
			for _, problem := range s.wrong(c, false) {
				t.Errorf("%s, %s: %s", s.name, statistics, problem)
			}
		}
		d.analyze(t)
	}
}
