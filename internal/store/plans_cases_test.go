package store_test

import (
	"strings"
	"testing"
	"time"

	"github.com/simplequeue/simplequeue/internal/pgtest"
	"github.com/simplequeue/simplequeue/internal/store"
	"github.com/simplequeue/simplequeue/janitor"
)

// hotStatement is a statement, arguments for it, and what it may cost.
type hotStatement struct {
	name    string
	find    string                         // in the text of no other statement
	text    string                         // of one that is built for each call, instead
	settles func(*store.Settle) store.Step // instead of find
	slot    int
	caller  bool // it runs in the caller's session, without the engine's settings
	args    []any

	// Bounds, of a batch. They were found at a million rows, and are a third above
	// what was measured.
	rows, buffers int
	sorts         int      // rows of the largest sort
	whole         []string // small tables that it may read as a whole
	walksDead     bool     // over dead rows that vacuum may not remove: the touched pages have no bound then

	why string // for docs/plans.md
}

// plainStatements touch one row by its key, or none.
var plainStatements = []string{
	"set_config('synchronous_commit'",
	"set_config('lock_timeout'",
	"INSERT INTO simplequeue.job_log",                          // writes only
	"FROM simplequeue.job_log AS l\nWHERE l.job_id",            // by its primary key, as much as there is
	"UPDATE simplequeue.job_running_0 AS r\n    SET payload =", // checkpoint and saveStep
	"SELECT p.steps\nFROM simplequeue.job_payload",
	"AND r.claim_nonce = $2::bigint\nFOR UPDATE SKIP LOCKED",
	"SELECT simplequeue.snapshot_too_old()",
	"SELECT pg_notify($1::text, $2::text)",
	"FROM simplequeue.schema_migration",
	"INSERT INTO simplequeue.job_sweep AS s (name, swept_at, continuous_since)\nVALUES ('janitor'",
	"UPDATE simplequeue.job_sweep AS s SET",
	"SELECT true FROM simplequeue.job_sweep",
	"SELECT clock_timestamp()",
	"UPDATE simplequeue.job_waiting\nSET run_at", // all there is; for tests of programs alone
	"SET CONSTRAINTS simplequeue.",               // for tests of programs alone
	"FROM simplequeue.job_queue_seq_seq AS s",
	"SELECT l.place, head.seq, head.created_at", // one probe for each lane
	"simplequeue.job_pause AS p (queue, reason)",
	"DELETE FROM simplequeue.job_pause",
	"SELECT true FROM simplequeue.job_pause",
	"SET paused =",
	"SELECT b.queue FROM simplequeue.job_bound AS b",
	"FROM simplequeue.take_slots(",
	"SELECT simplequeue.set_queue_limit(",
	"SELECT simplequeue.lower_limits()", // a look at each queue with a limit
	"SELECT pg_advisory_xact_lock(hashtextextended($1::text, 0))",
	"WHERE gate = $1::text AND blocked_at IS NOT NULL",
	"INSERT INTO simplequeue.job_gate_weight",
}

// statement is the one with the text.
func (s *hotStatement) statement(t *testing.T) store.Statement {
	t.Helper()
	if s.settles != nil {
		return s.settles(&store.Settle{}).Statement
	}
	schema := store.NewSchema(pgtest.Schema)
	var found []store.Statement
	for _, st := range store.All() {
		if strings.Contains(strings.ReplaceAll(schema.SQL(st), `"`, ""), s.find) {
			found = append(found, st)
		}
	}
	if len(found) != 1 {
		t.Errorf("%s: %d statements contain %q", s.name, len(found), s.find)
		return 0
	}
	return found[0]
}

const plansBatch = 100

func ids(table, from, n int) []string {
	list := make([]string, n)
	for i := range list {
		list[i] = plansID(table, from+i)
	}
	return list
}

func repeat[T any](n int, v T) []T {
	list := make([]T, n)
	for i := range list {
		list[i] = v
	}
	return list
}

// hot are the statements of the engine.
func (d *plansData) hot() []*hotStatement {
	const worker = "00000000-0000-0000-0000-000000000001"
	const nilID = "00000000-0000-0000-0000-000000000000"
	half := d.seq(d.n / 2)
	chunk := store.Chunk(half)
	now := time.Now().UnixMicro()

	// Claims of one table of the ring.
	var claims, nonces []int64
	for i := 1; i <= plansBatch; i++ {
		claims, nonces = append(claims, int64(i*claimStep)), append(nonces, int64(i))
	}
	texts := func(s string) []*string { return repeat(plansBatch, &s) }
	none := repeat[*string](plansBatch, nil)
	hour := time.Hour.Microseconds()

	// All lanes of three queues.
	claim := func(after int64) []any {
		var queues []string
		var lanes []int16
		for _, q := range []string{"q0", "q1", "q2"} {
			for _, lane := range []int16{-1, 8, 4, 0} {
				queues, lanes = append(queues, q), append(lanes, lane)
			}
		}
		return []any{
			int64(1), worker, int32(60000), int32(plansBatch),
			[]int32{1, 5, 9},
			[]int32{4, 8, 12},
			[]int32{40, 40, 40},
			queues, lanes, repeat(len(queues), after),
		}
	}
	insert := []any{
		ids(newIDs, 1, plansBatch), repeat(plansBatch, "q0"), repeat(plansBatch, "k0"), repeat(plansBatch, int16(0)), repeat(plansBatch, int32(3)),
		repeat(plansBatch, int32(0)), texts("{}"), repeat[[]byte](plansBatch, nil), none,
		[]string{"q0", "q1"},
		[]int16{0, 4},
		texts("f1"),
		ids(newIDs, 1, 2), texts("{}")[:2], repeat[[]byte](2, nil),
	}
	keys := make([]*string, plansBatch)
	for i := range keys {
		key := "new" + plansID(0, i)
		keys[i] = &key
	}
	return []*hotStatement{
		{
			name: "claimAll", find: "FROM simplequeue.job_queue AS j\n            WHERE j.queue = l.queue", args: claim(-1),
			rows: 2800, buffers: 2500, walksDead: true,
			why: "Reads each lane in the order of `seq` by `job_queue_lane`, merged over the five tables without a sort, and stops as soon as the batch is full: the LIMITs are inside the walk over the lanes. It has no watermark, so it walks over dead rows, and is made rarely.",
		},
		{
			name: "claimChunk", find: "UNION ALL\n            SELECT tail.tableoid", slot: store.Slot(chunk),
			rows: 2400, buffers: 2100,
			why:  "The same within two tables and above a watermark, so that the index scan begins behind the dead entries of jobs claimed before.",
			args: append(claim(half), store.ChunkStart(chunk+1), store.ChunkStart(chunk+2)),
		},
		{
			name: "claimParked", find: "AS k(queue, kind, budget, any_kind, suspect)",
			rows: 1800, buffers: 1800,
			why: "Three partial index scans for each queue, each stopped by its LIMIT. Only parked jobs are in these indexes, so the backlog of `job_waiting` is not met.",
			args: []any{
				int64(1), worker, int32(60000),
				[]string{"q0", "q1", "q2", "q3"},
				[]string{"k0", "k1", "", ""},
				repeat(4, int32(25)), int32(plansBatch),
				[]bool{false, false, true, true},
				repeat(4, true),
			},
		},
		{
			name: "payloads",
			find: "SELECT p.id, p.payload, p.raw\nFROM",
			args: []any{ids(runningIDs, 1, plansBatch)},
			rows: 150, buffers: 410,
		},
		{
			name:  "lanes",
			find:  "SELECT l.id, ltrim(l.queue, '*'), l.priority",
			args:  []any{int64(0)},
			whole: []string{"job_lane", "job_pause"},
			rows:  200, buffers: 10,
		},
		{
			name:  "adopt",
			find:  "WHERE r.worker_id = $1::uuid",
			args:  []any{worker, []int64{1, 51, 101}},
			whole: []string{"job_running"},
			rows:  5100, buffers: 350,
		},

		{
			name: "LockClaims",
			find: "ORDER BY r.claim_id\nFOR UPDATE",
			args: []any{claims, nonces},
			rows: 270, buffers: 410,
			why: "One probe of the primary key for each claim, in one table of the ring.",
		},
		{
			name:    "settleArchive",
			settles: janitor.Archive,
			args:    []any{claims, nonces, repeat(plansBatch, int64(604800))},
			rows:    1700, buffers: 2900,
			why: "One probe of `job_running` for each claim. What a job holds beside its row is found by keys: a probe of `job_unique`, `job_fingerprint` and `job_payload` for those that have it.",
		},
		{
			name:    "settleResults",
			settles: janitor.ArchiveResults,
			args:    []any{claims, nonces, repeat(plansBatch, int64(604800)), repeat(plansBatch, "{}")},
			rows:    1700, buffers: 2900,
		},
		{
			name:    "settleResultsAside",
			settles: store.SettleResultsAside,
			args:    []any{claims, nonces, repeat(plansBatch, "{}")},
			rows:    1400, buffers: 2600,
		},
		{
			name:    "settleDLQ",
			settles: janitor.DeadLetter,
			args:    []any{claims, nonces, repeat(plansBatch, int64(604800)), repeat(plansBatch, "failed"), repeat(plansBatch, ""), texts("error"), none},
			rows:    1800, buffers: 3500,
			why: "As `settleArchive`, with a probe of `job_cancel`.",
		},
		{
			name:    "settleWaiting",
			settles: store.SettleWaiting,
			args:    []any{claims, nonces, repeat(plansBatch, "retry"), texts("error"), none, repeat[*int64](plansBatch, nil), repeat(plansBatch, &hour)},
			rows:    1400, buffers: 3000,
			why: "As `settleArchive`; the row goes to `job_waiting`, and keeps its key, fingerprint and payload.",
		},
		{
			name:    "settleGiveBack",
			settles: store.SettleGiveBack,
			args:    []any{claims, nonces, repeat(plansBatch, int16(-1))},
			rows:    1250, buffers: 2700,
			why: "As `settleWaiting`, into the front table of the queue.",
		},
		{
			name:    "settleAside",
			settles: store.SettleAside,
			args:    []any{claims, nonces, repeat(plansBatch, "failed"), repeat(plansBatch, ""), texts("error"), none},
			rows:    1400, buffers: 2600,
			why: "As `settleDLQ`, into `job_finished`.",
		},
		{
			name:    "forgetLeases of a settle",
			settles: store.ForgetLeases,
			args:    []any{claims, nonces},
			rows:    140, buffers: 410,
		},

		{
			name: "promote",
			find: "WITH due AS",
			args: []any{int32(plansBatch), nil},
			rows: 1400, buffers: 2200, sorts: 100, walksDead: true,
		},
		{
			name: "promote from a mark",
			find: "WITH due AS",
			args: []any{int32(plansBatch), now - plansMark},
			rows: 1400, buffers: 2200, sorts: 100,
			why: "`job_waiting_due` is read from the mark to now and stopped by the LIMIT. The sort is of the batch, for the order of its insert.",
		},
		{
			name: "nextDue",
			find: "interval '1 day'",
			rows: 10, buffers: 40,
			why: "The first entry of `job_waiting_due` from the beginning of the transaction on.",
		},
		{
			name: "beat",
			find: "beaten AS",
			args: []any{claims, nonces},
			rows: 800, buffers: 3300, sorts: 100,
			why: "One probe of `job_running` in each of its four tables for each claim, one of `job_lease`.",
		},
		{
			name:  "cancelRequests",
			find:  "SELECT c.claim_id, c.claim_nonce, c.reason",
			whole: []string{"job_cancel"},
			rows:  100, buffers: 20,
		},
		{
			name: "registerWorker",
			find: "INSERT INTO simplequeue.job_worker",
			args: []any{worker, "w", []string{"q0"}, nil},
			rows: 10, buffers: 20,
		},
		{
			name: "removeWorker",
			find: "DELETE FROM simplequeue.job_worker WHERE",
			args: []any{worker},
			rows: 10, buffers: 20,
		},

		{
			name: "cancelWaiting",
			find: "), gone AS (\n    DELETE FROM simplequeue.job_waiting AS t",
			args: []any{ids(waitingIDs, d.n/2, plansBatch), "why"},
			rows: 1650, buffers: 2900,
		},
		{
			name: "cancelQueued",
			find: "), gone AS (\n    DELETE FROM simplequeue.job_queue AS t",
			args: []any{ids(queueIDs, d.n*3/4, plansBatch), "why"},
			rows: 1900, buffers: 11000,
		},
		{
			name:  "cancelRunning",
			find:  "FOR UPDATE SKIP LOCKED\n), asked AS",
			args:  []any{ids(runningIDs, 1, plansBatch), "why"},
			whole: []string{"job_running"},
			rows:  5600, buffers: 1300, sorts: 100,
		},

		{
			name:  "cancelLocked",
			find:  "WHERE r.id = ANY ($1::text[]::uuid[])\n), asked AS",
			args:  []any{ids(runningIDs, 1, plansBatch), "why"},
			whole: []string{"job_running"},
			rows:  5600, buffers: 1300, sorts: 100,
		},
		{
			name: "claimsFree",
			find: "(r.claim_id, $1::bigint[])]\nFOR UPDATE SKIP LOCKED",
			args: []any{claims, nonces},
			rows: 270, buffers: 410,
		},
		{
			name: "claimsThere",
			find: "SELECT r.claim_id AS there",
			args: []any{claims, nonces},
			rows: 270, buffers: 410,
		},

		{
			name: "insertPlain",
			find: "SELECT pg_notify($16::text", caller: true,
			args:  append(insert, "", ""),
			whole: []string{"job_lane"},
			rows:  450, buffers: 2200,
			why: "Writes only. `job_lane` has a row for each lane that was ever used.",
		},
		{
			name: "insertBeside",
			find: "FROM unnest($3::text[], $4::text[]) AS f", caller: true,
			args: []any{
				[]string{"q0"}, []int16{0}, ids(newIDs, 1, plansBatch), texts("f1"), ids(newIDs, 1, 2), texts("{}")[:2], repeat[[]byte](2, nil),
			},
			whole: []string{"job_lane"},
			rows:  320, buffers: 1300,
		},
		{
			name: "insertKeyed",
			find: "accepted AS MATERIALIZED", caller: true,
			args: append(insert[:15:15], repeat(plansBatch, true), texts("q0"), keys,
				repeat[*time.Time](plansBatch, nil), repeat[*int64](plansBatch, nil), none, none),
			whole: []string{"job_lane", "job_running"},
			rows:  3600, buffers: 70000, sorts: 100,
			why: "`ON CONFLICT` is one probe of `job_unique` and of `job_client_id` for each job. Ids that the caller chose are looked for in every table (`jobs_known`), of which `job_running`, without an index by id, is read as a whole, once.",
		},
		{
			name: "holders",
			find: "unique_holder(k.scope", caller: true,
			args: []any{repeat(plansBatch, "q0"), repeat(plansBatch, "queue190")},
			rows: 400, buffers: 550,
		},
		{
			name: "takeOver",
			find: "take_over(", caller: true,
			args: []any{
				repeat(plansBatch, "replace"), repeat(plansBatch, "q0"), repeat(plansBatch, "queue190"), repeat(plansBatch, "q0"),
				repeat(plansBatch, ""), repeat(plansBatch, int16(0)), repeat(plansBatch, int32(3)), none,
				repeat(plansBatch, int32(0)), texts("{}"), repeat[[]byte](plansBatch, nil), none,
				repeat[*time.Time](plansBatch, nil), repeat[*int64](plansBatch, nil), repeat[*int64](plansBatch, nil),
			},
			rows: 600, buffers: 14000, sorts: 100,
		},
		{
			name: "forgetChosen",
			find: "DELETE FROM simplequeue.job_client_id WHERE id = ANY ($1::text[]::uuid[])", caller: true,
			args: []any{ids(waitingIDs, 1, plansBatch)},
			rows: d.n*6/5 + 600, buffers: d.n/50 + 1400, whole: []string{"job_client_id"},
		},

		{
			name: "lineUp",
			find: "WITH line AS", caller: true,
			args: []any{
				ids(newIDs, 1, plansBatch), repeat(plansBatch, "o\tq0\tnew"), none,
				repeat[*time.Time](plansBatch, nil), repeat[*int64](plansBatch, nil), repeat(plansBatch, false),
			},
			rows: 800, buffers: 2000, sorts: 100,
		},
		{
			name: "hold",
			find: "hold_jobs(", caller: true,
			args: []any{
				ids(newIDs, 1, plansBatch), repeat(plansBatch, &hour), repeat[*time.Time](plansBatch, nil),
				repeat[*int64](plansBatch, nil), repeat(plansBatch, false),
			},
			rows: 300, buffers: 1600,
		},
		{
			name: "commitHeld",
			find: "commit_held(", caller: true,
			args: []any{ids(heldIDs, d.n/2, plansBatch)},
			rows: 150, buffers: 6000,
		},
		{
			name: "expireHeld",
			find: "WITH late AS MATERIALIZED",
			args: []any{int32(1000)},
			rows: 33000, buffers: 50000, sorts: 10, walksDead: true,
		},
		{
			name: "admit",
			find: "WITH looks AS",
			args: []any{int32(500), int64(0), int64(200)},
			rows: 20000, buffers: 60000, sorts: 500,
		},
		{
			name: "admit to a fair gate",
			find: "WITH looks AS",
			args: []any{int32(500), int64(1 << 30), int64(200)},
			rows: 6000, buffers: 30000, sorts: 10,
		},
		{
			name:    "FreeGates",
			settles: store.FreeGates,
			args:    []any{claims, nonces, texts("end"), repeat[*int64](plansBatch, nil), repeat[*int64](plansBatch, nil)},
			rows:    1500, buffers: 5000, sorts: 100,
		},
		{
			name: "blockedGates",
			find: "starts_with(o.gate",
			args: []any{"o\tq0\t"},
			rows: 60, buffers: 60,
		},

		{
			name:  "lockStale",
			find:  "FOR UPDATE OF r SKIP LOCKED",
			args:  []any{int32(500), int64(5000)},
			whole: []string{"job_running", "job_sweep"},
			rows:  32000, buffers: 21000, sorts: 20,
			why: "Reads `job_running` as a whole, once a sweep in one process, with a probe of `job_lease` for each running job. Only stale ones are sorted.",
		},
		{
			name: "moveStale",
			find: "'worker_lost'",
			args: []any{claims, nonces, int32(3), int64(5000)},
			rows: 300, buffers: 4500,
			why: "One probe for each claim; `job_lease` is asked again.",
		},
		{
			name:  "forgetLeases",
			find:  "DELETE FROM simplequeue.job_lease AS l\nWHERE l.beat_at",
			whole: []string{"job_lease"},
			rows:  25000, buffers: 40000,
			why: "Reads `job_lease` as a whole, which has at most a row for each running job, with a probe of `job_running` in each of its four tables.",
		},
		{
			name:  "endedRequests",
			find:  "FROM simplequeue.job_cancel AS c\nWHERE (SELECT true",
			args:  []any{int32(500)},
			whole: []string{"job_cancel", "job_running"},
			rows:  20000, buffers: 3000, sorts: 100,
			why: "Where a claim has ended its job is looked for among the live ones, once for all in `job_running`, which has no index by id.",
		},
		{
			name: "forgetRequests",
			find: "DELETE FROM simplequeue.job_cancel AS c\nUSING",
			args: []any{[]int64{10 * claimStep, 20 * claimStep}, []int64{10, 20}}, whole: []string{"job_cancel"},
			rows: 700, buffers: 50, sorts: 100,
		},
		{
			name: "forgetCancels",
			find: "DELETE FROM simplequeue.job_cancel WHERE job_id",
			args: []any{ids(newIDs, 1, 2)}, whole: []string{"job_cancel"},
			rows: 200, buffers: 20,
		},
		{
			name: "markDuplicates",
			find: "SET checked = true",
			args: []any{int32(500), nilID},
			rows: 6000, buffers: 26000, sorts: 500, walksDead: true,
		},
		{
			name: "markDuplicates after a place",
			find: "SET checked = true",
			args: []any{int32(500), plansID(uncheckedIDs, 1)},
			rows: 6000, buffers: 26000, sorts: 500,
			why: "A batch of 500. The partial index holds only what has not been looked at; each row has one probe for the oldest job of its fingerprint. The first batch of a sweep begins at the start and may walk over dead entries, those after it begin where the one before ended.",
		},
		{
			name: "markSweep",
			find: "VALUES ('reaper', clock_timestamp(), clock_timestamp())",
			args: []any{int64(5000), false, int64(7500)},
			rows: 10, buffers: 20,
		},

		{
			name: "sweep",
			find: "DELETE FROM simplequeue.job_finished\n    WHERE ctid",
			args: []any{int32(1000), nilID, int64(604800), int64(604800), []string{"q0"}, []int64{604800}, []int64{604800}},
			rows: 22000, buffers: 25000, sorts: 1000, walksDead: true,
		},
		{
			name: "sweep after a place",
			find: "DELETE FROM simplequeue.job_finished\n    WHERE ctid",
			args: []any{int32(1000), plansID(finishedIDs, d.n/10), int64(604800), int64(604800), []string{"q0"}, []int64{604800}, []int64{604800}},
			rows: 22000, buffers: 25000, sorts: 1000,
			why: "A batch of 1,000 by the primary key. Whatever ended comes next, of any state, so nothing is filtered; the first batch of a sweep begins at the start.",
		},
		{
			name:  "finishedKeeps",
			find:  "SELECT DISTINCT coalesce((f.props",
			whole: []string{"job_finished"},
			rows:  d.n/5*2 + 10, buffers: d.n/200 + 500, sorts: d.n / 5,
		},
		{
			name: "rotate",
			find: "simplequeue.rotate",
			args: []any{int32(5000), int64(32 << 20)},
			rows: 1, buffers: 500,
		},
		{
			name: "makePartitions",
			find: "simplequeue.make_partitions",
			args: []any{"job_queue_archive", []int64{604800}, int32(1)},
			rows: 1, buffers: 400,
		},
		{
			name: "dropExpired",
			find: "simplequeue.drop_expired",
			args: []any{"job_queue_archive"},
			rows: 1, buffers: 500,
		},
		{
			name:  "forgetChosenIDs",
			find:  "WITH old AS",
			whole: []string{"job_running"},
			args:  []any{int32(10000)},
			rows:  130000, buffers: 560000, sorts: 10000,
			why: "Batches of 10,000, the oldest first, once a minute in one process, for ten seconds at most. An id whose job lives is dated anew, so it is not met again for seven days; `job_running` is the side that is read, once.",
		},
		{
			name:  "forgetRepeatedLanes",
			find:  "first.id < l.id",
			whole: []string{"job_lane"},
			rows:  8000, buffers: 250,
		},
		{
			name:  "forgetSilentWorkers",
			find:  "w.seen_at <",
			whole: []string{"job_worker", "job_running"},
			rows:  20000, buffers: 500, sorts: plansRunning,
			why: "`job_running` is read once for the workers that hold jobs.",
		},
	}
}
