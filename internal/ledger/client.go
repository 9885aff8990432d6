package ledger

import (
	"bufio"
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"iter"
	"net/http"
	"net/url"
	"strconv"
	"sync/atomic"
	"time"

	"github.com/registry-mirror/registry-mirror/internal/npm"
	"github.com/registry-mirror/registry-mirror/internal/socket"
)

const (
	// callTimeout is the deadline of one call over the socket.
	callTimeout = time.Minute
	// maxAnswer bounds an answer in bytes: a package of some 500,000 versions.
	maxAnswer = 256 << 20
	// pollTime is how long one request of Wait is held by the owner.
	pollTime = 50 * time.Second
)

// Client reads a ledger that another process owns, over that process' socket.
// It has the reading methods of Store and edits the selection. A call that
// finds nobody returns ErrAway; one that finds another ledger, ErrReplaced.
type Client struct {
	http     *http.Client
	identity string
	head     atomic.Uint64
}

// Dial greets the owner at socket: ErrAway if there is none.
func Dial(path string) (*Client, error) {
	c := &Client{http: socket.Client(path)}
	ctx, cancel := context.WithTimeout(context.Background(), 5*time.Second)
	defer cancel()
	var root struct {
		UUID string `json:"uuid"`
	}
	if err := c.call(ctx, http.MethodGet, "/", nil, &root); err != nil {
		return nil, fmt.Errorf("ledger at %s: %w", path, err)
	}
	if root.UUID == "" {
		return nil, fmt.Errorf("ledger at %s: no identity: %w", path, ErrReplaced)
	}
	c.identity = root.UUID
	return c, nil
}

// Close lets go of the connections. The owner is not touched.
func (c *Client) Close() error {
	c.http.CloseIdleConnections()
	return nil
}

// Identity is that of the ledger that was dialled.
func (c *Client) Identity() string { return c.identity }

// Head asks for the newest sequence; if the owner does not answer it is the
// newest that was heard of.
func (c *Client) Head() Seq {
	ctx, cancel := context.WithTimeout(context.Background(), 5*time.Second)
	defer cancel()
	_ = c.call(ctx, http.MethodGet, "/", nil, &struct{}{}) // stores the head
	return Seq(c.head.Load())
}

// Package is Store.Package.
func (c *Client) Package(ctx context.Context, name npm.Name) (Package, error) {
	var p Package
	ctx, cancel := context.WithTimeout(ctx, callTimeout)
	defer cancel()
	if err := c.call(ctx, http.MethodGet, "/package/"+url.PathEscape(string(name)), nil, &p); err != nil {
		return Package{}, fmt.Errorf("package %s: %w", name, err)
	}
	return p, nil
}

// Packages is Store.Packages. It ends with ctx and has no deadline of its own.
func (c *Client) Packages(ctx context.Context) iter.Seq2[Package, error] {
	return func(yield func(Package, error) bool) {
		resp, err := c.send(ctx, http.MethodGet, "/packages", nil)
		if err != nil {
			yield(Package{}, fmt.Errorf("list packages: %w", err))
			return
		}
		defer resp.Body.Close()
		lines := bufio.NewScanner(resp.Body)
		lines.Buffer(nil, 1<<20)
		for lines.Scan() {
			line := struct {
				Package
				End bool `json:"end"`
			}{}
			if err := json.Unmarshal(lines.Bytes(), &line); err != nil {
				yield(Package{}, fmt.Errorf("list packages: %w", err))
				return
			}
			if line.End {
				return
			}
			if !yield(line.Package, nil) {
				return
			}
		}
		err = lines.Err()
		if err == nil {
			err = io.ErrUnexpectedEOF
		}
		yield(Package{}, fmt.Errorf("list packages: %w: %w", ErrAway, err))
	}
}

// Changes is Store.Changes.
func (c *Client) Changes(ctx context.Context, since Seq, limit int) ([]Change, error) {
	ctx, cancel := context.WithTimeout(ctx, callTimeout)
	defer cancel()
	return c.changes(ctx, url.Values{
		"since": {strconv.FormatUint(uint64(since), 10)},
		"limit": {strconv.Itoa(max(limit, 0))},
	})
}

func (c *Client) changes(ctx context.Context, query url.Values) ([]Change, error) {
	var page changesPage
	if err := c.call(ctx, http.MethodGet, "/_changes?"+query.Encode(), nil, &page); err != nil {
		return nil, fmt.Errorf("list changes after %s: %w", query.Get("since"), err)
	}
	return page.Results, nil
}

// Wait is Store.Wait: it returns nil once there is a change after since.
func (c *Client) Wait(ctx context.Context, since Seq) error {
	for {
		poll, cancel := context.WithTimeout(ctx, pollTime+10*time.Second)
		found, err := c.changes(poll, url.Values{
			"since":   {strconv.FormatUint(uint64(since), 10)},
			"limit":   {"1"},
			"feed":    {"longpoll"},
			"timeout": {strconv.FormatInt(pollTime.Milliseconds(), 10)},
		})
		cancel()
		if err != nil || len(found) > 0 {
			return err
		}
	}
}

// Wants is Store.Wants.
func (c *Client) Wants(ctx context.Context) ([]Want, error) {
	return ask[[]Want](ctx, c, http.MethodGet, "/wants", nil)
}

// AddWants adds to the selection and returns all of it. It is durable.
func (c *Client) AddWants(ctx context.Context, wants ...Want) ([]Want, error) {
	return ask[[]Want](ctx, c, http.MethodPost, "/wants", wants)
}

// RemoveWants is Store.RemoveWants.
func (c *Client) RemoveWants(ctx context.Context, wants ...Want) ([]Want, error) {
	return ask[[]Want](ctx, c, http.MethodDelete, "/wants", wants)
}

// Refused is Store.Refused.
func (c *Client) Refused(ctx context.Context) ([]Refusal, error) {
	return ask[[]Refusal](ctx, c, http.MethodGet, "/refused", nil)
}

// Retries is Store.Retries.
func (c *Client) Retries(ctx context.Context) ([]Retry, error) {
	return ask[[]Retry](ctx, c, http.MethodGet, "/retries", nil)
}

// Refusals is Store.Refusals.
func (c *Client) Refusals(ctx context.Context, name npm.Name) ([]Refusal, error) {
	return ask[[]Refusal](ctx, c, http.MethodGet, "/refused/"+url.PathEscape(string(name)), nil)
}

// Queue is Store.Queue.
func (c *Client) Queue(ctx context.Context, name npm.Name) ([]Retry, error) {
	return ask[[]Retry](ctx, c, http.MethodGet, "/queue/"+url.PathEscape(string(name)), nil)
}

// TryAgain is Store.TryAgain.
func (c *Client) TryAgain(ctx context.Context, which Again) (int, error) {
	return ask[int](ctx, c, http.MethodPost, "/again", which)
}

// Status is what the owner says of the ledger and of its own work.
func (c *Client) Status(ctx context.Context) (Status, error) {
	return ask[Status](ctx, c, http.MethodGet, "/status", nil)
}

func ask[T any](ctx context.Context, c *Client, method, path string, body any) (T, error) {
	ctx, cancel := context.WithTimeout(ctx, callTimeout)
	defer cancel()
	var out T
	if err := c.call(ctx, method, path, body, &out); err != nil {
		return out, fmt.Errorf("%s %s: %w", method, path, err)
	}
	return out, nil
}

// call sends one request and decodes its whole answer into out.
func (c *Client) call(ctx context.Context, method, path string, body, out any) error {
	resp, err := c.send(ctx, method, path, body)
	if err != nil {
		return err
	}
	defer resp.Body.Close()
	raw, err := readAnswer(resp.Body, maxAnswer)
	if err != nil {
		return err
	}
	if err := json.Unmarshal(raw, out); err != nil {
		return fmt.Errorf("read the answer: %w", err)
	}
	return nil
}

// send returns an answer of status 200 from the ledger that was dialled.
func (c *Client) send(ctx context.Context, method, path string, body any) (*http.Response, error) {
	var in io.Reader
	if body != nil {
		raw, err := json.Marshal(body)
		if err != nil {
			return nil, err
		}
		in = bytes.NewReader(raw)
	}
	req, err := http.NewRequestWithContext(ctx, method, "http://ledger"+path, in)
	if err != nil {
		return nil, err
	}
	if c.identity != "" {
		req.Header.Set(headerIdentity, c.identity)
	}
	resp, err := c.http.Do(req)
	if err != nil {
		if ctx.Err() != nil {
			return nil, ctx.Err()
		}
		return nil, fmt.Errorf("%w: %w", ErrAway, err)
	}
	if id := resp.Header.Get(headerIdentity); c.identity != "" && id != c.identity {
		resp.Body.Close()
		return nil, fmt.Errorf("%q in place of %q: %w", id, c.identity, ErrReplaced)
	}
	if head, err := strconv.ParseUint(resp.Header.Get(headerHead), 10, 64); err == nil {
		c.raise(head)
	}
	if resp.StatusCode == http.StatusOK {
		return resp, nil
	}
	defer resp.Body.Close()
	raw, err := readAnswer(resp.Body, maxDetail*4)
	if err != nil {
		return nil, err
	}
	var f failure
	if json.Unmarshal(raw, &f) == nil {
		for _, known := range failures {
			if known.code == f.Error && known.err == ErrNotFound {
				return nil, known.err
			}
			if known.code == f.Error {
				return nil, fmt.Errorf("%w (the owner says: %.500s)", known.err, f.Detail)
			}
		}
	}
	return nil, fmt.Errorf("the owner says %s: %.200s", resp.Status, f.Detail)
}

// raise keeps the newest head: answers may overtake each other.
func (c *Client) raise(head uint64) {
	for {
		old := c.head.Load()
		if old >= head || c.head.CompareAndSwap(old, head) {
			return
		}
	}
}

func readAnswer(r io.Reader, limit int64) ([]byte, error) {
	raw, err := io.ReadAll(io.LimitReader(r, limit+1))
	if err != nil {
		if errors.Is(err, context.Canceled) || errors.Is(err, context.DeadlineExceeded) {
			return nil, err
		}
		return nil, fmt.Errorf("%w: %w", ErrAway, err)
	}
	if int64(len(raw)) > limit {
		return nil, fmt.Errorf("an answer of more than %d bytes: %w", limit, ErrInvalid)
	}
	return raw, nil
}
