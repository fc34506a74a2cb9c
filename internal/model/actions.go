package model

import "fmt"

// Action is one thing that happens.
type Action struct {
	What   What
	Worker int
	Job    int
	Slot   int  // of the worker's holds
	Lost   bool // the answer does not arrive
}

// What happens.
type What uint8

// The comments name the statements.
const (
	Insert       What = iota // store.insertKeyed
	Admit                    // store.admit
	PassTime                 // a waiting job becomes due
	Promote                  // store.promote
	Pick                     // the SELECT of store.claimAll
	Take                     // its DELETE and INSERT; the worker runs the job
	Claim                    // both
	Beat                     // store.beat
	Begin                    // a settle that does not lock takes its snapshot
	Complete                 // janitor.settleArchive
	Fail                     // store.settleWaiting, or janitor.settleDLQ in the last attempt
	GiveBack                 // store.settleGiveBack
	Expire                   // a lease without beats is over
	Outage                   // nobody can beat for a lease
	Look                     // reaper.lockStale
	Move                     // reaper.moveStale
	Sweep                    // both: reaper.Once
	Crash                    // a worker dies; another one takes its place
	Suspend                  // SIGSTOP
	Wake                     // SIGCONT
	Cancel                   // SimpleQueue.Cancel, or its beginning
	CancelVisits             // store.cancelWaiting, cancelQueued, cancelRunning
	Archive                  // janitor.sweep
	CopyAway                 // a standby has what is committed now
	Rewind                   // and takes over when more has been
)

var whatNames = [...]string{
	"insert", "admit", "time passes for", "promote", "pick", "take", "claim", "beat", "begin to settle", "complete", "fail", "give back",
	"the lease is over of", "outage", "the sweep looks", "the sweep moves", "sweep", "crash", "suspend", "wake", "cancel", "the cancel visits",
	"archive", "the standby copies", "failover to the copy",
}

func (a Action) String() string {
	text := whatNames[a.What]
	switch a.What {
	case Beat, Take, Crash, Suspend, Wake:
		text = fmt.Sprintf("worker %d: %s", a.Worker+1, text)
	case Pick, Claim, Begin, Complete, Fail, GiveBack:
		text = fmt.Sprintf("worker %d: %s job %d", a.Worker+1, text, a.Job+1)
	case Insert, PassTime, Expire, Cancel:
		text = fmt.Sprintf("%s job %d", text, a.Job+1)
	case CancelVisits:
		text += [...]string{"", " job_waiting", " job_queue", " job_running", " job_cancel"}[a.Slot]
	}
	if a.Lost {
		text += ", the answer is lost"
	}
	return text
}

// Step is where an action leads.
type Step struct {
	Action Action
	State  State
	Broken Invariant // or ""
	Why    string
}

// mover makes one step.
type mover struct {
	world *World
	rules *Rules
	Step
}

func (m *mover) broken(i Invariant, format string, args ...any) {
	if m.Broken == "" {
		m.Broken, m.Why = i, fmt.Sprintf(format, args...)
	}
}

// Next lists the steps out of a state.
func (w *World) Next(s State, rules Rules) []Step {
	var steps []Step
	try := func(a Action, do func(*mover)) {
		m := mover{world: w, rules: &rules, Step: Step{Action: a, State: s}}
		do(&m)
		if m.State != s || m.Broken != "" {
			steps = append(steps, m.Step)
		}
	}
	for i := range w.Jobs {
		w.ofJob(&s, i, try)
	}
	for i := range w.Workers {
		w.ofWorker(&s, i, rules, try)
	}
	try(Action{What: Promote}, (*mover).promote)
	try(Action{What: Archive}, (*mover).archive)
	if w.Ordered {
		try(Action{What: Admit}, (*mover).admit)
	}
	switch {
	case w.Coarse:
		try(Action{What: Sweep}, func(m *mover) { m.look(); m.move() })
	case s.sweeps:
		try(Action{What: Move}, (*mover).move)
	default:
		try(Action{What: Look}, (*mover).look)
	}
	if s.cancels != 0 {
		try(Action{What: CancelVisits, Slot: int(s.phase)}, (*mover).visit)
	}
	if s.left.outages > 0 {
		try(Action{What: Outage}, (*mover).outage)
	}
	if s.left.rewinds > 0 && !s.copied {
		try(Action{What: CopyAway}, func(m *mover) { m.State.saved, m.State.copied = m.State.DB, true })
	}
	if s.left.rewinds > 0 && s.copied {
		try(Action{What: Rewind}, func(m *mover) {
			m.State.DB, m.State.saved, m.State.copied = m.State.saved, DB{}, false
			m.State.left.rewinds--
		})
	}
	return steps
}

func (w *World) ofJob(s *State, i int, try func(Action, func(*mover))) {
	job := &s.Jobs[i]
	switch {
	case job.Place == Nowhere && (i == 0 || !w.Ordered || s.Jobs[i-1].Place != Nowhere):
		try(Action{What: Insert, Job: i}, func(m *mover) { m.insert(i) })
	case job.Place == Waiting && !job.Due:
		try(Action{What: PassTime, Job: i}, func(m *mover) { m.State.Jobs[i].Due = true })
	case job.Place == Running && job.Age == Fresh && !s.cared(i):
		try(Action{What: Expire, Job: i}, func(m *mover) { m.State.Jobs[i].Age = Silent })
	}
	if s.left.cancels > 0 && s.cancels == 0 && job.Place != Nowhere && !job.ended() {
		try(Action{What: Cancel, Job: i}, func(m *mover) {
			m.State.left.cancels--
			m.State.cancels, m.State.phase = uint8(i+1), 1
			for w.Coarse && m.State.cancels != 0 {
				m.visit()
			}
		})
	}
}

func (w *World) ofWorker(s *State, i int, rules Rules, try func(Action, func(*mover))) {
	worker := &s.Workers[i]
	if worker.Asleep {
		try(Action{What: Wake, Worker: i}, func(m *mover) { m.State.Workers[i].Asleep = false })
		return
	}
	if s.left.sleeps > 0 && (worker.Holds != [maxHolds]Hold{} || worker.Picked != 0) {
		try(Action{What: Suspend, Worker: i}, func(m *mover) { m.State.Workers[i].Asleep = true; m.State.left.sleeps-- })
	}
	if s.left.crashes > 0 && worker.Holds != [maxHolds]Hold{} {
		try(Action{What: Crash, Worker: i}, func(m *mover) { m.State.Workers[i] = Worker{}; m.State.left.crashes-- })
	}
	lost := []bool{false, true}
	if s.left.lost == 0 {
		lost = lost[:1]
	}
	for j := range w.Jobs {
		for _, l := range lost {
			if w.Coarse && s.Jobs[j].Place == Queued && worker.free() != nil && s.left.claims > 0 {
				try(Action{What: Claim, Worker: i, Job: j, Lost: l}, func(m *mover) { m.pick(i, j); m.take(i, l) })
			}
		}
		if !w.Coarse && worker.Picked == 0 && s.Jobs[j].Place == Queued && worker.free() != nil && s.left.claims > 0 {
			try(Action{What: Pick, Worker: i, Job: j}, func(m *mover) { m.pick(i, j) })
		}
	}
	if worker.Picked != 0 {
		for _, l := range lost {
			try(Action{What: Take, Worker: i, Lost: l}, func(m *mover) { m.take(i, l) })
		}
	}
	try(Action{What: Beat, Worker: i}, func(m *mover) { m.beat(i) })
	for slot, h := range worker.Holds {
		if h.Job == 0 {
			continue
		}
		if !rules.has(LockAtSettle) && !h.begun {
			try(Action{What: Begin, Worker: i, Job: int(h.Job) - 1, Slot: slot}, func(m *mover) { m.begin(i, slot) })
			continue
		}
		for _, what := range []What{Complete, Fail, GiveBack} {
			if what == GiveBack && s.left.backs == 0 {
				continue
			}
			for _, l := range lost {
				try(Action{What: what, Worker: i, Job: int(h.Job) - 1, Slot: slot, Lost: l}, func(m *mover) { m.settle(i, slot, what, l) })
			}
		}
	}
}

// insert is store.insertKeyed: the key is taken by a row, or the job is skipped.
func (m *mover) insert(i int) {
	s := &m.State
	if m.world.Keyed && s.Key != 0 {
		if holder := &s.Jobs[s.Key-1]; holder.ended() {
			m.broken(OneKey, "job %d is skipped for job %d, which has ended", i+1, s.Key)
		}
		if m.rules.has(KeyTaken) {
			return
		}
	}
	if m.world.Keyed {
		for other := range m.world.Jobs {
			if o := &s.Jobs[other]; o.Place != Nowhere && !o.ended() {
				m.broken(OneKey, "jobs %d and %d live with one key", other+1, i+1)
			}
		}
		s.Key = uint8(i + 1)
	}
	switch {
	case m.world.Ordered:
		s.Jobs[i].Place, s.Look = Gated, true
	case m.world.Delayed:
		s.Jobs[i].Place = Waiting
	default:
		s.Jobs[i].Place = Queued
	}
}

// admit is store.admit, for one gate.
func (m *mover) admit() {
	s := &m.State
	if !s.Look {
		return
	}
	s.Look = false
	if m.rules.has(RoomInGate) && s.Inside != 0 {
		return
	}
	first := -1
	for i := range m.world.Jobs {
		if s.Jobs[i].Place == Gated && (first < 0 || !m.rules.has(PlaceInGate)) {
			first = i
		}
	}
	if first < 0 {
		return
	}
	for i := range m.world.Jobs {
		if o := &s.Jobs[i]; i != first && !o.ended() && o.Place > Gated {
			m.broken(OneInOne, "job %d is let in while job %d is inside", first+1, i+1)
		}
	}
	s.Jobs[first].Place, s.Inside = Queued, uint8(first+1)
}

// promote is store.promote.
func (m *mover) promote() {
	for i := range m.world.Jobs {
		j := &m.State.Jobs[i]
		if j.Place != Waiting || m.rules.has(DueAtPromotion) && !j.Due {
			continue
		}
		if !j.Due {
			m.broken(OnTime, "job %d is promoted before its time", i+1)
		}
		j.Place, j.Due = Queued, false
	}
}

// archive is janitor.sweep.
func (m *mover) archive() {
	for i := range m.world.Jobs {
		if m.State.Jobs[i].Place == Finished {
			m.State.Jobs[i].Place = Kept
		}
	}
}

// pick is the SELECT of a claim. That it locks the row saves others from waiting
// for it; here they may come between.
func (m *mover) pick(w, i int) {
	m.State.left.claims--
	m.State.Workers[w].Picked = uint8(i + 1)
}

// take is the rest of a claim: what its DELETE returns is inserted.
func (m *mover) take(w int, lost bool) {
	s := &m.State
	i := int(s.Workers[w].Picked) - 1
	s.Workers[w].Picked = 0
	j := &s.Jobs[i]
	if lost {
		s.left.lost--
	}
	if j.Place != Queued {
		if m.rules.has(ClaimMoves) {
			return
		}
		m.broken(OneRow, "job %d is inserted into job_running, and has another row", i+1)
	}
	switch {
	case j.told != toldNothing:
		m.broken(Told, "job %d is claimed after its cancel", i+1)
	case m.world.Ordered:
		for before := range i {
			if !s.Jobs[before].ended() {
				m.broken(InOrder, "job %d is claimed before job %d has ended", i+1, before+1)
			}
		}
	}
	j.Place, j.Age, j.Asked = Running, Fresh, false
	j.Fence = Fence{s.NextClaim, s.NextNonce}
	s.NextClaim++
	s.NextNonce++
	j.starts++
	if m.rules.has(CountAtClaim) {
		j.Attempt++
	}
	if j.Attempt != j.starts || j.Attempt > m.world.Attempts {
		m.broken(Attempts, "job %d is started for the %dth time as attempt %d of %d", i+1, j.starts, j.Attempt, m.world.Attempts)
	}
	if h := s.Workers[w].free(); h != nil && !lost {
		*h = Hold{Job: uint8(i + 1), Fence: j.Fence}
	}
}

// beat is store.beat: what is still there is renewed, what is not has been lost,
// and its handler is told.
func (m *mover) beat(w int) {
	s := &m.State
	for slot := range s.Workers[w].Holds {
		h := &s.Workers[w].Holds[slot]
		if h.Job == 0 {
			continue
		}
		i := int(h.Job) - 1
		switch own := s.claimed(i, h.Fence); {
		case own, !m.rules.has(FenceOfBeat) && s.Jobs[i].Place == Running:
			if !own {
				m.broken(Fencing, "the beat of an old claim renews the lease of job %d", i+1)
			}
			s.Jobs[i].Age = Fresh
		default:
			*h = Hold{}
		}
	}
}

// begin is the snapshot of a settle without store.LockClaims.
func (m *mover) begin(w, slot int) {
	h := &m.State.Workers[w].Holds[slot]
	h.begun, h.saw = true, m.State.claimed(int(h.Job)-1, h.Fence) && m.State.Jobs[h.Job-1].Asked
}

// settle writes an outcome: the row of the claim leaves job_running and is
// inserted elsewhere. If the answer is lost the worker writes it again.
func (m *mover) settle(w, slot int, what What, lost bool) {
	s := &m.State
	h := s.Workers[w].Holds[slot]
	if lost {
		s.left.lost--
	} else {
		s.Workers[w].Holds[slot] = Hold{}
	}
	if what == GiveBack {
		s.left.backs--
	}
	i := int(h.Job) - 1
	j := &s.Jobs[i]
	own := s.claimed(i, h.Fence)
	hit := own
	switch {
	case !m.rules.has(FenceOfSettle):
		hit = j.Place == Running
	case !m.rules.has(NonceOfFence):
		hit = j.Place == Running && j.Fence.Claim == h.Fence.Claim
	}
	switch {
	case !hit && m.rules.has(SettleMoves):
		return
	case !hit && j.ended():
		m.broken(Final, "job %d, which has ended, gets a row by a late outcome", i+1)
	case !hit:
		m.broken(OneRow, "job %d gets a second row by a late outcome", i+1)
	case !own:
		m.broken(Fencing, "the outcome of an old claim settles job %d", i+1)
	}
	asked := j.Asked
	if !m.rules.has(LockAtSettle) {
		asked = h.saw
	}
	asked = asked && m.rules.has(CancelAtSettle)
	switch {
	case what == Complete:
		m.end(i, Completed, Kept)
	case what == Fail && j.Attempt >= m.world.Attempts && m.rules.has(LastFailure):
		how := Failed
		if asked {
			how = Cancelled
		}
		m.end(i, how, Kept)
	case asked:
		m.end(i, Cancelled, Finished)
	case what == Fail:
		m.leave(i, Waiting)
		j.Crashes = 0
	default:
		m.leave(i, Queued)
		j.starts--
		if m.rules.has(GiveBackReturns) {
			j.Attempt--
		}
	}
}

// leave takes a job out of job_running. What goes on living keeps its key.
func (m *mover) leave(i int, to Place) {
	j := &m.State.Jobs[i]
	j.Place, j.Fence, j.Age, j.Asked = to, Fence{}, Fresh, false
	if int(m.State.Key) == i+1 && !m.rules.has(KeyKept) {
		m.State.Key = 0
	}
}

// end is what ends a job, with store.Release and store.ReleaseGates.
func (m *mover) end(i int, how End, to Place) {
	s := &m.State
	if s.Jobs[i].ended() {
		m.broken(Final, "job %d has ended and ends again", i+1)
	}
	m.leave(i, to)
	s.Jobs[i].End, s.Jobs[i].Due = how, false
	if int(s.Key) == i+1 && m.rules.has(KeyReleased) {
		s.Key = 0
	}
	if int(s.Inside) == i+1 && m.rules.has(GateFreed) {
		s.Inside, s.Look = 0, m.rules.has(GateLookedAt)
	}
}

// outage is a time in which nobody can reach the database, or the tables that
// beats need. reaper.markSweep sees the gap.
func (m *mover) outage() {
	m.State.left.outages--
	for i := range m.world.Jobs {
		if j := &m.State.Jobs[i]; j.Place == Running && j.Age == Fresh && !m.rules.has(GapOfSweep) {
			j.Age = CutOff
		}
	}
}

// look is reaper.lockStale. That it locks the rows keeps their owners waiting;
// here they may come between.
func (m *mover) look() {
	s := &m.State
	for i := range m.world.Jobs {
		if j := &s.Jobs[i]; j.Place == Running && (j.Age != Fresh || !m.rules.has(LeaseOfSweep)) && m.rules.has(Sweeping) {
			s.seen[i], s.sweeps = j.Fence, true
		}
	}
}

// move is reaper.moveStale.
func (m *mover) move() {
	s := &m.State
	for i := range m.world.Jobs {
		if s.seen[i] != (Fence{}) {
			m.reap(i, s.seen[i])
		}
	}
	s.seen, s.sweeps = [maxJobs]Fence{}, false
}

func (m *mover) reap(i int, seen Fence) {
	s := &m.State
	j := &s.Jobs[i]
	own := s.claimed(i, seen)
	hit := own || !m.rules.has(FenceOfSweep) && j.Place == Running
	stale := j.Age != Fresh || !m.rules.has(SecondLook) || !m.rules.has(LeaseOfSweep)
	switch {
	case !hit && m.rules.has(SweepMoves), hit && !stale:
		return
	case !hit && j.ended():
		m.broken(Final, "job %d, which has ended, is queued by a sweep", i+1)
	case !hit:
		m.broken(OneRow, "job %d gets a second row by a sweep", i+1)
	case !own:
		m.broken(Fencing, "the sweep takes a claim of job %d that it has not seen", i+1)
	case j.Age != Silent && s.cared(i):
		m.broken(Taken, "job %d is taken from a worker that lives", i+1)
	}
	asked := j.Asked && m.rules.has(CancelAtSweep)
	j.Crashes++
	switch {
	case asked:
		m.end(i, Cancelled, Finished)
	case j.Crashes >= m.world.MaxCrashes && m.rules.has(CrashesInARow):
		m.end(i, Bad, Finished)
	case j.Attempt >= m.world.Attempts && m.rules.has(LastCrash):
		m.end(i, Failed, Finished)
	default:
		m.leave(i, Queued)
	}
	if j.Crashes >= m.world.MaxCrashes && !j.ended() {
		m.broken(Attempts, "job %d lives after %d crashes in a row", i+1, j.Crashes)
	}
}

// visit is one statement of a cancel. It goes from table to table in the
// direction in which jobs move, each with a snapshot of its own.
func (m *mover) visit() {
	const (
		waiting = 1 + iota
		queue
		running
		request // of a cancel that does not lock the running row
	)
	s := &m.State
	i := int(s.cancels) - 1
	j := &s.Jobs[i]
	over := func(t told) {
		j.told = max(j.told, t)
		s.cancels, s.phase, s.cancelFence = 0, 0, Fence{}
	}
	switch at := s.phase; {
	case at == waiting && (j.Place == Waiting || j.Place == Gated), at == queue && j.Place == Queued:
		m.end(i, Cancelled, Finished)
		over(toldCancelled)
	case at == running && j.Place == Running && m.rules.has(LockAtCancel):
		j.Asked = true
		over(toldAsked)
	case at == running && j.Place == Running:
		s.cancelFence, s.phase = j.Fence, request
	case at == request:
		j.Asked = j.Asked || s.claimed(i, s.cancelFence)
		over(toldAsked)
	case at < running:
		s.phase++
	case j.ended():
		over(toldNothing)
	case m.rules.has(LookAgain):
		s.phase = waiting
	default:
		m.broken(Told, "job %d lives, and Cancel does not find it", i+1)
		over(toldNothing)
	}
}
