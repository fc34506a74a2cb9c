package main

import (
	"time"

	"github.com/google/uuid"
)

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
		if in.outcome != duplicate || h.rewind.meets(in.asked, in.answered) {
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
