package ipfs

import (
	"context"
	"errors"
	"fmt"
	"io"
	"mime"
	"net/http"
	"net/url"
	"strings"
	"sync"
	"time"

	"github.com/cenkalti/backoff/v5"
	"github.com/ipfs/boxo/ipld/merkledag"
	"github.com/ipfs/boxo/ipns"
	blocks "github.com/ipfs/go-block-format"
	"github.com/ipfs/go-cid"
)

var (
	// ErrUnavailable is returned when a gateway did not answer, or answered
	// 5xx or 429: another try, or another gateway, may help.
	ErrUnavailable = errors.New("the gateway is unavailable")
	// ErrBadGateway is returned for bytes that are not what was asked for.
	// They are kept nowhere; this gateway is not to be asked again.
	ErrBadGateway = errors.New("the gateway sent what was not asked for")
)

// Scope is how much of what a path ends at a CAR holds
// (https://specs.ipfs.tech/http-gateways/trustless-gateway/#dag-scope-request-query-parameter).
type Scope string

const (
	ScopeBlock  Scope = "block"  // its one block
	ScopeEntity Scope = "entity" // a file whole; of a directory, the nodes that list it
	ScopeAll    Scope = "all"    // everything below
)

// Gateway reads from a trustless HTTP gateway and its /routing/v1. It believes
// nothing: each block is hashed, and a block that nothing asked for links to
// ends a download. It is safe for concurrent use.
type Gateway struct {
	base string
	http *http.Client
}

// gatewayTransport is shared, so that a gateway's connections are kept from
// one Gateway value to the next.
var gatewayTransport = sync.OnceValue(func() http.RoundTripper {
	t := http.DefaultTransport.(*http.Transport).Clone()
	t.MaxIdleConnsPerHost = 16
	t.ResponseHeaderTimeout = 30 * time.Second
	t.DisableCompression = true // blocks are compressed or small
	return t
})

// NewGateway returns a client for the gateway at base, such as
// "http://127.0.0.1:8080".
func NewGateway(base string) *Gateway {
	return newGateway(base, gatewayTransport())
}

func newGateway(base string, t http.RoundTripper) *Gateway {
	return &Gateway{
		base: strings.TrimRight(base, "/"),
		http: &http.Client{Transport: t, CheckRedirect: func(_ *http.Request, via []*http.Request) error {
			if len(via) > 3 {
				return errors.New("too many redirects")
			}
			return nil
		}},
	}
}

// URL is the base that NewGateway was given.
func (g *Gateway) URL() string { return g.base }

// get asks once. The caller closes the body.
func (g *Gateway) get(ctx context.Context, path, accept string) (*http.Response, error) {
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, g.base+path, nil)
	if err != nil {
		return nil, err
	}
	req.Header.Set("Accept", accept)
	resp, err := g.http.Do(req)
	if err != nil {
		if ctx.Err() != nil {
			return nil, ctx.Err()
		}
		return nil, fmt.Errorf("%w: %w", ErrUnavailable, err)
	}
	if resp.StatusCode == http.StatusOK {
		return resp, nil
	}
	hint, _ := io.ReadAll(io.LimitReader(resp.Body, 200))
	resp.Body.Close()
	cause := ErrBadGateway
	switch code := resp.StatusCode; {
	case code == http.StatusNotFound || code == http.StatusGone:
		cause = ErrNotFound
	case strings.Contains(string(hint), "could not find") || strings.Contains(string(hint), "not found"):
		// Gateways answer 500 or 504 for what they do not hold.
		cause = ErrNotFound
	case code >= 500 || code == http.StatusTooManyRequests:
		cause = ErrUnavailable
	}
	return nil, fmt.Errorf("status %d (%s): %w", resp.StatusCode, strings.TrimSpace(string(hint)), cause)
}

// again repeats f while the gateway is unavailable, three times in all.
func again(ctx context.Context, f func() error) error {
	wait := backoff.NewExponentialBackOff()
	wait.InitialInterval = 100 * time.Millisecond
	_, err := backoff.Retry(ctx, func() (struct{}, error) {
		err := f()
		if err != nil && !errors.Is(err, ErrUnavailable) {
			err = backoff.Permanent(err)
		}
		return struct{}{}, err
	}, backoff.WithBackOff(wait), backoff.WithMaxTries(3))
	return err
}

// Get returns one block, in at most a minute.
func (g *Gateway) Get(ctx context.Context, c cid.Cid) (blocks.Block, error) {
	ctx, cancel := context.WithTimeout(ctx, time.Minute)
	defer cancel()
	if data, ok := inline(c); ok {
		return blocks.NewBlockWithCid(data, c)
	}
	var data []byte
	err := again(ctx, func() error {
		resp, err := g.get(ctx, "/ipfs/"+c.String()+"?format=raw", "application/vnd.ipld.raw")
		if err != nil {
			return err
		}
		defer resp.Body.Close()
		data, err = readBody(resp.Body, maxBlock)
		if err != nil {
			return err
		}
		if err := verify(c, data); err != nil {
			return fmt.Errorf("%w: %w", ErrBadGateway, err)
		}
		return nil
	})
	if err != nil {
		return nil, fmt.Errorf("block %s from %s: %w", c, g.base, err)
	}
	return blocks.NewBlockWithCid(data, c)
}

// readBody reads at most limit bytes.
func readBody(r io.Reader, limit int) ([]byte, error) {
	data, err := io.ReadAll(io.LimitReader(r, int64(limit)+1))
	if err != nil {
		return nil, fmt.Errorf("%w: %w", ErrUnavailable, err)
	}
	if len(data) > limit {
		return nil, fmt.Errorf("%w: more than %d bytes", ErrBadGateway, limit)
	}
	return data, nil
}

// Fetch downloads the blocks from root along path to what it ends at, and of
// that as much as scope says, as one CAR, and gives each to sink: hashed,
// parents before children, each once, and only if root or a block before it
// links to it. At most maxBytes of blocks are read. With ScopeAll and no path
// a nil error means that all of the DAG came; otherwise the reader finds out
// what the gateway left out (a reader of blocks misses them).
//
// It asks once, and sink has had what came before an error.
func (g *Gateway) Fetch(ctx context.Context, root cid.Cid, path []string, scope Scope, maxBytes int64, sink func(blocks.Block) error) error {
	p := "/ipfs/" + root.String()
	for _, seg := range path {
		p += "/" + url.PathEscape(seg)
	}
	// The parameters are in the URL too, for gateways behind caches.
	p += "?format=car&dag-scope=" + string(scope) + "&car-version=1&car-order=dfs&car-dups=n"
	err := g.fetch(ctx, p, root, len(path) == 0 && scope == ScopeAll, maxBytes, sink)
	if err != nil {
		return fmt.Errorf("CAR of %s from %s: %w", strings.Join(append([]string{root.String()}, path...), "/"), g.base, err)
	}
	return nil
}

func (g *Gateway) fetch(ctx context.Context, p string, root cid.Cid, all bool, maxBytes int64, sink func(blocks.Block) error) error {
	resp, err := g.get(ctx, p, "application/vnd.ipld.car; version=1; order=dfs; dups=n")
	if err != nil {
		return err
	}
	defer resp.Body.Close()
	if t, _, _ := mime.ParseMediaType(resp.Header.Get("Content-Type")); t != "application/vnd.ipld.car" {
		return fmt.Errorf("%w: content type %q", ErrBadGateway, resp.Header.Get("Content-Type"))
	}
	// wanted has the hashes that were linked to: true until they came.
	wanted := map[string]bool{string(root.Hash()): true}
	open := 1
	body := &bodyReader{r: resp.Body}
	err = readCAR(body, func(b blocks.Block) error {
		key := string(b.Cid().Hash())
		missing, known := wanted[key]
		if !known {
			return fmt.Errorf("%w: block %s, which nothing links to", ErrBadGateway, b.Cid())
		}
		if !missing {
			return nil
		}
		if maxBytes -= int64(len(b.RawData())); maxBytes < 0 {
			return fmt.Errorf("%w: more bytes than allowed", ErrBadGateway)
		}
		wanted[key] = false
		open--
		if b.Cid().Prefix().Codec == cid.DagProtobuf {
			n, err := merkledag.DecodeProtobuf(b.RawData())
			if err != nil {
				return fmt.Errorf("block %s: %w", b.Cid(), err)
			}
			for _, l := range n.Links() {
				if _, identity := inline(l.Cid); identity {
					continue
				}
				if _, known := wanted[string(l.Cid.Hash())]; !known {
					wanted[string(l.Cid.Hash())] = true
					open++
				}
			}
		}
		return sink(b)
	})
	switch {
	case err != nil && ctx.Err() != nil:
		return ctx.Err()
	case body.err != nil && errors.Is(err, ErrCAR):
		return fmt.Errorf("%w: cut off: %w", ErrUnavailable, body.err)
	case errors.Is(err, ErrCAR):
		return fmt.Errorf("%w: %w", ErrBadGateway, err)
	case err != nil:
		return err
	case all && open > 0:
		return fmt.Errorf("%w: the CAR ended with %d blocks missing", ErrUnavailable, open)
	}
	return nil
}

// bodyReader remembers an error of the connection, which a CAR's reader does
// not tell apart from malformed bytes.
type bodyReader struct {
	r   io.Reader
	err error
}

func (b *bodyReader) Read(p []byte) (int, error) {
	n, err := b.r.Read(p)
	if err != nil && err != io.EOF {
		b.err = err
	}
	return n, err
}

const recordType = "application/vnd.ipfs.ipns-record"

// Record returns the record of a name by /routing/v1/ipns, and where a gateway
// does not have that, by /ipns/NAME?format=ipns-record, in at most 30 seconds.
// It has been checked for name and signature, and has expired only where the gateway has
// no better one; ErrNotFound where there is none.
func (g *Gateway) Record(ctx context.Context, name ipns.Name) ([]byte, error) {
	ctx, cancel := context.WithTimeout(ctx, 30*time.Second)
	defer cancel()
	raw, err := g.record(ctx, name, "/routing/v1/ipns/"+name.String())
	if err == nil && !expired(name, raw) {
		return raw, nil
	}
	if ctx.Err() == nil {
		other, second := g.record(ctx, name, "/ipns/"+name.String()+"?format=ipns-record")
		switch {
		case err == nil:
			if second == nil && (!expired(name, other) || better(name, other, raw)) {
				raw = other
			}
		case second == nil:
			raw, err = other, nil
		case second.Error() == err.Error():
		case !errors.Is(err, ErrNotFound):
			// The first says more, unless it only lacks that service.
			err = errors.Join(err, second)
		default:
			err = second
		}
	}
	if err != nil {
		return nil, fmt.Errorf("record of %s from %s: %w", name, g.base, err)
	}
	return raw, nil
}

// expired says of a record whether all that is wrong with it is its age.
func expired(name ipns.Name, raw []byte) bool {
	_, err := checkRecord(name, raw)
	return errors.Is(err, ipns.ErrExpiredRecord)
}

func (g *Gateway) record(ctx context.Context, name ipns.Name, path string) (raw []byte, err error) {
	err = again(ctx, func() error {
		resp, err := g.get(ctx, path, recordType)
		if err != nil {
			return err
		}
		defer resp.Body.Close()
		// A router without the record answers 200 with text (IPIP-513).
		if t, _, _ := mime.ParseMediaType(resp.Header.Get("Content-Type")); t != recordType {
			return fmt.Errorf("content type %q: %w", resp.Header.Get("Content-Type"), ErrNotFound)
		}
		raw, err = readBody(resp.Body, ipns.MaxRecordSize)
		if err != nil {
			return err
		}
		if _, err := checkRecord(name, raw); err != nil && !errors.Is(err, ipns.ErrExpiredRecord) {
			return fmt.Errorf("%w: %w", ErrBadGateway, err)
		}
		return nil
	})
	return raw, err
}
