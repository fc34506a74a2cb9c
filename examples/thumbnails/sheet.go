package main

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"time"

	"github.com/simplequeue/simplequeue"
)

// sheets is the queue of the contact sheets.
const sheets = "contact-sheets"

// maxOnSheet is how many thumbnails a contact sheet shows. A full one takes
// about 33 MB of memory while it is drawn.
const maxOnSheet = 240

// lookAgain is how often the contact sheet asks for its thumbnails.
const lookAgain = 200 * time.Millisecond

// sheetJob is the payload of a contact sheet.
type sheetJob struct {
	Folder string `json:"folder"` // of the images
	Out    string `json:"out"`    // of the thumbnails
}

func (s sheetJob) path() string { return filepath.Join(s.Out, "contact-sheet.png") }

// newSheetJob is the job of one contact sheet. Its key keeps two runs that work
// on the same folders at the same time from drawing it twice.
func newSheetJob(c *config) simplequeue.NewJob {
	key := sha256.Sum256([]byte(c.folder + "\x00" + c.out))
	return simplequeue.NewJob{
		Queue:     sheets,
		UniqueKey: hex.EncodeToString(key[:]),
		Payload:   sheetJob{Folder: c.folder, Out: c.out},
		Delay:     lookAgain,
	}
}

// sheetHandler draws a contact sheet when no thumbnail is left to make; until
// then it puts the job off.
func sheetHandler() simplequeue.Handler {
	return simplequeue.Typed(sheets, func(ctx context.Context, _ *simplequeue.Job, p sheetJob) error {
		live, err := liveThumbnails(ctx, simplequeue.FromContext(ctx))
		if err != nil {
			return err
		}
		if live > 0 {
			return simplequeue.RescheduleAfter(lookAgain)
		}
		shown, left, err := onSheet(ctx, p)
		if err != nil {
			return err
		}
		if len(shown) == 0 {
			return simplequeue.Cancel(errors.New("there is no thumbnail to show"))
		}
		title := fmt.Sprintf("%s below %s", count(len(shown), "thumbnail"), p.Folder)
		if left > 0 {
			title = fmt.Sprintf("the first %s", title)
		}
		img, err := drawSheet(ctx, title, shown)
		if err != nil {
			return err
		}
		return writePNG(p.path(), img)
	})
}

// caption is a thumbnail on a contact sheet.
type caption struct {
	text string
	path string // of the thumbnail
}

// onSheet lists the thumbnails of the pictures in the folder, each content
// once, ordered by file name, and counts the files it has not looked at.
func onSheet(ctx context.Context, p sheetJob) (shown []caption, left int, err error) {
	pictures, err := find(ctx, p.Folder, p.Out, func(string, error) {})
	if err != nil {
		return nil, 0, err
	}
	seen := map[string]bool{}
	for i, picture := range pictures {
		if ctx.Err() != nil {
			return nil, 0, context.Cause(ctx)
		}
		if len(shown) == maxOnSheet {
			return shown, len(pictures) - i, nil
		}
		if picture.hash, err = hash(picture.path); err != nil || seen[picture.hash] {
			continue // a file that cannot be read has no thumbnail
		}
		seen[picture.hash] = true
		path := picture.thumbnail(p.Out)
		if _, err := os.Stat(path); err == nil {
			shown = append(shown, caption{text: filepath.Base(picture.name), path: path})
		}
	}
	return shown, 0, nil
}
