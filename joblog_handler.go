package simplequeue

import (
	"context"
	"encoding/json"
	"fmt"
	"log/slog"
	"math"
	"slices"
	"time"
)

const (
	maxLineMessage = 8 << 10
	maxLineAttrs   = 16 << 10
)

// lineHandler is the slog.Handler of an attempt.
type lineHandler struct {
	buffer *lineBuffer
	of     *attemptLines
	with   []groupAttrs // of WithAttrs, in order
	groups []string     // of WithGroup, outermost first
}

// groupAttrs are attributes inside groups.
type groupAttrs struct {
	groups []string
	attrs  []slog.Attr
}

func (h *lineHandler) Enabled(_ context.Context, level slog.Level) bool {
	return level >= h.buffer.level.Level()
}

func (h *lineHandler) WithAttrs(attrs []slog.Attr) slog.Handler {
	h2 := *h
	h2.with = append(slices.Clip(h.with), groupAttrs{h.groups, attrs})
	return &h2
}

func (h *lineHandler) WithGroup(name string) slog.Handler {
	if name == "" {
		return h
	}
	h2 := *h
	h2.groups = append(slices.Clip(h.groups), name)
	return &h2
}

func (h *lineHandler) Handle(_ context.Context, r slog.Record) error {
	root := map[string]any{}
	for _, w := range h.with {
		putIn(root, w.groups, w.attrs)
	}
	attrs := make([]slog.Attr, 0, r.NumAttrs())
	r.Attrs(func(a slog.Attr) bool { attrs = append(attrs, a); return true })
	putIn(root, h.groups, attrs)
	at := r.Time
	if at.IsZero() {
		at = time.Now()
	}
	h.buffer.add(h.of, at, r.Level, clean(r.Message, maxLineMessage), attrsText(root))
	return nil
}

// attrsText is what is stored of attributes: all of them, or how large they are.
func attrsText(root map[string]any) []byte {
	if len(root) == 0 {
		return nil
	}
	text, _, err := encodeValue("attributes", root, maxLineAttrs)
	if err != nil {
		text, _ = json.Marshal(map[string]string{"simplequeue.attrs_dropped": clean(err.Error(), maxErrorText)})
	}
	return text
}

// putIn puts attributes into the groups within root. A group without any is left
// out.
func putIn(root map[string]any, groups []string, attrs []slog.Attr) {
	inner := map[string]any{}
	for _, a := range attrs {
		putAttr(inner, a)
	}
	if len(inner) == 0 {
		return
	}
	for _, g := range groups {
		next, ok := root[clean(g, maxLineMessage)].(map[string]any)
		if !ok {
			next = map[string]any{}
			root[clean(g, maxLineMessage)] = next
		}
		root = next
	}
	for k, v := range inner {
		root[k] = v
	}
}

func putAttr(into map[string]any, a slog.Attr) {
	a.Value = a.Value.Resolve()
	if a.Equal(slog.Attr{}) {
		return
	}
	if a.Value.Kind() != slog.KindGroup {
		into[clean(a.Key, maxLineMessage)] = plainValue(a.Value)
		return
	}
	var groups []string
	if a.Key != "" {
		groups = []string{a.Key}
	}
	putIn(into, groups, a.Value.Group())
}

// plainValue is a value as JSON can hold it.
func plainValue(v slog.Value) any {
	switch v.Kind() {
	case slog.KindBool, slog.KindInt64, slog.KindUint64:
		return v.Any()
	case slog.KindFloat64:
		if f := v.Float64(); !math.IsNaN(f) && !math.IsInf(f, 0) {
			return f
		}
	case slog.KindTime:
		return v.Time().Format(time.RFC3339Nano)
	case slog.KindAny:
		if err, ok := v.Any().(error); ok {
			return clean(textOf(err), maxLineAttrs)
		}
		if text, _, err := encodeValue("value", v.Any(), maxLineAttrs); err == nil {
			return json.RawMessage(text)
		}
		return clean(fmt.Sprintf("%+v", v.Any()), maxLineAttrs)
	}
	return clean(v.String(), maxLineAttrs)
}
