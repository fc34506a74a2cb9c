package store

// HorizonText is the first statement of a page.
func (f *Filter) HorizonText(p Place, slice int) (string, []any) { return f.horizon(p, slice) }

// PageText is the second one.
func (f *Filter) PageText(p Place, upto string, limit int) (string, []any) {
	q := &query{}
	text := f.rows(p, f.pick(q, p, upto, limit))
	return text, q.args
}
