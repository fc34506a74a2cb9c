package simplequeue

// FinishAside returns the options with every outcome sent through
// job_finished, where the janitor picks it up.
func (o Options) FinishAside() Options {
	o.finishAside = true
	return o
}
