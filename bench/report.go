package main

import (
	"cmp"
	"encoding/json"
	"fmt"
	"io"
	"os"
	"slices"
	"text/tabwriter"
)

// yardstick is the contestant that the others are compared with.
const yardstick = "river"

// report keeps the results.
type report struct {
	file    *os.File // nil for none
	results []Result
}

func newReport(path string) (*report, error) {
	if path == "" {
		return &report{}, nil
	}
	f, err := os.OpenFile(path, os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o644)
	return &report{file: f}, err
}

// add writes a result as a line of JSON.
func (r *report) add(result Result) error {
	r.results = append(r.results, result)
	line, err := json.Marshal(result)
	if err != nil {
		return err
	}
	line = append(line, '\n')
	if _, err := os.Stdout.Write(line); err != nil {
		return err
	}
	if r.file == nil {
		return nil
	}
	_, err = r.file.Write(line)
	return err
}

func (r *report) close() error {
	if r.file == nil {
		return nil
	}
	return r.file.Close()
}

// table writes the medians, and how many times the yardstick's rate each is.
func (r *report) table(to io.Writer) error {
	type key struct{ scenario, contestant string }
	groups := map[key][]Result{}
	var order []key
	for _, result := range r.results {
		k := key{result.Scenario, result.Contestant}
		if groups[k] == nil {
			order = append(order, k)
		}
		groups[k] = append(groups[k], result)
	}
	slices.SortStableFunc(order, func(a, b key) int { return cmp.Compare(a.scenario, b.scenario) })
	rate := func(x Result) float64 { return x.JobsPerS }
	w := tabwriter.NewWriter(to, 0, 0, 2, ' ', tabwriter.AlignRight)
	fmt.Fprintf(w, "\nscenario\tcontestant\truns\tjobs/s\tmin\tmax\tx %s\tclient us/job\tserver us/job\tWAL B/job\t\n", yardstick)
	for _, k := range order {
		g := groups[k]
		ratio := "-"
		if peer := groups[key{k.scenario, yardstick}]; peer != nil {
			ratio = fmt.Sprintf("%.2f", median(g, rate)/median(peer, rate))
		}
		rates := values(g, rate)
		fmt.Fprintf(w, "%s\t%s\t%d\t%.0f\t%.0f\t%.0f\t%s\t%.1f\t%.1f\t%.0f\t\n", k.scenario, k.contestant, len(g),
			median(g, rate), rates[0], rates[len(rates)-1], ratio,
			median(g, func(x Result) float64 { return x.ClientCPUPerJob }),
			median(g, func(x Result) float64 { return x.ServerCPUPerJob }),
			median(g, func(x Result) float64 { return x.WALPerJob }))
	}
	return w.Flush()
}

func values(list []Result, value func(Result) float64) []float64 {
	all := make([]float64, len(list))
	for i, x := range list {
		all[i] = value(x)
	}
	slices.Sort(all)
	return all
}

func median(list []Result, value func(Result) float64) float64 {
	all := values(list, value)
	return (all[(len(all)-1)/2] + all[len(all)/2]) / 2
}
