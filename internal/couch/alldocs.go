package couch

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"iter"
	"net/url"
	"strconv"
	"strings"
)

// AllDocs yields the documents that are there, in runs of at most 10,000 (or
// Options.Limit) in the server's own order, design documents left out. It is not
// a snapshot: a document that comes or goes meanwhile is in it or not.
//
// An answer that cannot be had or read is tried again as in Changes; then, and
// where the listing repeats itself, does not advance, outgrows what the server
// says it holds (twice as much, and a million) or ends before half of that, the
// error is the last thing that comes. Only an iteration without an error is a
// whole listing.
//
// Pages are asked for with startkey and limit alone, which CouchDB
// (docs.couchdb.org, api/database/bulk-api) and npm's service share. The next
// page is fetched while the caller works on one; nothing is left running when
// the iteration ends.
func (c *Client) AllDocs(ctx context.Context) iter.Seq2[[]Doc, error] {
	return func(yield func([]Doc, error) bool) {
		l := listing{limit: c.o.Limit, bounds: map[string]bool{}}
		defaultTo(&l.limit, pageRows)
		l.limit = min(max(l.limit, leastRows), pageRows)
		ahead := readAhead[listed]{call: func(ctx context.Context) (listed, error) { return c.list(ctx, &l) }}
		defer ahead.stop()
		for {
			run, err := ahead.next(ctx)
			if err != nil {
				yield(nil, err)
				return
			}
			if !run.last {
				ahead.start(ctx)
			}
			if len(run.docs) > 0 && !yield(run.docs, nil) || run.last {
				return
			}
		}
	}
}

// maxDocs bounds a listing, whatever the server says of its size: twenty times
// what npm's has.
const maxDocs = 100_000_000

// leastRows is what a page of a listing must have: it begins with the last one's
// end, so fewer would lead nowhere.
const leastRows = 2

// listing is where a walk of _all_docs is.
type listing struct {
	from   string          // the last id; "" at the beginning
	bounds map[string]bool // the last ids of all pages: one that comes again is a circle
	rows   int             // so far, with design documents
	total  int             // what the server says it holds; 0: it does not say
	limit  int
	buf    bytes.Buffer
}

// listed is a part of a listing.
type listed struct {
	docs []Doc
	last bool
}

// list gets the next page and moves l behind it.
func (c *Client) list(ctx context.Context, l *listing) (listed, error) {
	if l.rows == 0 {
		info, err := c.Server(ctx)
		if err != nil {
			return listed{}, err
		}
		l.total = info.DocCount
	}
	page, err := c.listPage(ctx, l)
	if err == nil {
		var run listed
		if run, err = l.move(page); err == nil {
			return run, nil
		}
	}
	return listed{}, fmt.Errorf("listing of feed %s from %.64q: %w", c.base, l.from, err)
}

func (c *Client) listPage(ctx context.Context, l *listing) (docsPage, error) {
	for {
		query := url.Values{"limit": {strconv.Itoa(l.limit)}}
		if l.from != "" {
			key, err := json.Marshal(l.from)
			if err != nil {
				return docsPage{}, err
			}
			query.Set("startkey", string(key))
		}
		page, err := retry(ctx, c, "all_docs", func() (docsPage, error) {
			body, err := c.fetch(ctx, c.base+"/_all_docs?"+query.Encode(), c.o.Timeout, &l.buf)
			if err != nil {
				return docsPage{}, err
			}
			return readDocs(body)
		})
		if !errors.Is(err, ErrTooLarge) || l.limit == leastRows {
			return page, err
		}
		l.limit = max(l.limit/2, leastRows)
		c.o.Log.WarnContext(ctx, "asking for a smaller page", "feed", c.base, "from", l.from, "limit", l.limit, "err", err)
	}
}

// move takes a page's rows into the listing.
func (l *listing) move(page docsPage) (listed, error) {
	rows := page.docs
	if l.from != "" && len(rows) > 0 && rows[0].ID == l.from {
		rows = rows[1:] // it may as well have been deleted
	}
	l.total = max(l.total, page.total)
	if len(rows) == 0 {
		if l.rows < l.total/2 {
			return listed{}, fmt.Errorf("it ends after %d documents of %d: %w", l.rows, l.total, ErrMalformed)
		}
		return listed{last: true}, nil
	}
	most := maxDocs
	if l.total > 0 {
		most = min(2*l.total+1_000_000, most)
	}
	if l.rows += len(rows); l.rows > most {
		return listed{}, fmt.Errorf("%d documents, the server says it holds %d: %w", l.rows, l.total, ErrMalformed)
	}
	seen := make(map[string]bool, len(rows))
	docs := rows[:0]
	for _, row := range rows {
		// Whatever the server's order is, a listing that comes to where a page
		// ended before goes round.
		if seen[row.ID] || l.bounds[row.ID] {
			return listed{}, fmt.Errorf("%.64q comes again: %w", row.ID, ErrMalformed)
		}
		seen[row.ID] = true
		l.from = row.ID
		if !strings.HasPrefix(row.ID, "_design/") {
			docs = append(docs, row)
		}
	}
	l.bounds[l.from] = true
	return listed{docs: docs}, nil
}
