package main

import (
	"slices"
	"strings"
	"time"

	"github.com/google/uuid"
)

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
		case in.outcome == acked && n == 0 && h.rewind.meets(in.asked, in.answered): // committed on a timeline that is gone
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
