package couch

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"strconv"
	"strings"
	"time"
)

const (
	// Rows that follow one another within quiet are one page, which is yielded
	// at the latest after together.
	together = 100 * time.Millisecond
	quiet    = 10 * time.Millisecond
	// maxStream bounds one request of a continuous feed.
	maxStream = time.Hour
	// maxFails is how many continuous feeds in a row may bring nothing before
	// the client turns to long polls: a proxy may hold lines back.
	maxFails = 3
)

var errSilent = errors.New("no sign of life")

// stream waits at the head by feed=continuous until the connection ends and
// yields what comes. Whatever ends it, the iteration goes on with a page from
// the last seq that was yielded, which also finds out what is wrong. It returns
// false if the caller has had enough.
func (c *Client) stream(ctx context.Context, at *position, yield func(Page, error) bool) bool {
	begun, since := time.Now(), at.since
	lines := make(chan line)
	call, cancel := context.WithTimeout(ctx, maxStream)
	ended := make(chan error, 1)
	heard := false
	go func() {
		defer close(lines)
		var err error
		heard, err = c.listen(call, since, at.info.IncludeDocs, lines)
		ended <- err
	}()
	defer func() { // joined before anything else happens
		cancel()
		for range lines {
		}
	}()

	for open := true; open; {
		var page Page
		page, open = gather(lines, at.full, c.o.MaxBody)
		if page.LastSeq == "" || page.LastSeq == at.since {
			continue
		}
		at.since = page.LastSeq
		if !yield(page, nil) {
			return false
		}
	}
	err := <-ended
	at.head = false
	if ctx.Err() != nil {
		return true
	}
	c.o.Log.InfoContext(ctx, "the continuous feed ended", "feed", c.base, "since", at.since, "after", time.Since(begun), "err", err)
	short := time.Since(begun) < c.o.Idle
	switch {
	case at.since != since, heard && !short:
		at.fails = 0
	case errors.Is(err, ErrRefused):
		at.wait, at.head = waitLong, true
	default:
		if at.fails++; at.fails == maxFails {
			at.wait = waitLong
		}
		if short && errors.Is(err, ErrUnavailable) {
			c.rest(ctx)
		}
	}
	return true
}

// gather makes a page of the lines that arrive together, at most limit rows and
// about size bytes. It returns false once there will be no more.
func gather(lines <-chan line, limit int, size int64) (page Page, open bool) {
	l, open := <-lines
	if !open {
		return page, false
	}
	deadline := time.Now().Add(together)
	timer := time.NewTimer(quiet)
	defer timer.Stop()
	bytes := int64(0)
	for n := 1; ; n++ {
		if l.row && !strings.HasPrefix(l.ID, "_design/") {
			page.Changes = append(page.Changes, l.Change)
		}
		page.LastSeq = l.Seq
		if bytes += int64(len(l.Doc)); n >= limit || bytes >= size {
			return page, true
		}
		timer.Reset(min(quiet, time.Until(deadline)))
		select {
		case l, open = <-lines:
			if !open {
				return page, false
			}
		case <-timer.C:
			return page, true
		}
	}
}

// listen sends the lines of one continuous feed, until it ends or is silent for
// three heartbeats. It says whether it heard anything at all.
func (c *Client) listen(ctx context.Context, since string, docs bool, lines chan<- line) (heard bool, err error) {
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	silence := 3 * c.o.Heartbeat
	watch := time.AfterFunc(silence, func() { cancel(errSilent) })
	defer watch.Stop()
	defer func() {
		if errors.Is(context.Cause(ctx), errSilent) {
			err = fmt.Errorf("%w for %v: %w", errSilent, silence, ErrUnavailable)
		}
	}()

	query := url.Values{
		"feed":      {"continuous"},
		"since":     {since},
		"heartbeat": {strconv.FormatInt(c.o.Heartbeat.Milliseconds(), 10)},
	}
	if docs {
		query.Set("include_docs", "true")
	}
	// What compresses holds lines back.
	resp, err := c.get(ctx, c.base+"/_changes?"+query.Encode(), http.Header{"Accept-Encoding": {"identity"}})
	if err != nil {
		return false, err
	}
	defer resp.Body.Close()
	in := lineReader{bufio.NewReaderSize(resp.Body, 64<<10), c.o.MaxBody}
	for {
		l, err := in.next()
		if err != nil {
			return heard, err
		}
		heard = true
		watch.Stop() // the caller's time is not the feed's
		if l.Seq != "" {
			select {
			case lines <- l:
			case <-ctx.Done():
				return heard, ctx.Err()
			}
		}
		if l.last {
			return heard, nil
		}
		watch.Reset(silence)
	}
}

// lineReader reads a continuous feed: one object a line, blank lines between.
type lineReader struct {
	in  *bufio.Reader
	max int64 // bytes of a line
}

// next returns a line; one without a Seq is a heartbeat. The end of the feed
// within a line, or without its last line, is ErrUnavailable.
func (r lineReader) next() (line, error) {
	var long []byte
	for {
		part, err := r.in.ReadSlice('\n')
		if int64(len(long)+len(part)) > r.max {
			return line{}, fmt.Errorf("a line of more than %d bytes: %w", r.max, ErrTooLarge)
		}
		switch {
		case err == nil && long == nil:
			return readLine(part)
		case err == nil:
			return readLine(append(long, part...))
		case errors.Is(err, bufio.ErrBufferFull):
			long = append(long, part...)
		default:
			if errors.Is(err, io.EOF) {
				err = io.ErrUnexpectedEOF
			}
			return line{}, fmt.Errorf("%w: %w", ErrUnavailable, err)
		}
	}
}
