package simplequeue

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"reflect"
	"strconv"
	"strings"
	"unicode/utf16"
	"unicode/utf8"
)

func encodeJSON(v any) (text []byte, err error) {
	if raw, ok := v.(json.RawMessage); ok {
		if !json.Valid(raw) {
			return nil, errors.New("json.RawMessage is not valid JSON")
		}
		return raw, nil
	}
	defer func() {
		if p := recover(); p != nil {
			text, err = nil, fmt.Errorf("encoder panicked: %v", p)
		}
	}()
	text, err = json.Marshal(v)
	if err == nil && bytes.Contains(text, []byte(`\ufffd`)) && invalidText(reflect.ValueOf(v), 0) {
		return nil, errors.New("a string is not valid UTF-8: use Raw for bytes")
	}
	return text, err
}

// invalidText reports whether a value holds a string that is not UTF-8, which
// the encoder replaces without a word.
func invalidText(v reflect.Value, depth int) bool {
	if depth > 1000 {
		return false
	}
	switch v.Kind() {
	case reflect.String:
		return !utf8.ValidString(v.String())
	case reflect.Pointer, reflect.Interface:
		return invalidText(v.Elem(), depth+1)
	case reflect.Map:
		for it := v.MapRange(); it.Next(); {
			if invalidText(it.Key(), depth+1) || invalidText(it.Value(), depth+1) {
				return true
			}
		}
	case reflect.Slice, reflect.Array:
		if v.Type().Elem().Kind() == reflect.Uint8 {
			return false
		}
		for i := range v.Len() {
			if invalidText(v.Index(i), depth+1) {
				return true
			}
		}
	case reflect.Struct:
		for i := range v.NumField() {
			f := v.Type().Field(i)
			if (f.IsExported() || f.Anonymous) && f.Tag.Get("json") != "-" && invalidText(v.Field(i), depth+1) {
				return true
			}
		}
	}
	return false
}

// textProblem says what keeps a text from being stored as it is.
func textProblem(s string, limit int) string {
	switch {
	case len(s) > limit:
		return fmt.Sprintf("has %d bytes, at most %d are allowed", len(s), limit)
	case !utf8.ValidString(s):
		return "is not valid UTF-8"
	case strings.ContainsRune(s, 0):
		return "holds a NUL character, which PostgreSQL cannot store"
	}
	return ""
}

// jsonSize is how many bytes valid JSON has when jsonb prints it, but for the
// spaces that it puts between values, and never less than the text has: numbers
// are printed with all their digits, 1e5 as 100000. Otherwise it says what keeps
// the text from being stored as jsonb: what PostgreSQL's text type cannot hold,
// and numbers beyond its numeric.
// https://www.postgresql.org/docs/current/datatype-json.html
func jsonSize(text []byte) (size int64, problem string) {
	if !utf8.Valid(text) {
		return 0, "holds invalid UTF-8: use Raw for bytes"
	}
	if bytes.Contains(text, []byte(`\u`)) {
		if problem := escapeProblem(text); problem != "" {
			return 0, problem
		}
	}
	growth, problem := numbers(text)
	return int64(len(text)) + growth, problem
}

// escapeProblem walks the \u escapes of JSON text. An escaped backslash before
// a u is no escape.
func escapeProblem(text []byte) string {
	for i := 0; i+1 < len(text); i++ {
		if text[i] != '\\' {
			continue
		}
		i++
		if text[i] != 'u' {
			continue
		}
		code := hexRune(text[i+1 : i+5])
		i += 4
		switch {
		case code == 0:
			return `holds a NUL character (\u0000), which PostgreSQL cannot store: use Raw for bytes`
		case code >= 0xDC00 && code <= 0xDFFF:
			return fmt.Sprintf(`holds a lone surrogate (\u%04x), which is no character`, code)
		case utf16.IsSurrogate(code):
			if i+6 >= len(text) || text[i+1] != '\\' || text[i+2] != 'u' || utf16.DecodeRune(code, hexRune(text[i+3:i+7])) == utf8.RuneError {
				return fmt.Sprintf(`holds a lone surrogate (\u%04x), which is no character`, code)
			}
			i += 6
		}
	}
	return ""
}

func hexRune(digits []byte) rune {
	n, err := strconv.ParseUint(string(digits), 16, 32)
	if err != nil {
		return 0
	}
	return rune(n)
}

// depthProblem says of valid JSON that it is nested more than so many levels
// deep.
func depthProblem(text []byte, most int) string {
	if len(text) <= 2*most {
		return "" // each level has two brackets
	}
	level := 0
	for i := 0; i < len(text); i++ {
		switch text[i] {
		case '"':
			i = stringEnd(text, i+1)
		case '[', '{':
			if level++; level > most {
				return fmt.Sprintf("is nested more than %d levels deep", most)
			}
		case ']', '}':
			level--
		}
	}
	return ""
}

// numbers says by how many bytes the numbers of JSON text grow when they are
// printed, and whether there is one that PostgreSQL's numeric cannot hold.
func numbers(text []byte) (growth int64, problem string) {
	for i := 0; i < len(text); i++ {
		switch c := text[i]; {
		case c == '"':
			i = stringEnd(text, i+1)
		case c == '-' || '0' <= c && c <= '9':
			from := i
			for i+1 < len(text) && strings.IndexByte("0123456789+-.eE", text[i+1]) >= 0 {
				i++
			}
			n := text[from : i+1]
			printed, ok := numeric(n)
			if !ok {
				return 0, fmt.Sprintf("holds the number %s, which is beyond PostgreSQL's numeric: send it as a string", shorten(string(n)))
			}
			growth += int64(max(0, printed-len(n)))
		}
	}
	return growth, ""
}

// stringEnd is where the string ends whose first byte is at i.
func stringEnd(text []byte, i int) int {
	for {
		n := bytes.IndexByte(text[i:], '"')
		if n < 0 {
			return len(text)
		}
		i += n
		escapes := 0
		for text[i-1-escapes] == '\\' {
			escapes++
		}
		if escapes%2 == 0 {
			return i
		}
		i++
	}
}

// numeric reports whether a number of JSON fits into PostgreSQL's numeric, and
// how many bytes that prints for it.
func numeric(n []byte) (printed int, ok bool) {
	mantissa, exponent := n, 0
	at := bytes.IndexAny(n, "eE")
	if at >= 0 {
		var err error
		if exponent, err = strconv.Atoi(string(n[at+1:])); err != nil {
			return 0, false
		}
		mantissa = n[:at]
	}
	if len(mantissa) > maxJSONDigits || exponent > maxJSONExponent || exponent < -maxJSONDigits+len(mantissa) {
		return 0, false
	}
	if at < 0 {
		return len(n), true
	}
	return printedSize(mantissa, exponent), true
}

// printedSize is how many bytes a number has when its exponent is written out.
func printedSize(mantissa []byte, exponent int) int {
	unsigned := bytes.TrimPrefix(mantissa, []byte("-"))
	size := len(mantissa) - len(unsigned)
	whole, fraction, _ := bytes.Cut(unsigned, []byte("."))
	before := len(whole) + exponent // digits before the point
	if whole[0] == '0' {
		significant := bytes.TrimLeft(fraction, "0")
		if before = exponent - (len(fraction) - len(significant)); len(significant) == 0 {
			size, before = 0, 1 // zero has no sign
		}
	}
	size += max(1, before)
	if after := len(fraction) - exponent; after > 0 {
		size += 1 + after
	}
	return size
}

// writtenOut says of a size that it is not that of the text.
func writtenOut(size int64, text int) string {
	if size > int64(text) {
		return ", its numbers written out"
	}
	return ""
}

func shorten(s string) string { return clean(s, 60) }
