package main

import (
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/uuid"
)

// t0 is when the histories of the tests begin.
var t0 = time.Date(2026, 1, 2, 3, 4, 5, 0, time.UTC)

func at(ms int) time.Time { return t0.Add(time.Duration(ms) * time.Millisecond) }

var one, two = uuid.MustParse("11111111-1111-1111-1111-111111111111"), uuid.MustParse("22222222-2222-2222-2222-222222222222")

// sound is a history without fault: job one is inserted, claimed by a worker
// that dies, taken back, claimed again, and completed.
func sound() *history {
	return &history{
		setup:   setup{Heartbeat: time.Second, GlobalPermits: 40},
		quiet:   at(60_000),
		inserts: []insertion{{tag: "a", workload: "plain", id: one, outcome: acked, asked: at(0), answered: at(2)}},
		moves: []move{
			{n: 1, at: at(1), place: "job_queue", entered: true, job: one},
			{n: 2, at: at(10), place: running, job: one, entered: true, claim: 7, nonce: 70, attempt: 1, process: "w1"},
			{n: 3, at: at(4000), place: running, job: one, claim: 7, nonce: 70, attempt: 1, process: "w2"},
			{n: 4, at: at(4000), place: "job_queue", entered: true, job: one, attempt: 1, crash: 1, process: "w2"},
			{n: 5, at: at(4010), place: running, job: one, entered: true, claim: 8, nonce: 80, attempt: 2, crash: 1, process: "w2"},
			{n: 6, at: at(4100), place: running, job: one, claim: 8, nonce: 80, attempt: 2, crash: 1, process: "w2"},
			{n: 7, at: at(4100), place: "job_queue_archive", entered: true, job: one, attempt: 2, crash: 1, state: "completed", process: "w2"},
		},
		runs: []handlerRun{
			{job: one, process: "w1", queue: "plain", attempt: 1, start: at(11)},
			{job: one, process: "w2", queue: "plain", attempt: 2, crash: 1, start: at(4011), end: at(4090), outcome: runOK},
		},
		finals:  []final{{id: one, tag: "a", workload: "plain", state: "completed", attempt: 2}},
		lives:   []life{{process: "w1", start: at(-100), end: at(500)}, {process: "w2", start: at(-100)}},
		reports: []report{{process: "w2", at: at(59_900), free: 40, healthy: true}},
	}
}

func TestASoundHistoryHasNoViolations(t *testing.T) {
	h := sound()
	if found := verify(h); len(found) > 0 {
		t.Errorf("violations: %v", found)
	}
	if n := len(h.forNothing()); n != 1 {
		t.Errorf("%d handlers ran for nothing, want 1", n)
	}
	if r := h.recoveries(); len(r) != 1 || r[0].took != 3500*time.Millisecond {
		t.Errorf("recoveries %v, want one of 3.5 s", r)
	}
}

// Each case breaks the sound history in one way.
func TestViolationsAreFound(t *testing.T) {
	for name, c := range map[string]struct {
		in    string // the check that must tell
		spoil func(h *history)
	}{
		"an acknowledged job is gone": {"I1", func(h *history) { h.finals = nil }},
		"a job is there twice":        {"I1", func(h *history) { h.finals = append(h.finals, h.finals[0]) }},
		"a job is left waiting":       {"I1", func(h *history) { h.finals[0].state = "waiting" }},
		"a job ends as it may not":    {"I1", func(h *history) { h.finals[0].state = "failed" }},
		"a job that nobody inserted": {"I1", func(h *history) {
			h.finals = append(h.finals, final{id: two, tag: "b", workload: "plain", state: "completed"})
		}},
		"a job that was rolled back":    {"I1", func(h *history) { h.inserts[0].outcome = rolledBack }},
		"a job whose insert had failed": {"I1", func(h *history) { h.inserts[0].outcome = refused }},
		"an insert that went in twice under two ids": {"I1", func(h *history) {
			h.finals = append(h.finals, final{id: two, tag: "a", workload: "plain", state: "completed"})
		}},
		"a lost insert outside the time that was rewound": {"I1", func(h *history) {
			h.finals, h.rewind = nil, &span{begin: at(3), end: at(100)}
		}},
		"a parent without its child": {"I1", func(h *history) { h.inserts[0].workload = "parent" }},
		"a fence used twice": {"I2 fencing", func(h *history) {
			h.moves[4].claim, h.moves[4].nonce, h.moves[5].claim, h.moves[5].nonce = 7, 70, 7, 70
		}},
		"two claims at once":                               {"I2 fencing", func(h *history) { h.moves = slices.Delete(h.moves, 2, 3) }},
		"a claim ended by another's fence":                 {"I2 fencing", func(h *history) { h.moves[5].nonce = 70 }},
		"a claim ended twice":                              {"I2 fencing", func(h *history) { h.moves = append(h.moves, h.moves[5]) }},
		"completed by a handler that failed":               {"I2 outcomes", func(h *history) { h.runs[1].outcome = runError }},
		"completed by an older attempt of another process": {"I2 outcomes", func(h *history) { h.runs[1].process, h.runs[1].attempt = "w1", 1 }},
		"completed by a run before the claim":              {"I2 outcomes", func(h *history) { h.runs[1].start = at(4009) }},
		"completed before the handler's end":               {"I2 outcomes", func(h *history) { h.runs[1].end = at(4101) }},
		"returned nil and retried": {"I2 outcomes", func(h *history) {
			h.moves[6].place, h.moves[6].reason, h.moves[6].state = "job_waiting", "retry", ""
		}},
		"returned nil and given back": {"I2 outcomes", func(h *history) {
			h.moves[6].place, h.moves[6].attempt, h.moves[6].state = "job_queue", 1, ""
		}},
		"a claim that is run twice": {"I2 outcomes", func(h *history) { h.runs = append(h.runs, h.runs[1]) }},
		"settled by a stranger":     {"I2 outcomes", func(h *history) { h.moves[5].process = "w3" }},
		"claimed after its end": {"I3", func(h *history) {
			h.moves = append(h.moves, move{n: 8, at: at(5000), place: running, entered: true, job: one, claim: 9, nonce: 90})
		}},
		"an attempt lost by a crash":     {"I2 attempts", func(h *history) { h.moves[3].attempt = 0 }},
		"an attempt used by a give back": {"I2 attempts", func(h *history) { h.moves[3].crash = 0 }},
		"interrupted by a stop and retried": {"I2 attempts", func(h *history) {
			h.runs[0].outcome, h.runs[0].end, h.moves[2].process = runShutdown, at(3000), "w1"
			h.moves[3].place, h.moves[3].reason, h.moves[3].crash = "job_waiting", "retry", 0
		}},
		"a retry without an attempt": {"I2 attempts", func(h *history) {
			h.runs[1].outcome, h.moves[6].place, h.moves[6].reason, h.moves[6].attempt = runError, "job_waiting", "retry", 1
		}},
		"a reschedule with an attempt": {"I2 attempts", func(h *history) {
			h.runs[1].outcome, h.moves[6].place, h.moves[6].reason = runError, "job_waiting", "rescheduled"
		}},
		"archived twice":                     {"I3", func(h *history) { h.moves = append(h.moves, h.moves[6]) }},
		"taken out of the archive":           {"I3", func(h *history) { m := h.moves[6]; m.entered = false; h.moves = append(h.moves, m) }},
		"a late recovery":                    {"I4", func(h *history) { h.moves[2].at = at(30_000) }},
		"recoveries that are late as a rule": {"I4 recovery", func(h *history) { h.moves[2].at = at(6500) }},
		"a lost lease that a handler is not told of": {"I4 lost leases", func(h *history) {
			h.lives[0].end, h.runs[0].end, h.runs[0].outcome = time.Time{}, at(12_000), runOK
		}},
		"a lost lease that a handler is told of late": {"I4 lost leases", func(h *history) {
			h.lives[0].end, h.runs[0].end, h.runs[0].outcome = time.Time{}, at(25_000), runLost
		}},
		"a handler that goes on for ever without its lease": {"I4 lost leases", func(h *history) { h.lives[0].end = time.Time{} }},
		"no lease is lost where some must be": {"I4 lost leases", func(h *history) {
			h.loses, h.faults = true, []span{{what: "blackhole", begin: at(0), end: at(9000)}}
		}},
		"a slot that is not freed":           {"I5", func(h *history) { h.reports[0].running, h.reports[0].free = 1, 39 }},
		"a queue's slot that is not freed":   {"I5", func(h *history) { h.reports[0].inFlight = 1 }},
		"payload memory that is not freed":   {"I5", func(h *history) { h.reports[0].payloadBytes = 1 }},
		"a queue's permit that is not freed": {"I5", func(h *history) { h.reports[0].permits = 1 }},
		"a stuck handler that nobody counts": {"I5", func(h *history) { h.reports[0].handlers = 1 }},
		"more jobs of a queue than permits":  {"I6", func(h *history) { h.runs = append(h.runs, overlapping("plain", 11)...) }},
		"more jobs in all than permits": {"I6", func(h *history) {
			for _, q := range []string{"a", "b", "c", "d", "e"} {
				h.runs = append(h.runs, overlapping(q, 9)...)
			}
		}},
		"a handler without a permit":                 {"I6", func(h *history) { h.runs[0].inside, h.runs[0].permits = 2, 1 }},
		"a handler beyond permits that were lowered": {"I6", func(h *history) { h.runs[0].inside, h.runs[0].permits, h.runs[0].limit = 2, 2, 1 }},
		"two jobs with one key": {"I7 uniqueness", func(h *history) {
			h.moves[0].key = "plain/k"
			h.moves = append(h.moves, move{n: 9, at: at(3000), place: "job_waiting", entered: true, job: two, key: "plain/k"},
				move{n: 10, at: at(3500), place: "job_finished", entered: true, job: two, key: "plain/k", state: "cancelled"})
		}},
		"skipped for a job that is not there": {"I7 duplicates", func(h *history) {
			h.inserts = append(h.inserts, insertion{tag: "b", key: "k", outcome: duplicate, holder: two})
		}},
		"skipped for a job with another key": {"I7 duplicates", func(h *history) {
			h.inserts = append(h.inserts, insertion{tag: "b", key: "k", outcome: duplicate, holder: one})
		}},
		"skipped for a job that had ended": {"I7 duplicates", func(h *history) {
			h.finals[0].key = "k"
			h.inserts = append(h.inserts, insertion{tag: "b", key: "k", outcome: duplicate, holder: one, asked: at(10_000)})
		}},
		"a worker that is not well":    {"I8", func(h *history) { h.reports[0].healthy = false }},
		"a worker that says no more":   {"I8", func(h *history) { h.reports[0].at = at(1000) }},
		"a worker that never reported": {"I8 loops", func(h *history) { h.reports = nil }},
		"an outage after which nothing is done": {"I8 service", func(h *history) {
			h.faults = []span{{what: "restart", begin: at(4200), end: at(6000), outage: true}}
		}},
		"a worker that ended by itself": {"I8", func(h *history) { h.lives[0].unexpected = true }},
		"a worker that waits for locked rows": {"I8 progress", func(h *history) {
			h.lives = append(h.lives, life{process: "worker3", start: at(-100)})
			h.faults = []span{{what: rowsLocked, begin: at(2000), end: at(6000)}}
		}},
		"a key that is not freed":  {"I9", func(h *history) { h.leftovers = map[string]int{"job_unique": 1} }},
		"a table that has grown":   {"I9", func(h *history) { h.bytes = map[string]int64{"job_lease": 1 << 30} }},
		"a job that ran too early": {"I10", func(h *history) { h.inserts[0].delay = time.Second }},
		"a retry that runs too early": {"I10", func(h *history) {
			h.moves = append([]move{
				{at: at(0), place: "job_waiting", entered: true, job: one, due: at(500)},
				{at: at(1), place: "job_waiting", job: one, due: at(500)},
			}, h.moves...)
		}},
		"two jobs of an order key at once": {"order", func(h *history) { withSuccessor(h, 4050) }},
		"two handlers of an order key at once": {"order", func(h *history) {
			withSuccessor(h, 4150)
			h.runs[1].end = at(4160)
		}},
		"jobs of an order key the wrong way round": {"order", func(h *history) {
			withSuccessor(h, 4150)
			h.inserts[0].asked, h.inserts[1].answered = at(9), at(8)
		}},
		"jobs of a call the wrong way round": {"order", func(h *history) {
			withSuccessor(h, 4150)
			h.inserts[0].call, h.inserts[1].call, h.inserts[0].nth = two, two, 1
		}},
		"more jobs in a queue than its limit": {"I6", func(h *history) {
			for range boundedLimit + 1 {
				in := insertion{tag: uuid.NewString(), workload: "bounded", outcome: acked, answered: at(5)}
				h.inserts, h.finals = append(h.inserts, in), append(h.finals, final{id: uuid.New(), tag: in.tag, workload: "bounded", state: "completed"})
			}
		}},
		"a held job that runs before its commit": {"I1 loss: held", func(h *history) {
			h.inserts[0].released, h.inserts[0].workload, h.runs[1].queue = at(4012), "held", "held"
		}},
		"a held job that nobody committed":           {"I1 loss: held", func(h *history) { h.inserts[0].workload = "held" }},
		"a job that completed without what it wrote": {"I2 outcomes", func(h *history) { h.finals[0].workload = "completing" }},
		"a job that wrote twice": {"I2 outcomes", func(h *history) {
			h.finals[0].workload, h.effects = "completing", map[uuid.UUID]int{one: 2}
		}},
		"a job that wrote and is gone": {"I2 outcomes", func(h *history) { h.effects = map[uuid.UUID]int{two: 1} }},
		"a job completed outside its handler": {"I2 outcomes", func(h *history) {
			h.runs[1].queue, h.moves[5].at = "completing", at(4095)
		}},
		"a step that runs again": {"I2 outcomes", func(h *history) {
			h.parts = []part{
				{job: one, name: "step", process: "w1", attempt: 1, ran: at(20), saved: at(21)},
				{job: one, name: "step", process: "w2", attempt: 2, ran: at(4020), saved: at(4021)},
			}
		}},
		"a worker that has ever more goroutines": {"growth", func(h *history) {
			h.reports = append([]report{{process: "w2", at: at(-300_000), goroutines: 50}}, h.reports...)
			h.reports[1].goroutines = 151
		}},
		"a worker that has ever more memory": {"growth", func(h *history) {
			h.reports = append([]report{{process: "w2", at: at(-300_000), memory: 1 << 20}}, h.reports...)
			h.reports[1].memory = 1<<20 + moreMemory + 1
		}},
		"connections that are kept":   {"growth", func(h *history) { h.connections = map[string]int{"w2": 7} }},
		"a cancel that was forgotten": {"cancel", func(h *history) { h.cancels = []cancelling{{job: one, state: "cancelled", answered: at(10_000)}} }},
		"claimed after its cancel":    {"cancel", func(h *history) { h.cancels = []cancelling{{job: one, state: "cancelling", answered: at(3000)}} }},
		"reaped from a living worker": {"strict", func(h *history) { h.strict = true }},
		"run for nothing": {"strict", func(h *history) {
			h.strict, h.moves, h.runs = true, append(h.moves[:1:1], h.moves[4:]...), append(h.runs, handlerRun{job: one, process: "w3", attempt: 1, start: at(11)})
		}},
	} {
		t.Run(name, func(t *testing.T) {
			h := sound()
			c.spoil(h)
			found := verify(h)
			if !slices.ContainsFunc(found, func(v violation) bool { return strings.HasPrefix(v.String(), c.in) }) {
				t.Errorf("no violation of %s among %v", c.in, found)
			}
		})
	}
}

// overlapping are runs of n jobs of a queue at one time.
func overlapping(queue string, n int) (runs []handlerRun) {
	for i := range n {
		runs = append(runs, handlerRun{job: uuid.New(), process: "w2", queue: queue, attempt: 1, start: at(5000 + i), end: at(5100 + i), outcome: runOK})
	}
	return runs
}

// What looks like a violation and is none.
func TestWhatIsAllowed(t *testing.T) {
	for name, change := range map[string]func(h *history){
		"an insert in doubt that is not there": func(h *history) {
			h.inserts = append(h.inserts, insertion{tag: "b", workload: "plain", id: two, outcome: inDoubt})
		},
		"an insert in doubt that is there": func(h *history) { h.inserts[0].outcome = inDoubt },
		"a lost insert within the time that was rewound": func(h *history) {
			h.inserts = append(h.inserts, insertion{tag: "b", workload: "plain", id: two, outcome: acked, answered: at(50)})
			h.rewind = &span{begin: at(40), end: at(60)}
		},
		"a lost insert that was answered after the loss": func(h *history) {
			h.inserts = append(h.inserts, insertion{tag: "b", workload: "plain", id: two, outcome: acked, asked: at(50), answered: at(70)})
			h.rewind = &span{begin: at(40), end: at(60)}
		},
		"a row that is put back where it was":        func(h *history) { h.moves = slices.Insert(h.moves, 2, h.moves[1]) },
		"a job of an order key that follows another": func(h *history) { withSuccessor(h, 4150) },
		"a job completed in its handler": func(h *history) {
			h.runs[1].queue, h.moves[5].at = "completing", at(4050)
		},
		"a step of a claim that has been lost, after it was saved": func(h *history) {
			h.parts = []part{
				{job: one, name: "step", process: "w2", attempt: 2, ran: at(4020), saved: at(4021)},
				{job: one, name: "step", process: "w1", attempt: 1, ran: at(4030)},
			}
		},
		"a handler that was told of its lost lease": func(h *history) {
			h.lives[0].end, h.reports = time.Time{}, append(h.reports, report{process: "w1", at: at(59_900), free: 40, healthy: true})
			h.runs[0].end, h.runs[0].outcome = at(7000), runLost
		},
		"the way of a cancelled job through job_finished": func(h *history) {
			h.moves[6].place = finished
			out, in := h.moves[6], h.moves[6]
			out.entered, in.place = false, "job_queue_archive"
			h.moves = append(h.moves, out, in)
		},
		"a key that is taken when it is free": func(h *history) {
			h.moves[0].key, h.moves[6].key = "k", "k"
			h.moves = append(h.moves, move{n: 8, at: at(4100), place: "job_queue", entered: true, job: two, key: "k"})
		},
		"as many jobs as permits": func(h *history) { h.runs = append(h.runs, overlapping("plain", 10)...) },
		"a recovery that an outage has delayed": func(h *history) {
			for i := range h.moves[2:] {
				h.moves[2+i].at = h.moves[2+i].at.Add(30 * time.Second)
			}
			h.runs[1].start, h.runs[1].end = at(34_011), at(34_090)
			h.faults = []span{{what: "outage", begin: at(100), end: at(31_000), outage: true}}
		},
		"a stuck handler that is counted": func(h *history) {
			h.reports[0].handlers, h.reports[0].running, h.reports[0].stuck, h.reports[0].inFlight, h.reports[0].permits, h.reports[0].free = 1, 1, 1, 1, 1, 39
		},
		"a cancelled job that has completed first": func(h *history) {
			h.cancels = []cancelling{{job: one, state: "cancelling", answered: at(4095)}}
		},
		"a handler that has not begun, given back": func(h *history) {
			h.strict = true
			h.runs = h.runs[1:]
			h.moves[2].process, h.moves[3].crash, h.moves[4].crash, h.moves[5].crash = "w1", 0, 0, 0
			h.moves[6].crash, h.moves[3].attempt = 0, 0
		},
	} {
		t.Run(name, func(t *testing.T) {
			h := sound()
			change(h)
			if found := verify(h); len(found) > 0 {
				t.Errorf("violations: %v", found)
			}
		})
	}
}

// withSuccessor gives job one an order key and adds another job of the key, which
// is let in at a time.
func withSuccessor(h *history, began int) {
	h.inserts[0].order = "key"
	h.inserts = append(h.inserts, insertion{tag: "b", workload: "plain", order: "key", call: two, id: two, outcome: acked, asked: at(3), answered: at(4)})
	h.finals = append(h.finals, final{id: two, tag: "b", workload: "plain", state: "completed", attempt: 1})
	h.moves = append(h.moves,
		move{at: at(began), place: running, entered: true, job: two, claim: 9, nonce: 90, attempt: 1, process: "w2"},
		move{at: at(began + 100), place: running, job: two, claim: 9, nonce: 90, attempt: 1, process: "w2"},
		move{at: at(began + 100), place: "job_queue_archive", entered: true, job: two, attempt: 1, state: "completed", process: "w2"})
	h.runs = append(h.runs, handlerRun{job: two, process: "w2", queue: "plain", attempt: 1, start: at(began + 1), end: at(began + 90), outcome: runOK})
}
