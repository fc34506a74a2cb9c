package simplequeue

import (
	"encoding/json"
	"reflect"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/google/uuid"
)

// TestSpooledJobsKeepEveryField fills every field that a job has, whatever is
// added to NewJob, and finds it in what a spool reads.
func TestSpooledJobsKeepEveryField(t *testing.T) {
	t.Parallel()
	var job NewJob
	fill(t, reflect.ValueOf(&job).Elem(), "NewJob")
	job.Payload = json.RawMessage(`{"a":"<&>\u2028","b":[1,2.50]}`)
	want := SpooledJobs{
		Jobs: []NewJob{job, {Queue: "least", ID: uuid.New()}, {Queue: "null", Payload: json.RawMessage("null")}}, At: time.Now().UTC().Truncate(0), ParentID: uuid.New(), RootID: uuid.New(),
	}
	text, err := want.MarshalBinary()
	if err != nil {
		t.Fatal(err)
	}
	var got SpooledJobs
	if err := got.UnmarshalBinary(text); err != nil {
		t.Fatalf("%v in %s", err, text)
	}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("changed on the way (-want +got):\n%s\n%s", diff, text)
	}
}

// fill sets a value and all that it holds to something that is not zero.
func fill(t *testing.T, v reflect.Value, path string) {
	t.Helper()
	switch v.Interface().(type) {
	case time.Time:
		v.Set(reflect.ValueOf(time.Date(2031, 2, 3, 4, 5, 6, 789, time.UTC)))
		return
	case uuid.UUID:
		v.Set(reflect.ValueOf(uuid.New()))
		return
	}
	switch v.Kind() {
	case reflect.String:
		v.SetString("text of " + path)
	case reflect.Int, reflect.Int64, reflect.Int32:
		v.SetInt(3)
	case reflect.Float64:
		v.SetFloat(1.5)
	case reflect.Bool:
		v.SetBool(true)
	case reflect.Slice:
		v.Set(reflect.MakeSlice(v.Type(), 2, 2))
		for i := range 2 {
			fill(t, v.Index(i), path)
		}
	case reflect.Uint8:
		v.SetUint(200)
	case reflect.Map:
		v.Set(reflect.MakeMap(v.Type()))
		v.SetMapIndex(reflect.ValueOf("key"), reflect.ValueOf("value"))
	case reflect.Struct:
		for i := range v.NumField() {
			fill(t, v.Field(i), path+"."+v.Type().Field(i).Name)
		}
	case reflect.Pointer:
		v.Set(reflect.New(v.Type().Elem()))
		fill(t, v.Elem(), path)
	case reflect.Interface: // Payload
	default:
		t.Fatalf("%s is a %v: can a spool keep that?", path, v.Type())
	}
}
