package main

import (
	"bytes"
	"fmt"
	"image"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/simplequeue/simplequeue"
	"github.com/simplequeue/simplequeue/internal/pgtest"
	"github.com/simplequeue/simplequeue/migrate"
)

func TestMain(m *testing.M) { pgtest.Main(m) }

const (
	deadSQL = `SELECT coalesce(payload ->> 'name', queue) || ': ' || state || ' after ' || attempt || ': ' || (errors -> -1 ->> 'error')
		FROM simplequeue.job_queue_dlq ORDER BY 1`
	doneSQL = `SELECT coalesce(payload ->> 'name', queue)
		FROM simplequeue.job_queue_archive ORDER BY 1`
)

func TestRun(t *testing.T) {
	p := newProgram(t)
	wide := encoded(t, "png", 400, 200)
	p.write("wide.png", wide)
	p.write("copies/wide again.PNG", wide)
	p.write("copies/deeper/and again.png", wide)
	p.write("tall.jpeg", encoded(t, "jpeg", 100, 1000))
	p.write("small.gif", encoded(t, "gif", 20, 10))
	p.write("thin.png", encoded(t, "png", 1000, 1))
	p.write("huge.png", encoded(t, "png", 900, 900))
	cut := encoded(t, "jpeg", 300, 300)[:3000]
	p.write("cut.jpg", cut)
	p.write("text.png", []byte("no image"))
	p.write("empty.gif", nil)
	p.write("notes.txt", []byte("not looked at"))

	// What a run that did not finish may have left: jobs whose file is gone, or
	// can be opened but not read.
	if err := migrate.UpPool(t.Context(), p.pool, "simplequeue"); err != nil {
		t.Fatal(err)
	}
	left, err := simplequeue.New(p.pool, simplequeue.Options{})
	if err != nil {
		t.Fatal(err)
	}
	unreadable := t.TempDir()
	if _, err := left.InsertMany(t.Context(), []simplequeue.NewJob{
		{Queue: thumbnails, MaxAttempts: 2, Payload: thumbnailJob{Name: "gone.png", Source: "/nonexistent/gone.png"}},
		{Queue: thumbnails, MaxAttempts: 1, Payload: thumbnailJob{Name: "unreadable.png", Source: unreadable}},
	}); err != nil {
		t.Fatal(err)
	}

	out := p.run("-memory", "3000000", "-workers", "3", p.folder)
	t.Log("\n" + out)
	for _, want := range []string{
		"Found 10 images below ",
		"Inserted 8 jobs, 2 duplicates skipped\n",
		"  completed      5\n",
		"  failed         2\n",
		"  unprocessable  4\n",
		"Contact sheet  " + filepath.Join(p.out, "contact-sheet.png") + "\n",
	} {
		if !strings.Contains(out, want) {
			t.Errorf("the output lacks %q", want)
		}
	}
	if strings.Contains(out, "temporary") {
		t.Error("the output calls the database temporary")
	}

	wantSizes := map[string]string{
		"wide.png": "160x80", "copies/wide again.PNG": "160x80", "copies/deeper/and again.png": "160x80",
		"tall.jpeg": "16x160", "small.gif": "20x10", "thin.png": "160x1",
	}
	if diff := cmp.Diff(wantSizes, p.sizes()); diff != "" {
		t.Errorf("thumbnails (-want +got):\n%s", diff)
	}
	_, _, cutErr := image.Decode(bytes.NewReader(cut))
	wantDead := []string{
		"cut.jpg: unprocessable after 1: " + cutErr.Error(),
		"empty.gif: unprocessable after 1: image: unknown format",
		"gone.png: failed after 2: open /nonexistent/gone.png: no such file or directory",
		"huge.png: unprocessable after 1: 900 x 900 pixels take 7848000 bytes of memory, the budget is 3000000: run with -memory 7848000",
		"text.png: unprocessable after 1: image: unknown format",
		"unreadable.png: failed after 1: read " + unreadable + ": is a directory",
	}
	if diff := cmp.Diff(wantDead, p.list(deadSQL)); diff != "" {
		t.Errorf("dead letters (-want +got):\n%s", diff)
	}
	for _, line := range wantDead {
		name, reason, _ := strings.Cut(line, ": ")
		_, reason, _ = strings.Cut(reason, ": ")
		if row := regexp.MustCompile(`(?m)^  ` + regexp.QuoteMeta(name) + ` .*  ` + regexp.QuoteMeta(reason) + `$`); !row.MatchString(out) {
			t.Errorf("the output has no row %q", row)
		}
	}
	checkSheet(t, filepath.Join(p.out, "contact-sheet.png"), 4)

	names, err := os.ReadDir(p.out)
	if err != nil || len(names) != 5 {
		t.Errorf("the folder holds %d files, want 4 thumbnails and the sheet: %v (%v)", len(names), names, err)
	}
}

// A second run on the same database repeats nothing.
func TestRunAgain(t *testing.T) {
	p := newProgram(t)
	p.out = filepath.Join(p.folder, "thumbnails") // holds images, but none to look at
	p.write("good.png", encoded(t, "png", 300, 200))
	p.write("same.png", encoded(t, "png", 300, 200))
	p.write("other.png", encoded(t, "png", 200, 300))
	p.write("broken.png", []byte("no image"))
	p.write("huge.png", encoded(t, "png", 900, 900))
	const little, more = "3000000", "9000000"

	expect := func(memory, want string, done, dead []string) {
		t.Helper()
		out := p.run("-memory", memory, p.folder)
		if !strings.Contains(out, want+"\n") {
			t.Errorf("the output lacks %q:\n%s", want, out)
		}
		if diff := cmp.Diff(done, p.list(doneSQL)); diff != "" {
			t.Errorf("archive (-want +got):\n%s", diff)
		}
		if diff := cmp.Diff(dead, p.list(`SELECT payload ->> 'name' FROM simplequeue.job_queue_dlq ORDER BY 1`)); diff != "" {
			t.Errorf("dead letters (-want +got):\n%s", diff)
		}
	}
	expect(little, "Inserted 4 jobs, 1 duplicate skipped",
		[]string{"contact-sheets", "good.png", "other.png"}, []string{"broken.png", "huge.png"})
	expect(little, "Inserted 0 jobs, 3 already done, 2 known to be broken",
		[]string{"contact-sheets", "contact-sheets", "good.png", "other.png"}, []string{"broken.png", "huge.png"})

	// A thumbnail that is gone is made again; so is what may do better with
	// more memory.
	pictures, err := find(t.Context(), p.folder, p.out, func(string, error) {})
	if err != nil {
		t.Fatal(err)
	}
	for _, picture := range pictures {
		if picture.name != "other.png" {
			continue
		}
		if picture.hash, err = hash(picture.path); err != nil {
			t.Fatal(err)
		}
		if err := os.Remove(picture.thumbnail(p.out)); err != nil {
			t.Fatal(err)
		}
	}
	expect(more, "Inserted 3 jobs, 2 already done",
		[]string{"contact-sheets", "contact-sheets", "contact-sheets", "good.png", "huge.png", "other.png", "other.png"},
		[]string{"broken.png", "broken.png", "huge.png"})
	if got := p.sizes(); len(got) != 4 {
		t.Errorf("thumbnails: %v, want 4", got)
	}
	checkSheet(t, filepath.Join(p.out, "contact-sheet.png"), 3)
}

// Without a folder the program takes images that every reader has.
func TestToolchainImages(t *testing.T) {
	p := newProgram(t)
	out := p.run()
	t.Log("\n" + out)
	folder, err := toolchainImages(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	want, err := find(t.Context(), folder, p.out, func(path string, err error) { t.Error(path, err) })
	if err != nil {
		t.Fatal(err)
	}
	if text := fmt.Sprintf("Found %d images below ", len(want)); len(want) < 50 || !strings.Contains(out, text) {
		t.Errorf("the output lacks %q", text)
	}
	for _, file := range []string{"invalid-crc32.png", "invalid-trunc.png", "invalid-zlib.png"} {
		if !strings.Contains(strings.Join(p.list(deadSQL), "\n"), file+": unprocessable after 1: ") {
			t.Errorf("%s is not in the dead letter queue", file)
		}
	}
	if n := len(p.list(`SELECT 'live' FROM simplequeue.job WHERE finished_at IS NULL`)); n != 0 {
		t.Errorf("%d jobs are live", n)
	}
	thumbnailsMade := len(p.list(`SELECT DISTINCT unique_key FROM simplequeue.job_queue_archive WHERE queue = 'thumbnails'`))
	checkSheet(t, filepath.Join(p.out, "contact-sheet.png"), thumbnailsMade)
}

// A folder in which no image is good ends well, without a contact sheet.
func TestNothingToShow(t *testing.T) {
	p := newProgram(t)
	p.write("broken.png", []byte("no image"))
	out := p.run(p.folder)
	if want := "Contact sheet  none: cancelled, there is no thumbnail to show\n"; !strings.Contains(out, want) {
		t.Errorf("the output lacks %q:\n%s", want, out)
	}
	if _, err := os.Stat(filepath.Join(p.out, "contact-sheet.png")); err == nil {
		t.Error("there is a contact sheet")
	}
}

func TestMistakes(t *testing.T) {
	file := filepath.Join(t.TempDir(), "file")
	if err := os.WriteFile(file, nil, 0o644); err != nil {
		t.Fatal(err)
	}
	for _, c := range []struct {
		args []string
		want string
	}{
		{[]string{"-workers", "0"}, "-workers 0: must be at least 1"},
		{[]string{"-memory", "-1"}, "-memory -1: must be at least 1"},
		{[]string{"-size", "9"}, "flag provided but not defined: -size; -help lists the flags"},
		{[]string{"a", "b"}, "2 folders given, at most one is allowed"},
		{[]string{file}, file + " is not a folder"},
		{[]string{file + "s"}, "the folder of the images: "},
		{[]string{"-out", filepath.Join(file, "out"), t.TempDir()}, "name another folder with -out"},
	} {
		var out bytes.Buffer
		if err := run(t.Context(), c.args, &out); err == nil || !strings.Contains(err.Error(), c.want) {
			t.Errorf("%q: error %v, want %q", c.args, err, c.want)
		}
	}
	var out bytes.Buffer
	if err := run(t.Context(), []string{"-help"}, &out); err != nil || !strings.Contains(out.String(), "-memory bytes") {
		t.Errorf("-help: %v, %s", err, &out)
	}
	out.Reset()
	if err := run(t.Context(), []string{"-out", t.TempDir(), t.TempDir()}, &out); err != nil || !strings.Contains(out.String(), "Found 0 images") {
		t.Errorf("an empty folder: %v, %s", err, &out)
	}
}
