package couch

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"iter"
	"log/slog"
	"math/rand/v2"
	"net/http"
	"net/url"
	"strconv"
	"strings"
	"sync/atomic"
	"time"
)

// Options of New. All but URL may be left zero.
type Options struct {
	URL       string // of the database, "…/registry"; `_changes` is below it
	UserAgent string
	// Authorization is sent as the header of that name; "" for none. It goes
	// to the host of URL only.
	Authorization string
	// MirrorDocs asks a feed of EngineMirror for documents too. They carry that
	// feed's revisions: whoever wants the registry's own asks the registry.
	MirrorDocs bool
	// HTTP is what requests go through; nil: http.DefaultClient. Its rule for
	// redirects is replaced by ours. Its Timeout, if it has one, also ends
	// feeds that are held open.
	HTTP *http.Client
	Log  *slog.Logger // nil: nothing is logged

	// Idle is how long the client rests at the head of a feed that it must
	// poll, a quarter more or less by chance; 0 means 30 s.
	Idle time.Duration
	// Poll is how long a feed is asked to hold a long poll; 0 means 60 s.
	Poll time.Duration
	// Heartbeat is how often a continuous feed is asked for a sign of life. One
	// that brings no whole line for three times as long is given up. 0 means 20 s.
	Heartbeat time.Duration
	// Limit is how many rows a page may have; 0 means 10,000 without
	// documents, which is npm's own limit, and 50 with them. Of npm, and in a
	// listing, it is never more than 10,000.
	Limit int
	// MaxBody bounds an answer, decompressed, in bytes, and a line of a
	// continuous feed; 0 means 256 MiB. A page of documents beyond it is asked
	// for in smaller parts, and at last without the document.
	MaxBody int64
	// Timeout bounds one request, its answer's body included; 0 means 2
	// minutes. A long poll gets Poll more.
	Timeout time.Duration
	// Retry bounds how long one page is tried; 0 means 5 minutes.
	Retry time.Duration
}

// Client reads one feed. It starts nothing; its methods may run concurrently.
type Client struct {
	o    Options
	base string
	away atomic.Bool // it failed last, which was said
}

// New makes a client. It does not reach the feed.
func New(o Options) *Client {
	if o.HTTP == nil {
		o.HTTP = http.DefaultClient
	}
	own := *o.HTTP
	own.CheckRedirect = sameHost
	o.HTTP = &own
	if o.Log == nil {
		o.Log = slog.New(slog.DiscardHandler)
	}
	defaultTo(&o.Idle, 30*time.Second)
	defaultTo(&o.Poll, time.Minute)
	defaultTo(&o.Heartbeat, 20*time.Second)
	defaultTo(&o.MaxBody, 256<<20)
	defaultTo(&o.Timeout, 2*time.Minute)
	defaultTo(&o.Retry, 5*time.Minute)
	return &Client{o: o, base: strings.TrimRight(o.URL, "/")}
}

func defaultTo[T comparable](field *T, value T) {
	var zero T
	if *field == zero {
		*field = value
	}
}

// Server asks what kind of feed it is and where its head is. Passing failures
// are tried again, for at most Options.Retry.
func (c *Client) Server(ctx context.Context) (ServerInfo, error) {
	info, err := retry(ctx, c, "root", func() (ServerInfo, error) {
		body, err := c.fetch(ctx, c.base+"/", c.o.Timeout, nil)
		if err != nil {
			return ServerInfo{}, err
		}
		info, err := readServer(body)
		if info.Engine == EngineMirror && !c.o.MirrorDocs {
			info.IncludeDocs = false
		}
		return info, err
	})
	if err != nil {
		return ServerInfo{}, fmt.Errorf("feed %s: %w", c.base, err)
	}
	return info, nil
}

// Changes yields the feed after since ("" for its beginning), page by page in
// order, design documents left out. A document may come more than once. Without
// follow it ends at the head. With it the iteration ends with ctx: at the head it
// waits by `feed=continuous`, by long polls where the server refuses that, and by
// polling where it refuses both or, as npm's service, says what it is. Rows that
// arrive together are one page, yielded at the latest 100 ms after its first.
//
// The page after a full one is fetched while the caller works on that one;
// nothing is left running when the iteration ends.
//
// An error says that a page could not be had, for Options.Retry or, if what came
// was malformed, three times. With follow the caller may go on with the loop: the
// same page is tried again after a rest of Options.Idle. Without it, and after
// ErrReset or ErrRefused, the error is the last thing that comes. No page is ever
// skipped, so a cursor taken from Page.LastSeq loses nothing.
//
// The parameters are those of docs.couchdb.org, api/database/changes.
func (c *Client) Changes(ctx context.Context, since string, follow bool) iter.Seq2[Page, error] {
	return func(yield func(Page, error) bool) {
		at := position{since: since}
		if at.since == "" {
			at.since = "0"
		}
		ahead := readAhead[turn]{call: func(ctx context.Context) (turn, error) { return c.next(ctx, &at) }}
		defer ahead.stop()
		for ctx.Err() == nil {
			page, err := ahead.next(ctx)
			if ctx.Err() != nil {
				break
			}
			if err != nil {
				last := !follow || errors.Is(err, ErrReset) || errors.Is(err, ErrRefused)
				if !yield(Page{}, err) || last {
					return
				}
				c.rest(ctx)
				continue
			}
			if page.full {
				ahead.start(ctx)
			}
			// A page of design documents alone still moves the cursor.
			if page.moved && !yield(page.Page, nil) {
				return
			}
			if !page.head {
				continue
			}
			if !follow {
				return
			}
			switch at.wait {
			case waitStream:
				if !c.stream(ctx, &at, yield) {
					return
				}
			case waitPoll:
				c.rest(ctx)
			}
		}
		yield(Page{}, fmt.Errorf("feed %s: %w", c.base, ctx.Err()))
	}
}

// position is where an iteration is. It is touched by one goroutine at a time.
type position struct {
	since string
	info  ServerInfo // zero: to be asked for
	head  bool       // the last page was empty
	wait  waiting    // how to wait at the head
	fails int        // continuous feeds in a row that brought nothing
	full  int        // rows that a page should have
	limit int        // rows to ask for: less for a while after a page that could not be read
	// bare asks for the next page without documents: with them even one row
	// could not be read.
	bare bool
	buf  bytes.Buffer // of the answer
}

// waiting is a way to wait at the head, the best first. A server that refuses
// one is tried with the next.
type waiting int

const (
	waitStream waiting = iota // feed=continuous
	waitLong                  // feed=longpoll
	waitPoll                  // asking now and then
)

// turn is a page and what it means for the iteration.
type turn struct {
	Page
	full  bool // there is more at once
	head  bool // the feed had no more
	moved bool // the cursor rose
}

// next gets the page at at and moves at behind it.
func (c *Client) next(ctx context.Context, at *position) (turn, error) {
	// npm's service answers a cursor beyond its head with that very cursor,
	// for ever; only its root document tells that the feed was reset.
	if at.info.Engine == "" || at.head && at.info.Engine == EngineNPM {
		if err := c.meet(ctx, at); err != nil {
			return turn{}, err
		}
	}
	wait := at.head && at.wait == waitLong
	page, err := c.page(ctx, at, wait)
	if wait && errors.Is(err, ErrRefused) {
		c.o.Log.InfoContext(ctx, "the feed refuses long polls", "feed", c.base, "err", err)
		at.wait = waitPoll
		return turn{head: true}, nil
	}
	if err != nil {
		return turn{}, fmt.Errorf("feed %s after %.64q: %w", c.base, at.since, err)
	}
	if page.LastSeq == "" {
		page.LastSeq = at.since
	}
	t := turn{Page: page.Page, full: page.rows >= at.limit, head: page.rows == 0, moved: page.LastSeq != at.since}
	if !t.head && !t.moved {
		return turn{}, fmt.Errorf("feed %s after %.64q: rows that lead nowhere: %w", c.base, at.since, ErrMalformed)
	}
	if at.info.Engine == EngineNPM {
		if err := behind(ServerInfo{Engine: EngineNPM, UpdateSeq: page.LastSeq}, at.since); err != nil {
			return turn{}, fmt.Errorf("feed %s: %w", c.base, err)
		}
	}
	at.since, at.head = page.LastSeq, t.head
	at.limit, at.bare = min(at.limit*2, at.full), false
	return t, nil
}

// meet asks the server what it is, and whether the feed still goes on from at.
func (c *Client) meet(ctx context.Context, at *position) error {
	info, err := c.Server(ctx)
	if err != nil {
		return err
	}
	if at.info.Engine != "" && at.info.Engine != info.Engine {
		return fmt.Errorf("feed %s: engine %q became %q: %w", c.base, at.info.Engine, info.Engine, ErrReset)
	}
	if err := behind(info, at.since); err != nil {
		return fmt.Errorf("feed %s: %w", c.base, err)
	}
	if at.info.Engine == "" {
		if at.full = c.o.Limit; at.full == 0 {
			at.full = pageRows
			if info.IncludeDocs {
				at.full = pageDocs
			}
		}
		if info.Engine == EngineNPM {
			at.full, at.wait = min(at.full, pageRows), waitPoll
		}
		at.limit = at.full
	}
	at.info = info
	return nil
}

// Rows of a page: npm's most, and few enough that their documents fit memory.
const (
	pageRows = 10_000
	pageDocs = 50
)

// behind returns ErrReset if a feed with numbers for sequences has its head
// before the cursor. Of no other feed can sequences be compared.
func behind(info ServerInfo, since string) error {
	if info.Engine != EngineNPM {
		return nil
	}
	head, err := strconv.ParseUint(info.UpdateSeq, 10, 64)
	if err != nil {
		return fmt.Errorf("head %.64q: %w", info.UpdateSeq, ErrMalformed)
	}
	cursor, err := strconv.ParseUint(since, 10, 64)
	if err != nil {
		return fmt.Errorf("cursor %.64q is none of this feed's: %w", since, ErrReset)
	}
	if head < cursor {
		return fmt.Errorf("the head is %d, the cursor %d: %w", head, cursor, ErrReset)
	}
	return nil
}

// page gets one page. Where documents make it too large, too slow or unreadable
// it is asked for in ever smaller parts, down to one row without its document:
// one document never stops the feed.
func (c *Client) page(ctx context.Context, at *position, wait bool) (rawPage, error) {
	for {
		query := url.Values{"since": {at.since}, "limit": {strconv.Itoa(at.limit)}}
		docs := at.info.IncludeDocs && !at.bare
		if docs {
			query.Set("include_docs", "true")
		}
		timeout := c.o.Timeout
		if wait {
			query.Set("feed", "longpoll")
			query.Set("timeout", strconv.FormatInt(c.o.Poll.Milliseconds(), 10))
			timeout += c.o.Poll
		}
		page, err := retry(ctx, c, "changes", func() (rawPage, error) {
			body, err := c.fetch(ctx, c.base+"/_changes?"+query.Encode(), timeout, &at.buf)
			if err != nil {
				return rawPage{}, err
			}
			return readPage(body)
		})
		heavy := errors.Is(err, ErrTooLarge) || errors.Is(err, ErrMalformed) || !wait && errors.Is(err, context.DeadlineExceeded)
		switch {
		case err == nil || ctx.Err() != nil || !docs || !heavy:
			return page, err
		case at.limit > 1:
			at.limit /= 2
		default:
			at.bare = true
		}
		c.o.Log.WarnContext(ctx, "asking for a smaller page", "feed", c.base, "since", at.since, "limit", at.limit, "documents", !at.bare, "err", err)
	}
}

// rest waits for Idle, a quarter more or less, so that not all followers come
// at once.
func (c *Client) rest(ctx context.Context) {
	d := c.o.Idle*3/4 + rand.N(c.o.Idle/2+1)
	timer := time.NewTimer(d)
	defer timer.Stop()
	select {
	case <-timer.C:
	case <-ctx.Done():
	}
}

// readAhead makes an iteration's calls, and the next of them while the caller
// works on the last one's result. At most one call runs, and none after stop.
type readAhead[T any] struct {
	call func(context.Context) (T, error)

	cancel context.CancelFunc
	done   chan struct{} // nil: no call runs
	value  T
	err    error
}

func (a *readAhead[T]) start(ctx context.Context) {
	ctx, a.cancel = context.WithCancel(ctx)
	a.done = make(chan struct{})
	go func() {
		defer close(a.done)
		a.value, a.err = a.call(ctx)
	}()
}

func (a *readAhead[T]) next(ctx context.Context) (T, error) {
	if a.done == nil {
		return a.call(ctx)
	}
	value, err := a.join()
	return value, err
}

func (a *readAhead[T]) join() (value T, err error) {
	<-a.done
	a.cancel()
	value, err = a.value, a.err
	*a = readAhead[T]{call: a.call} // the page is the caller's alone
	return value, err
}

func (a *readAhead[T]) stop() {
	if a.done != nil {
		a.cancel()
		a.join()
	}
}
