package couch

import (
	"context"
	"errors"
	"fmt"
	"io"
	"iter"
	"log/slog"
	"math/rand/v2"
	"net/http"
	"net/url"
	"strconv"
	"strings"
	"time"

	"github.com/cenkalti/backoff/v5"
)

// Options of New. All but URL may be left zero.
type Options struct {
	URL       string // of the database, "…/registry"; `_changes` is below it
	UserAgent string
	// Authorization is sent as the header of that name; "" for none.
	Authorization string
	HTTP          *http.Client // nil: http.DefaultClient
	Log           *slog.Logger // nil: nothing is logged

	// Idle is how long the client rests at the head of a feed that it must
	// poll, a quarter more or less by chance; 0 means 30 s.
	Idle time.Duration
	// Poll is how long a feed is asked to hold a long poll; 0 means 60 s.
	Poll time.Duration
	// Limit is how many rows a page may have; 0 means 10,000 without
	// documents, which is npm's own limit, and 50 with them.
	Limit int
	// MaxBody bounds an answer, decompressed, in bytes; 0 means 256 MiB. A
	// page of documents beyond it is asked for in smaller parts, and at last
	// without the document.
	MaxBody int64
	// Timeout bounds one request; 0 means 2 minutes. A long poll gets Poll more.
	Timeout time.Duration
	// Retry bounds how long one page is tried; 0 means 5 minutes.
	Retry time.Duration
}

// Client reads one feed. It starts nothing; its methods may run concurrently.
type Client struct {
	o    Options
	base string
}

// New makes a client. It does not reach the feed.
func New(o Options) *Client {
	if o.HTTP == nil {
		o.HTTP = http.DefaultClient
	}
	if o.Log == nil {
		o.Log = slog.New(slog.DiscardHandler)
	}
	defaultTo(&o.Idle, 30*time.Second)
	defaultTo(&o.Poll, time.Minute)
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
		body, err := c.fetch(ctx, c.base+"/", c.o.Timeout)
		if err != nil {
			return ServerInfo{}, err
		}
		return readServer(body)
	})
	if err != nil {
		return ServerInfo{}, fmt.Errorf("feed %s: %w", c.base, err)
	}
	return info, nil
}

// Changes yields the feed after since ("" for its beginning), page by page in
// order, design documents left out. Without follow it ends at the head. With it
// the iteration ends with ctx: at the head it waits, by long polls or, at npm's
// service, by polling.
//
// An error says that a page could not be had, for Options.Retry or, if what came
// was malformed, three times. With follow the
// caller may go on with the loop: the same page is tried again after a rest of
// Options.Idle. Without it,
// and after ErrReset or ErrRefused, the error is the last thing that comes. No
// page is ever skipped, so a cursor taken from Page.LastSeq loses nothing.
func (c *Client) Changes(ctx context.Context, since string, follow bool) iter.Seq2[Page, error] {
	return func(yield func(Page, error) bool) {
		at := position{since: since}
		if at.since == "" {
			at.since = "0"
		}
		for ctx.Err() == nil {
			page, err := c.next(ctx, &at, follow)
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
			// A page of design documents alone still moves the cursor.
			if page.moved && !yield(page.Page, nil) {
				return
			}
			if page.head && !follow {
				return
			}
			if page.head && !at.info.canWait() {
				c.rest(ctx)
			}
		}
		yield(Page{}, fmt.Errorf("feed %s: %w", c.base, ctx.Err()))
	}
}

// position is where an iteration is.
type position struct {
	since string
	info  ServerInfo // zero: to be asked for
	head  bool       // the last page was empty: wait for the next
	full  int        // rows that a page should have
	limit int        // rows to ask for: less for a while after a page that could not be read
	// bare asks for the next page without documents: with them even one row
	// could not be read.
	bare bool
}

// canWait tells feeds that hold a long poll from npm's, which refuses it.
func (s ServerInfo) canWait() bool { return s.Engine != EngineNPM }

// turn is a page and what it means for the iteration.
type turn struct {
	Page
	head  bool // the feed had no more
	moved bool // the cursor rose
}

// next gets the page at at and moves at behind it.
func (c *Client) next(ctx context.Context, at *position, follow bool) (turn, error) {
	// npm's service answers a cursor beyond its head with that very cursor,
	// for ever; only its root document tells that the feed was reset.
	if at.info.Engine == "" || at.head && at.info.Engine == EngineNPM {
		info, err := c.Server(ctx)
		if err != nil {
			return turn{}, err
		}
		if at.info.Engine != "" && at.info.Engine != info.Engine {
			return turn{}, fmt.Errorf("feed %s: engine %q became %q: %w", c.base, at.info.Engine, info.Engine, ErrReset)
		}
		if err := behind(info, at.since); err != nil {
			return turn{}, fmt.Errorf("feed %s: %w", c.base, err)
		}
		if at.full = c.o.Limit; at.full == 0 {
			at.full = 10_000
			if info.IncludeDocs {
				at.full = 50
			}
		}
		if at.info.Engine == "" {
			at.limit = at.full
		}
		at.info = info
	}
	wait := follow && at.head && at.info.canWait()
	page, err := c.page(ctx, at, wait)
	if err != nil {
		return turn{}, fmt.Errorf("feed %s after %.64q: %w", c.base, at.since, err)
	}
	if page.LastSeq == "" {
		page.LastSeq = at.since
	}
	t := turn{Page: page.Page, head: page.rows == 0, moved: page.LastSeq != at.since}
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

// page gets one page. Where documents make it too large or unreadable it is
// asked for in ever smaller parts, down to one row without its document: one
// document never stops the feed.
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
			body, err := c.fetch(ctx, c.base+"/_changes?"+query.Encode(), timeout)
			if err != nil {
				return rawPage{}, err
			}
			return readPage(body)
		})
		switch {
		case err == nil || !docs || !errors.Is(err, ErrTooLarge) && !errors.Is(err, ErrMalformed):
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

// maxRetryAfter bounds what a feed can make us wait with Retry-After.
const maxRetryAfter = 2 * time.Minute

// retry repeats call while its failure may pass: for at most Options.Retry, with
// jitter. Malformed answers are tried three times only, for a page that is
// malformed for good can be asked for in smaller parts.
func retry[T any](ctx context.Context, c *Client, what string, call func() (T, error)) (T, error) {
	malformed := 0
	return backoff.Retry(ctx, func() (T, error) {
		v, err := call()
		if errors.Is(err, ErrMalformed) {
			malformed++
		}
		if errors.Is(err, ErrRefused) || errors.Is(err, ErrReset) || errors.Is(err, ErrTooLarge) || malformed > 2 {
			return v, backoff.Permanent(err)
		}
		return v, err
	},
		backoff.WithBackOff(backoff.NewExponentialBackOff()),
		backoff.WithMaxElapsedTime(c.o.Retry),
		backoff.WithNotify(func(err error, next time.Duration) {
			c.o.Log.WarnContext(ctx, "asking the feed again", "feed", c.base, "for", what, "in", next, "err", err)
		}))
}

// fetch returns the body of an answer of status 200, at most Options.MaxBody of
// it.
func (c *Client) fetch(ctx context.Context, address string, timeout time.Duration) ([]byte, error) {
	ctx, cancel := context.WithTimeout(ctx, timeout)
	defer cancel()
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, address, nil)
	if err != nil {
		return nil, fmt.Errorf("%w: %w", ErrRefused, err)
	}
	req.Header.Set("Accept", "application/json")
	if c.o.UserAgent != "" {
		req.Header.Set("User-Agent", c.o.UserAgent)
	}
	if c.o.Authorization != "" {
		req.Header.Set("Authorization", c.o.Authorization)
	}
	// npm asked for this while it moved; other feeds ignore it.
	req.Header.Set("Npm-Replication-Opt-In", "true")
	resp, err := c.o.HTTP.Do(req)
	if err != nil {
		return nil, fmt.Errorf("%w: %w", ErrUnavailable, err)
	}
	defer resp.Body.Close()
	if err := statusError(resp); err != nil {
		return nil, err
	}
	body, err := io.ReadAll(io.LimitReader(resp.Body, c.o.MaxBody+1))
	if err != nil {
		return nil, fmt.Errorf("%w: %w", ErrUnavailable, err)
	}
	if int64(len(body)) > c.o.MaxBody {
		return nil, fmt.Errorf("%w: more than %d bytes", ErrTooLarge, c.o.MaxBody)
	}
	return body, nil
}

// statusError is the one table of what a status means.
func statusError(resp *http.Response) error {
	switch code := resp.StatusCode; {
	case code == http.StatusOK:
		return nil
	case code == http.StatusTooManyRequests || code == http.StatusServiceUnavailable:
		err := fmt.Errorf("%w: %s", ErrUnavailable, resp.Status)
		if wait := retryAfter(resp.Header.Get("Retry-After"), time.Now()); wait > 0 {
			return fmt.Errorf("%w: %w", err, &backoff.RetryAfterError{Duration: wait})
		}
		return err
	case code >= 500 || code == http.StatusRequestTimeout:
		return fmt.Errorf("%w: %s", ErrUnavailable, resp.Status)
	case code == http.StatusConflict && resp.Header.Get(headerReset) != "":
		return fmt.Errorf("%w: %s", ErrReset, resp.Status)
	case code >= 400:
		return fmt.Errorf("%w: %s", ErrRefused, resp.Status)
	default: // what is neither followed nor a page may be a proxy at work
		return fmt.Errorf("%w: %s", ErrUnavailable, resp.Status)
	}
}

// retryAfter reads the header of RFC 9110 section 10.2.3, seconds or a date,
// bounded. 0 leaves the choice to the caller.
func retryAfter(value string, now time.Time) time.Duration {
	wait := time.Duration(0)
	if seconds, err := strconv.ParseUint(value, 10, 31); err == nil {
		wait = time.Duration(seconds) * time.Second
	} else if at, err := http.ParseTime(value); err == nil {
		wait = at.Sub(now)
	}
	return min(max(wait, 0), maxRetryAfter)
}
