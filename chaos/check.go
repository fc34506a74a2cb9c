package main

import (
	"cmp"
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/google/uuid"
)

// check verifies one invariant of a history. Each returns all violations that it
// finds.
type check struct {
	name string
	of   func(*history) []violation
}

// checks are those that every run must pass; workloads add their own.
var checks = []check{
	{"I1 loss", checkLoss},
	{"I2 fencing", checkFencing},
	{"I2 outcomes", checkOutcomes},
	{"I2 attempts", checkAttempts},
	{"I3 terminal is final", checkTerminal},
	{"I4 recovery", checkRecovery},
	{"I5 slots", checkSlots},
	{"I6 limits", checkLimits},
	{"I7 uniqueness", checkUnique},
	{"I7 duplicates", checkDuplicates},
	{"I8 loops", checkLoops},
	{"I8 progress", checkProgress},
	{"I9 leftovers", checkLeftovers},
	{"I10 clock", checkClock},
	{"cancel", checkCancels},
	{"strict", checkStrict},
}

// verify makes all checks.
func verify(h *history) []violation {
	var all []violation
	for _, c := range checks {
		all = append(all, c.of(h)...)
	}
	for _, l := range workloads {
		if l.check != nil {
			all = append(all, l.check(h)...)
		}
	}
	return all
}

// breach is a violation that has to do with a job, with the job's events.
func (h *history) breach(invariant string, job uuid.UUID, format string, args ...any) violation {
	v := violation{Invariant: invariant, Text: fmt.Sprintf(format, args...)}
	type event struct {
		at   time.Time
		text string
	}
	var events []event
	for i := range h.moves {
		if m := &h.moves[i]; m.job == job {
			events = append(events, event{m.at, m.String()})
		}
	}
	for i := range h.runs {
		if r := &h.runs[i]; r.job == job {
			events = append(events, event{r.start, r.String()})
		}
	}
	slices.SortStableFunc(events, func(a, b event) int { return a.at.Compare(b.at) })
	for _, e := range events[:min(len(events), 40)] {
		v.Events = append(v.Events, e.text)
	}
	return v
}

// checkLoss: an acknowledged job is there once and has ended as its workload
// allows; one that was refused or rolled back is not there; one in doubt is
// there at most once; and no job is there that nobody inserted.
func checkLoss(h *history) (found []violation) {
	const name = "I1 loss"
	byID, byTag := map[uuid.UUID][]final{}, map[string]int{}
	for _, f := range h.finals {
		byID[f.id] = append(byID[f.id], f)
		byTag[f.tag]++
	}
	known := map[string]bool{}
	for _, in := range h.inserts {
		known[in.tag] = true
		n := byTag[in.tag]
		switch {
		case in.outcome == acked && n == 0 && h.rewind.holds(in.answered): // committed on a timeline that is gone
		case in.outcome == acked && len(byID[in.id]) == 0:
			found = append(found, h.breach(name, in.id, "job %v of %s, acknowledged at %s, is gone", in.id, in.workload, in.answered.Format(time.RFC3339Nano)))
		case n > 1:
			found = append(found, h.breach(name, in.id, "job %v of %s is there %d times", in.id, in.workload, n))
		case n > 0 && (in.outcome == refused || in.outcome == rolledBack || in.outcome == duplicate):
			found = append(found, h.breach(name, in.id, "job %s of %s is there although its insert was %s", in.tag, in.workload, in.outcome))
		}
	}
	for id, rows := range byID {
		f := rows[0]
		l := findWorkload(f.workload)
		switch {
		case len(rows) > 1:
			found = append(found, h.breach(name, id, "job %v of %s has %d rows", id, f.workload, len(rows)))
		case !known[strings.TrimPrefix(f.tag, childOf)]:
			found = append(found, h.breach(name, id, "job %v of %s was inserted by nobody", id, f.workload))
		case l != nil && !slices.Contains(l.ends, f.state):
			found = append(found, h.breach(name, id, "job %v of %s is %s at the end, not %s", id, f.workload, f.state, strings.Join(l.ends, " or ")))
		}
	}
	return found
}

// fence is what proves a claim.
type fence struct{ claim, nonce int64 }

// claimed is a claim as the audit knows it.
type claimed struct {
	fence
	begun  *move
	ended  *move // nil while it lasts
	next   *move // where the job went
	reaped bool
}

const running = "job_running"

// claims lists all claims, in the order in which they were made.
func (h *history) claims() []*claimed {
	var all []*claimed
	open, last := map[uuid.UUID]*claimed{}, map[uuid.UUID]*claimed{}
	for i := range h.moves {
		m := &h.moves[i]
		switch {
		case m.place == running && m.entered:
			c := &claimed{fence: fence{m.claim, m.nonce}, begun: m}
			open[m.job] = c
			all = append(all, c)
		case m.place == running:
			if c := open[m.job]; c != nil {
				c.ended, last[m.job] = m, c
				delete(open, m.job)
			}
		case m.entered:
			if c := last[m.job]; c != nil && c.next == nil {
				c.next = m
				c.reaped = m.crash > c.begun.crash
			}
		}
	}
	return all
}

// checkFencing: no fence is used twice, no job has two claims at once, and a
// claim ends once.
func checkFencing(h *history) (found []violation) {
	const name = "I2 fencing"
	used, open := map[fence]bool{}, map[uuid.UUID]fence{}
	for i := range h.moves {
		m := &h.moves[i]
		if m.place != running {
			continue
		}
		f := fence{m.claim, m.nonce}
		held, isOpen := open[m.job]
		switch {
		case m.entered && used[f]:
			found = append(found, h.breach(name, m.job, "the fence %d/%d of job %v has been used before", f.claim, f.nonce, m.job))
		case m.entered && isOpen:
			found = append(found, h.breach(name, m.job, "job %v was claimed as %d/%d while claim %d/%d held", m.job, f.claim, f.nonce, held.claim, held.nonce))
		case !m.entered && (!isOpen || held != f):
			found = append(found, h.breach(name, m.job, "claim %d/%d of job %v ended without holding", f.claim, f.nonce, m.job))
		}
		if m.entered {
			used[f], open[m.job] = true, f
		} else {
			delete(open, m.job)
		}
	}
	return found
}

// runKey names the runs of a claim: no two claims of a job by one process agree
// in it, unless the first was given back unrun.
type runKey struct {
	job                uuid.UUID
	process            string
	attempt, reprocess int
}

// checkOutcomes: a job that has completed was completed by a claim whose own
// handler came to its end without error, and a claim that was not reaped was
// ended by the process that made it.
func checkOutcomes(h *history) (found []violation) {
	const name = "I2 outcomes"
	ok := map[runKey]bool{}
	for _, r := range h.runs {
		if r.outcome == runOK {
			ok[runKey{r.job, r.process, r.attempt, r.reprocess}] = true
		}
	}
	for _, c := range h.claims() {
		if c.ended == nil || c.next == nil {
			continue // lost or never ended: the other checks tell
		}
		b := c.begun
		if c.next.state == "completed" && !ok[runKey{b.job, b.process, b.attempt, b.reprocess}] {
			found = append(found, h.breach(name, b.job, "job %v was completed by claim %d/%d of %s, whose handler did not come to its end", b.job, c.claim, c.nonce, b.process))
		}
		if !c.reaped && c.ended.process != b.process {
			found = append(found, h.breach(name, b.job, "claim %d/%d of %s was settled by %s", c.claim, c.nonce, b.process, c.ended.process))
		}
	}
	return found
}

// checkAttempts: a job whose handler a stop has interrupted is given back without
// using an attempt, one whose worker died has used it, and none is claimed with
// an attempt that it had not come to.
func checkAttempts(h *history) (found []violation) {
	const name = "I2 attempts"
	interrupted := map[runKey]bool{}
	for _, r := range h.runs {
		if r.outcome == runShutdown {
			interrupted[runKey{r.job, r.process, r.attempt, r.reprocess}] = true
		}
	}
	for _, c := range h.claims() {
		if c.ended == nil || c.next == nil {
			continue
		}
		b := c.begun
		want := b.attempt
		if !c.reaped && c.next.place == "job_queue" {
			want-- // given back
		}
		switch {
		case !c.reaped && interrupted[runKey{b.job, b.process, b.attempt, b.reprocess}] && c.next.place != "job_queue" && c.next.state != "cancelled":
			found = append(found, h.breach(name, b.job, "claim %d/%d of job %v, interrupted by a stop, was not given back", c.claim, c.nonce, b.job))
		case c.next.place != "job_waiting" && c.next.attempt != want, c.next.attempt > b.attempt || c.next.attempt < b.attempt-1:
			found = append(found, h.breach(name, b.job, "claim %d/%d of job %v was attempt %d, and left it at attempt %d", c.claim, c.nonce, b.job, b.attempt, c.next.attempt))
		}
	}
	return found
}

const finished = "job_finished"

// ends are the tables of jobs that have ended. job_finished is on the way to the
// others.
var ends = map[string]bool{finished: true, "job_queue_archive": true, "job_queue_dlq": true}

// checkTerminal: a job ends once, and nothing happens to it afterwards but the
// way from job_finished to its table.
func checkTerminal(h *history) (found []violation) {
	const onTheWay = "on the way"
	at := map[uuid.UUID]string{} // where an ended job is
	for i := range h.moves {
		m := &h.moves[i]
		place, ended := at[m.job]
		switch {
		case !ended && m.entered && ends[m.place], place == onTheWay && m.entered && ends[m.place] && m.place != finished:
			at[m.job] = m.place
		case place == finished && m.place == finished && !m.entered:
			at[m.job] = onTheWay
		case ended:
			found = append(found, h.breach("I3 terminal is final", m.job, "job %v had ended, and then: %v", m.job, m))
		}
	}
	return found
}

// slack is what a busy machine may add to any time.
const slack = 15 * time.Second

// recovery is how long the claim of a dead worker stayed.
type recovery struct {
	claim *claimed
	took  time.Duration // from the death
	late  time.Duration // from the death, or the end of the last fault before the reaping
}

// recoveries lists the claims whose worker died while it held them and that were
// taken back.
func (h *history) recoveries() []recovery {
	died := map[string]time.Time{}
	for _, l := range h.lives {
		if !l.end.IsZero() {
			died[l.process] = l.end
		}
	}
	var all []recovery
	for _, c := range h.claims() {
		death, dead := died[c.begun.process]
		if !dead || c.ended == nil || !c.ended.at.After(death) || c.ended.process == c.begun.process {
			continue
		}
		from := death
		for _, f := range h.faults {
			if f.end.After(from) && f.end.Before(c.ended.at) {
				from = f.end
			}
		}
		all = append(all, recovery{c, c.ended.at.Sub(death), c.ended.at.Sub(from)})
	}
	slices.SortFunc(all, func(a, b recovery) int { return cmp.Compare(a.took, b.took) })
	return all
}

// checkRecovery: what a dead worker held is runnable again within its lease, a
// sweep, and the lease that an interruption of the sweeps adds.
func checkRecovery(h *history) (found []violation) {
	bound := 2*h.setup.lease() + 2*h.setup.Heartbeat + slack
	for _, r := range h.recoveries() {
		if r.late > bound {
			b := r.claim.begun
			found = append(found, h.breach("I4 recovery", b.job, "claim %d/%d of %s, which died, was taken back after %v, want at most %v", r.claim.claim, r.claim.nonce, b.process, r.late, bound))
		}
	}
	return found
}

// alive are the last reports of the workers that lived when it was quiet.
func (h *history) alive() []report {
	last := map[string]report{}
	for _, r := range h.reports {
		last[r.process] = r
	}
	for _, l := range h.lives {
		if !l.end.IsZero() && l.end.Before(h.quiet) {
			delete(last, l.process)
		}
	}
	var all []report
	for _, r := range last {
		all = append(all, r)
	}
	return all
}

// checkSlots: when all is quiet, no slot and no byte is taken but those of
// handlers that have not returned, and these are counted as stuck.
func checkSlots(h *history) (found []violation) {
	for _, r := range h.alive() {
		if r.running != r.handlers || r.stuck != r.handlers || r.inFlight != r.handlers || r.permits != r.handlers || r.free != h.setup.GlobalPermits-r.handlers ||
			(r.handlers == 0 && r.payloadBytes != 0) {
			found = append(found, violation{"I5 slots", fmt.Sprintf(
				"%s at rest has %d handlers, and says running %d, stuck %d, in flight %d, permits of queues %d, free permits %d of %d, payload bytes %d",
				r.process, r.handlers, r.running, r.stuck, r.inFlight, r.permits, r.free, h.setup.GlobalPermits, r.payloadBytes), nil})
		}
	}
	return found
}

// checkLimits: no process runs more jobs of a queue, or in all, than it has
// permits, and no handler runs without one.
func checkLimits(h *history) (found []violation) {
	for i := range h.runs {
		if r := &h.runs[i]; r.inside > r.permits {
			found = append(found, h.breach("I6 limits", r.job, "%s ran %d jobs of %s, with %d permits taken", r.process, r.inside, r.queue, r.permits))
		}
	}
	died := map[string]time.Time{}
	for _, l := range h.lives {
		if !l.end.IsZero() {
			died[l.process] = l.end
		}
	}
	type place struct{ process, queue string }
	all := map[place][]interval{}
	for i := range h.runs {
		r := &h.runs[i]
		end := r.end
		if end.IsZero() {
			if end = died[r.process]; end.IsZero() {
				end = h.quiet
			}
		}
		iv := interval{r.start, end, r.job}
		all[place{r.process, r.queue}] = append(all[place{r.process, r.queue}], iv)
		all[place{r.process, ""}] = append(all[place{r.process, ""}], iv)
	}
	for p, runs := range all {
		limit, what := h.setup.GlobalPermits, "jobs in all"
		if p.queue != "" {
			limit, what = h.setup.permits(p.queue), "jobs of "+p.queue
		}
		if n, at, job := most(runs); n > limit {
			found = append(found, h.breach("I6 limits", job, "%s ran %d %s at %s, permits are %d", p.process, n, what, at.Format(time.RFC3339Nano), limit))
		}
	}
	return found
}

// interval is a time in which a job ran, or lived.
type interval struct {
	begin, end time.Time
	job        uuid.UUID
}

// most is how many of the intervals overlap at most, when first, and whose was
// the last to begin then. One that ends when another begins does not overlap it.
func most(all []interval) (n int, at time.Time, job uuid.UUID) {
	type edge struct {
		at   time.Time
		step int
		job  uuid.UUID
	}
	var edges []edge
	for _, iv := range all {
		if iv.end.After(iv.begin) {
			edges = append(edges, edge{iv.begin, 1, iv.job}, edge{iv.end, -1, iv.job})
		}
	}
	slices.SortFunc(edges, func(a, b edge) int { return cmp.Or(a.at.Compare(b.at), cmp.Compare(a.step, b.step)) })
	now := 0
	for _, e := range edges {
		if now += e.step; now > n {
			n, at, job = now, e.at, e.job
		}
	}
	return n, at, job
}

// checkUnique: of the jobs of one unique key at most one lives at any time.
func checkUnique(h *history) (found []violation) {
	type life struct {
		key   string
		begin time.Time
		end   time.Time
	}
	lives := map[uuid.UUID]*life{}
	for i := range h.moves {
		m := &h.moves[i]
		if m.key == "" || !m.entered {
			continue
		}
		if lives[m.job] == nil {
			lives[m.job] = &life{key: m.key, begin: m.at, end: h.quiet}
		}
		if l := lives[m.job]; ends[m.place] && l.end.Equal(h.quiet) {
			l.end = m.at
		}
	}
	byKey := map[string][]interval{}
	for job, l := range lives {
		byKey[l.key] = append(byKey[l.key], interval{l.begin, l.end, job})
	}
	for key, all := range byKey {
		if n, at, job := most(all); n > 1 {
			found = append(found, h.breach("I7 uniqueness", job, "%d jobs with the key %q lived at %s", n, key, at.Format(time.RFC3339Nano)))
		}
	}
	return found
}

// afterEnd is how long after the row of an ended job was written its key may look
// taken: until that commits.
const afterEnd = 5 * time.Second

// checkDuplicates: an insert that was skipped names a job that is there, with
// the same key, and that had not ended long before.
func checkDuplicates(h *history) (found []violation) {
	const name = "I7 duplicates"
	keys, ended := map[uuid.UUID]string{}, map[uuid.UUID]time.Time{}
	for _, f := range h.finals {
		keys[f.id] = f.key
	}
	for i := range h.moves {
		if m := &h.moves[i]; m.entered && ends[m.place] && ended[m.job].IsZero() {
			ended[m.job] = m.at
		}
	}
	for _, in := range h.inserts {
		if in.outcome != duplicate || h.rewind.holds(in.answered) {
			continue
		}
		if key, ok := keys[in.holder]; !ok || key != in.key {
			found = append(found, h.breach(name, in.holder, "the insert of %s with the key %q was skipped for job %v, which is not there with that key", in.tag, in.key, in.holder))
		}
		if end := ended[in.holder]; !end.IsZero() && end.Add(afterEnd).Before(in.asked) {
			found = append(found, h.breach(name, in.holder, "the insert of %s with the key %q was skipped for job %v, which had ended %v before", in.tag, in.key, in.holder, in.asked.Sub(end)))
		}
	}
	return found
}

// checkLoops: no process ended by itself, and when it is quiet each worker that
// lives is well and says so.
func checkLoops(h *history) (found []violation) {
	const name = "I8 loops"
	for _, l := range h.lives {
		if l.unexpected {
			found = append(found, violation{name, fmt.Sprintf("%s ended by itself at %s: %s", l.process, l.end.Format(time.RFC3339Nano), l.how), nil})
		}
	}
	for _, r := range h.alive() {
		if !r.healthy {
			found = append(found, violation{name, fmt.Sprintf("%s is not well after the faults: %s", r.process, r.problems), nil})
		}
		if h.quiet.Sub(r.at) > slack {
			found = append(found, violation{name, fmt.Sprintf("%s has not reported since %s", r.process, r.at.Format(time.RFC3339Nano)), nil})
		}
	}
	return found
}

// checkProgress: jobs that somebody else has locked keep no worker from claiming
// others.
func checkProgress(h *history) (found []violation) {
	claims := h.claims()
	for _, f := range h.faults {
		middle := f.begin.Add(f.end.Sub(f.begin) / 2)
		if f.what != rowsLocked || f.end.Sub(f.begin) < 2*time.Second {
			continue
		}
		for _, l := range h.lives {
			worked := slices.ContainsFunc(claims, func(c *claimed) bool {
				return c.begun.process == l.process && c.begun.at.After(middle) && c.begun.at.Before(f.end)
			})
			if strings.HasPrefix(l.process, "worker") && l.start.Before(f.begin) && (l.end.IsZero() || l.end.After(f.end)) && !worked {
				found = append(found, violation{"I8 progress", fmt.Sprintf("%s claimed nothing while rows were locked, from %s to %s", l.process, middle.Format(time.RFC3339Nano), f.end.Format(time.RFC3339Nano)), nil})
			}
		}
	}
	return found
}

// mostBytes is what a table may have grown to in a short run.
const mostBytes = 256 << 20

// checkLeftovers: a quiet queue has no leases, keys, payloads or requests left,
// and its tables are small.
func checkLeftovers(h *history) (found []violation) {
	for table, n := range h.leftovers {
		if n > 0 {
			found = append(found, violation{"I9 leftovers", fmt.Sprintf("%d rows are left in %s", n, table), nil})
		}
	}
	for table, n := range h.bytes {
		if n > mostBytes {
			found = append(found, violation{"I9 leftovers", fmt.Sprintf("%s has %d bytes", table, n), nil})
		}
	}
	return found
}

// checkClock: no job begins before it is due.
func checkClock(h *history) (found []violation) {
	ids := map[uuid.UUID]insertion{}
	tags := map[string]insertion{}
	for _, in := range h.inserts {
		tags[in.tag] = in
	}
	for _, f := range h.finals {
		ids[f.id] = tags[f.tag]
	}
	for _, r := range h.runs {
		in, ok := ids[r.job]
		if !ok || in.delay == 0 {
			continue
		}
		if early := in.asked.Add(in.delay).Sub(r.start); early > 0 {
			found = append(found, h.breach("I10 clock", r.job, "job %v ran %v before it was due", r.job, early))
		}
	}
	return found
}

// checkCancels: a job that was cancelled is; one that was asked to stop has been
// cancelled, or completed first, and is never tried again.
func checkCancels(h *history) (found []violation) {
	states := map[uuid.UUID]string{}
	for _, f := range h.finals {
		states[f.id] = f.state
	}
	asked := map[uuid.UUID]cancelling{}
	for _, c := range h.cancels {
		if h.rewind.holds(c.answered) {
			continue
		}
		asked[c.job] = c
		s := states[c.job]
		if c.state == "cancelled" && s != "cancelled" || c.state == "cancelling" && s != "cancelled" && s != "completed" {
			found = append(found, h.breach("cancel", c.job, "Cancel of job %v returned %s, and it ended as %s", c.job, c.state, s))
		}
	}
	for _, c := range h.claims() {
		if a, ok := asked[c.begun.job]; ok && c.begun.at.After(a.answered) {
			found = append(found, h.breach("cancel", c.begun.job, "job %v was claimed after Cancel had returned %s", c.begun.job, a.state))
		}
	}
	return found
}

// checkStrict: where no worker dies or is cut off, no job is taken from its
// worker, and none has used an attempt for nothing.
func checkStrict(h *history) (found []violation) {
	if !h.strict {
		return nil
	}
	for _, c := range h.claims() {
		if c.reaped {
			found = append(found, h.breach("strict", c.begun.job, "claim %d/%d of %s was reaped although its worker was well", c.claim, c.nonce, c.begun.process))
		}
	}
	for _, f := range h.finals {
		if f.crash > 0 || f.lost > 0 {
			found = append(found, h.breach("strict", f.id, "job %v has crash count %d and %d lost workers", f.id, f.crash, f.lost))
		}
	}
	if n := h.reruns() - h.interrupted(); n > 0 {
		found = append(found, violation{"strict", fmt.Sprintf("%d handlers ran for nothing", n), nil})
	}
	return found
}

// interrupted is how many handlers a stop has interrupted.
func (h *history) interrupted() (n int) {
	for _, r := range h.runs {
		if r.outcome == runShutdown {
			n++
		}
	}
	return n
}

// reruns is how many handlers ran for nothing: their claim was not ended by
// their own process, or gave the job back.
func (h *history) reruns() (n int) {
	settled := map[runKey]bool{}
	for _, c := range h.claims() {
		if b := c.begun; c.ended != nil && c.next != nil && !c.reaped && c.ended.process == b.process && c.next.place != "job_queue" {
			settled[runKey{b.job, b.process, b.attempt, b.reprocess}] = true
		}
	}
	for _, r := range h.runs {
		if !settled[runKey{r.job, r.process, r.attempt, r.reprocess}] {
			n++
		}
	}
	return n
}
