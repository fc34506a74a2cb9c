package model

import (
	"fmt"
	"strings"
)

// Result is what an exploration has found.
type Result struct {
	States int
	Broken Invariant // the first that breaks, or ""
	Why    string
	Trace  []Action // the shortest that breaks it
}

func (r Result) String() string {
	if r.Broken == "" {
		return fmt.Sprintf("%d states, nothing breaks", r.States)
	}
	var b strings.Builder
	fmt.Fprintf(&b, "%s: %s, after\n", r.Broken, r.Why)
	for i, a := range r.Trace {
		fmt.Fprintf(&b, "  %2d. %v\n", i+1, a)
	}
	return b.String()
}

// Explore walks through all states of a world under the rules, those that are
// fewer steps away first, until an invariant breaks.
func Explore(w World, rules Rules) Result {
	type arrival struct {
		from int
		by   Action
	}
	start := w.Start()
	states, arrivals := []State{start}, []arrival{{from: -1}}
	known := map[State]struct{}{start: {}}
	trace := func(at int) (actions []Action) {
		for ; at > 0; at = arrivals[at].from {
			actions = append([]Action{arrivals[at].by}, actions...)
		}
		return actions
	}
	for at := 0; at < len(states); at++ {
		if lost := w.stranded(states[at], rules); lost != "" {
			return Result{len(states), Lost, lost, trace(at)}
		}
		for _, step := range w.Next(states[at], rules) {
			if step.Broken != "" {
				return Result{len(states), step.Broken, step.Why, append(trace(at), step.Action)}
			}
			if _, ok := known[step.State]; !ok {
				known[step.State] = struct{}{}
				states, arrivals = append(states, step.State), append(arrivals, arrival{at, step.Action})
			}
		}
	}
	return Result{States: len(states)}
}

// stranded lets everything that is to happen happen, from a state in which all
// workers die, and names a job that does not come to its end.
func (w *World) stranded(s State, rules Rules) string {
	m := mover{world: w, rules: &rules, Step: Step{State: s}}
	s2 := &m.State
	s2.Workers = [maxWorkers]Worker{}
	for range 4 * w.Jobs {
		for i := range w.Jobs {
			if j := &s2.Jobs[i]; j.Place == Running {
				j.Age = Silent
			} else if j.Place == Waiting {
				j.Due = true
			}
		}
		m.look()
		m.move()
		m.promote()
		m.admit()
		for i := range w.Jobs {
			if s2.Jobs[i].Place != Queued {
				continue
			}
			m.pick(0, i)
			m.take(0, false)
			m.begin(0, 0)
			m.settle(0, 0, Complete, false)
		}
		m.archive()
	}
	for i := range w.Jobs {
		if j := &s2.Jobs[i]; j.Place != Nowhere && j.Place != Kept {
			return fmt.Sprintf("job %d stays where it is", i+1)
		}
	}
	return ""
}
