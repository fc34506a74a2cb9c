package main

import (
	"cmp"
	"fmt"
	"image/color"
	"math"
	"os"
	"path/filepath"
	"slices"
	"strconv"

	"gonum.org/v1/plot"
	"gonum.org/v1/plot/plotter"
	"gonum.org/v1/plot/vg"
	"gonum.org/v1/plot/vg/draw"
)

// rateCharts are the scenarios whose rates stand side by side.
var rateCharts = []struct {
	file, title string
	scenarios   []string
}{
	{"insert", "Inserts", []string{"insert", "insert1-8", "insert1-64"}},
	{"throughput", "Jobs from end to end", []string{"drain", "backlog", "steady"}},
	{"processes", "Steady work, the same permits in more processes", []string{"processes-1", "processes-2", "processes-4", "processes-8"}},
	{"conditions", "Steady work under harder conditions", []string{
		"steady", "fail", "scheduled", "history", "queues", "priorities", "ordered", "unique", "readers", "pinned-plain", "pinned", "dump",
	}},
}

// latencyCharts have a bar for each percentile.
var latencyCharts = []string{"latency", "latency-load", "late", "late-pinned"}

// windowCharts have a line for each contestant.
var windowCharts = []string{"steady", "backlog", "pinned-plain", "pinned", "dump", "readers"}

// drawCharts writes an SVG file for each chart that there are results for.
func drawCharts(folder string, results []Result) error {
	if err := os.MkdirAll(folder, 0o755); err != nil {
		return err
	}
	all := groupResults(results)
	for _, chart := range rateCharts {
		bars := barChart{title: chart.title, unit: "jobs/s (median, spread of the runs)"}
		for _, scenario := range chart.scenarios {
			bars.add(all, scenario, scenario, rate)
		}
		if err := bars.save(filepath.Join(folder, chart.file+".svg"), all.contestants()); err != nil {
			return err
		}
	}
	for _, scenario := range latencyCharts {
		bars := barChart{title: "From commit to start: " + scenario, unit: "ms (median, spread of the runs)"}
		for _, p := range []struct {
			name string
			of   func(Result) *float64
		}{
			{"p50", func(r Result) *float64 { return r.P50 }},
			{"p95", func(r Result) *float64 { return r.P95 }},
			{"p99", func(r Result) *float64 { return r.P99 }},
		} {
			bars.add(all, scenario, p.name, func(r Result) float64 {
				if p.of(r) == nil {
					return 0
				}
				return *p.of(r)
			})
		}
		if err := bars.save(filepath.Join(folder, scenario+".svg"), all.contestants()); err != nil {
			return err
		}
	}
	for _, scenario := range windowCharts {
		if err := drawWindows(filepath.Join(folder, "over-time-"+scenario+".svg"), all, scenario); err != nil {
			return err
		}
	}
	return nil
}

// barChart has groups of bars, one bar of each contestant.
type barChart struct {
	title, unit string
	labels      []string
	bars        []map[string]bar // by contestant
}

type bar struct{ median, low, high float64 }

// add adds a group of bars, if any contestant has results for it.
func (c *barChart) add(all groups, scenario, label string, of func(Result) float64) {
	bars := map[string]bar{}
	for _, contestant := range all.contestants() {
		if g := all.find(scenario, contestant); g != nil && len(g.runs) > 0 {
			values := g.values(of)
			bars[contestant] = bar{g.median(of), values[0], values[len(values)-1]}
		}
	}
	if len(bars) > 0 {
		c.labels, c.bars = append(c.labels, label), append(c.bars, bars)
	}
}

const (
	chartHeight = 9 * vg.Centimeter
	legendRoom  = 1.3 // how much higher than its highest bar or line a chart is
)

// save draws the chart, unless it would be empty.
func (c *barChart) save(path string, contestants []string) error {
	if len(c.labels) == 0 {
		return nil
	}
	p := newPlot(c.title, c.unit)
	width, highest := vg.Points(16), 0.0
	for i, name := range contestants {
		var values plotter.Values
		var spread spreadPoints
		offset := vg.Length(float64(i)-float64(len(contestants)-1)/2) * width
		for x, bars := range c.bars {
			b := bars[name]
			values = append(values, b.median)
			if b.high > b.low {
				spread.add(float64(x), b)
			}
			highest = max(highest, b.high)
		}
		if slices.Max(values) == 0 {
			continue
		}
		drawn, err := plotter.NewBarChart(values, width)
		if err != nil {
			return fmt.Errorf("%s: %w", path, err)
		}
		drawn.Color, drawn.LineStyle.Width, drawn.Offset = contestantColor(name), 0, offset
		p.Add(drawn)
		if len(spread.XYs) > 0 {
			whiskers, err := plotter.NewYErrorBars(spread)
			if err != nil {
				return fmt.Errorf("%s: %w", path, err)
			}
			p.Add(&shifted{whiskers, offset})
		}
		p.Legend.Add(name, drawn)
	}
	p.NominalX(c.labels...)
	p.X.Min, p.X.Max = -0.6, float64(len(c.labels))-0.4 // room for the outer bars
	p.Y.Max = highest * legendRoom
	groupWidth := vg.Length(len(contestants)+1) * width
	return p.Save(max(14*vg.Centimeter, groupWidth*vg.Length(len(c.labels))+4*vg.Centimeter), chartHeight, path)
}

// drawWindows draws the rate over time of each contestant's run that is nearest
// to its median.
func drawWindows(path string, all groups, scenario string) error {
	p := newPlot("Over time: "+scenario, "jobs/s")
	p.X.Label.Text = "seconds"
	highest := 0.0
	for _, contestant := range all.contestants() {
		g := all.find(scenario, contestant)
		if g == nil || len(g.runs) == 0 {
			continue
		}
		var points plotter.XYs
		run := g.typical()
		for i, v := range run.Windows {
			points = append(points, plotter.XY{X: (float64(i) + 0.5) * run.WindowSeconds, Y: v})
		}
		line, err := plotter.NewLine(points)
		if err != nil {
			return fmt.Errorf("%s: %w", path, err)
		}
		line.Color, line.Width = contestantColor(contestant), vg.Points(1.5)
		p.Add(line)
		p.Legend.Add(contestant, line)
		highest = max(highest, slices.Max(run.Windows))
	}
	if highest == 0 {
		return nil
	}
	p.X.Min, p.Y.Max = 0, highest*legendRoom
	return p.Save(16*vg.Centimeter, chartHeight, path)
}

// typical is the run whose rate is nearest to the median.
func (g *group) typical() Result {
	m := g.median(rate)
	return slices.MinFunc(g.runs, func(a, b Result) int {
		return cmp.Compare(math.Abs(rate(a)-m), math.Abs(rate(b)-m))
	})
}

func newPlot(title, unit string) *plot.Plot {
	p := plot.New()
	p.BackgroundColor = color.White // legible on a dark page, too
	p.Title.Text, p.Title.Padding = title, vg.Points(8)
	p.Y.Label.Text, p.Y.Min = unit, 0
	p.Y.Tick.Marker = plot.TickerFunc(wholeTicks)
	p.Legend.Top = true
	p.Legend.YOffs = vg.Points(4)
	grid := plotter.NewGrid()
	grid.Vertical.Width = 0
	p.Add(grid)
	return p
}

// wholeTicks are the default ones without an exponent.
func wholeTicks(low, high float64) []plot.Tick {
	ticks := plot.DefaultTicks{}.Ticks(low, high)
	for i, tick := range ticks {
		if !tick.IsMinor() {
			ticks[i].Label = strconv.FormatFloat(tick.Value, 'f', -1, 64)
		}
	}
	return ticks
}

// contestantColor is the same in all charts.
func contestantColor(name string) color.Color {
	switch name {
	case "simplequeue":
		return color.RGBA{R: 0x1f, G: 0x77, B: 0xb4, A: 0xff}
	case "river":
		return color.RGBA{R: 0xff, G: 0x7f, B: 0x0e, A: 0xff}
	case "floor":
		return color.RGBA{R: 0x9a, G: 0x9a, B: 0x9a, A: 0xff}
	}
	return color.RGBA{R: 0x2c, G: 0xa0, B: 0x2c, A: 0xff}
}

// spreadPoints are the tops of bars with the spread of what they stand for.
type spreadPoints struct {
	plotter.XYs
	plotter.YErrors
}

func (s *spreadPoints) add(x float64, b bar) {
	s.XYs = append(s.XYs, plotter.XY{X: x, Y: b.median})
	s.YErrors = append(s.YErrors, struct{ Low, High float64 }{b.median - b.low, b.high - b.median})
}

// shifted draws error bars beside their place on the axis, as bars are.
type shifted struct {
	*plotter.YErrorBars
	by vg.Length
}

func (s *shifted) Plot(c draw.Canvas, p *plot.Plot) {
	c.Min.X += s.by
	c.Max.X += s.by
	s.YErrorBars.Plot(c, p)
}
