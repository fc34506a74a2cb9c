package main

import (
	"fmt"
	"io"
	"maps"
	"slices"
	"strings"
)

// yardstick is the contestant that the others are compared with.
const yardstick = "river"

// group is the runs of one contestant in one scenario.
type group struct {
	scenario, contestant string
	runs                 []Result
	notApplicable        string
}

// groups are in the order of the scenarios and, within one, in that in which
// contestants first appear.
type groups []*group

func groupResults(results []Result) groups {
	var all groups
	for _, r := range results {
		g := all.find(r.Scenario, r.Contestant)
		if g == nil {
			g = &group{scenario: r.Scenario, contestant: r.Contestant}
			all = append(all, g)
		}
		if r.NotApplicable != "" {
			g.notApplicable = r.NotApplicable
			continue
		}
		g.runs = append(g.runs, r)
	}
	order := all.contestants()
	slices.SortStableFunc(all, func(a, b *group) int {
		if d := rank(a.scenario) - rank(b.scenario); d != 0 {
			return d
		}
		return slices.Index(order, a.contestant) - slices.Index(order, b.contestant)
	})
	return all
}

// find returns nil if there is none.
func (all groups) find(scenario, contestant string) *group {
	i := slices.IndexFunc(all, func(g *group) bool { return g.scenario == scenario && g.contestant == contestant })
	if i < 0 {
		return nil
	}
	return all[i]
}

func (all groups) contestants() []string {
	var list []string
	for _, g := range all {
		if !slices.Contains(list, g.contestant) {
			list = append(list, g.contestant)
		}
	}
	return list
}

// ratio is a group's rate divided by another's, or false if one of them has none
// or the rate was given.
func (all groups) ratio(g *group, scenario, contestant string) (float64, bool) {
	s, _ := findScenario(g.scenario)
	other := all.find(scenario, contestant)
	if s.paced || s.fixed || len(g.runs) == 0 || other == nil || len(other.runs) == 0 {
		return 0, false
	}
	return g.median(rate) / other.median(rate), true
}

func rate(r Result) float64 { return r.JobsPerS }

// values are sorted.
func (g *group) values(of func(Result) float64) []float64 {
	all := make([]float64, len(g.runs))
	for i, r := range g.runs {
		all[i] = of(r)
	}
	slices.Sort(all)
	return all
}

func (g *group) median(of func(Result) float64) float64 {
	all := g.values(of)
	return (all[(len(all)-1)/2] + all[len(all)/2]) / 2
}

// extraNames are the figures that only some scenarios have, sorted.
func (g *group) extraNames() []string {
	all := map[string]bool{}
	for _, r := range g.runs {
		for name := range r.Extra {
			all[name] = true
		}
	}
	return slices.Sorted(maps.Keys(all))
}

// writeTables writes the medians in Markdown: a table of what all scenarios
// have, one of what only some have, and who could not do what.
func writeTables(to io.Writer, results []Result) error {
	all := groupResults(results)
	w := &tableWriter{to: to}
	w.head("scenario", "contestant", "runs", "jobs/s", "min", "max", "x "+yardstick, "x its baseline", "p50 ms", "p95 ms", "p99 ms",
		"client us/job", "server us/job", "WAL B/job", "dead rows", "tables MB", "indexes MB")
	for _, g := range all {
		if len(g.runs) == 0 {
			continue
		}
		rates := g.values(rate)
		s, _ := findScenario(g.scenario)
		mb := func(bytes int64) float64 { return float64(bytes) / (1 << 20) }
		w.row(g.scenario, g.contestant, fmt.Sprint(len(g.runs)),
			number(g.median(rate)), number(rates[0]), number(rates[len(rates)-1]),
			maybe(all.ratio(g, g.scenario, yardstick)), maybe(all.ratio(g, s.baseline, g.contestant)),
			g.milliseconds(func(r Result) *float64 { return r.P50 }),
			g.milliseconds(func(r Result) *float64 { return r.P95 }),
			g.milliseconds(func(r Result) *float64 { return r.P99 }),
			number(g.median(func(r Result) float64 { return r.ClientCPUPerJob })),
			number(g.median(func(r Result) float64 { return r.ServerCPUPerJob })),
			number(g.median(func(r Result) float64 { return r.WALPerJob })),
			number(g.median(func(r Result) float64 { return float64(r.DeadTuples) })),
			number(g.median(func(r Result) float64 { return mb(r.TableBytes) })),
			number(g.median(func(r Result) float64 { return mb(r.IndexBytes) })))
	}
	w.head("scenario", "contestant", "also measured", "median", "min", "max")
	for _, g := range all {
		for _, name := range g.extraNames() {
			value := func(r Result) float64 { return r.Extra[name] }
			values := g.values(value)
			w.row(g.scenario, g.contestant, strings.ReplaceAll(name, "_", " "), number(g.median(value)), number(values[0]), number(values[len(values)-1]))
		}
		if n := g.median0(func(r Result) float64 { return float64(r.Duplicates) }); n > 0 {
			w.row(g.scenario, g.contestant, "jobs run again", number(n), "", "")
		}
	}
	w.head("scenario", "contestant", "not applicable, because")
	for _, g := range all {
		if g.notApplicable != "" {
			w.row(g.scenario, g.contestant, g.notApplicable)
		}
	}
	return w.flush()
}

// median0 is 0 where there was no run.
func (g *group) median0(of func(Result) float64) float64 {
	if len(g.runs) == 0 {
		return 0
	}
	return g.median(of)
}

func (g *group) milliseconds(of func(Result) *float64) string {
	for _, r := range g.runs {
		if of(r) == nil {
			return ""
		}
	}
	return number(g.median(func(r Result) float64 { return *of(r) }))
}

// number has about three digits.
func number(v float64) string {
	switch {
	case v >= 100 || v == float64(int64(v)):
		return fmt.Sprintf("%.0f", v)
	case v >= 10:
		return fmt.Sprintf("%.1f", v)
	}
	return fmt.Sprintf("%.2f", v)
}

func maybe(v float64, ok bool) string {
	if !ok {
		return ""
	}
	return fmt.Sprintf("%.2f", v)
}

// tableWriter writes tables with columns of even width. A table without rows is
// left out.
type tableWriter struct {
	to   io.Writer
	rows [][]string // the head first
	err  error
}

func (w *tableWriter) head(cells ...string) {
	w.err = w.flush()
	w.rows = [][]string{cells}
}

func (w *tableWriter) row(cells ...string) { w.rows = append(w.rows, cells) }

func (w *tableWriter) flush() error {
	if len(w.rows) < 2 || w.err != nil {
		return w.err
	}
	widths := make([]int, len(w.rows[0]))
	for _, row := range w.rows {
		for i, cell := range row {
			widths[i] = max(widths[i], len(cell))
		}
	}
	var text strings.Builder
	text.WriteByte('\n')
	for i, row := range w.rows {
		for j, cell := range row {
			fmt.Fprintf(&text, "| %-*s ", widths[j], cell)
		}
		text.WriteString("|\n")
		if i > 0 {
			continue
		}
		for _, width := range widths {
			text.WriteString("|" + strings.Repeat("-", width+2))
		}
		text.WriteString("|\n")
	}
	_, err := io.WriteString(w.to, text.String())
	return err
}
