package couch

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"maps"
	"net/http"
	"strconv"
	"time"

	"github.com/cenkalti/backoff/v5"
)

// maxRetryAfter bounds what a feed can make us wait with Retry-After.
const maxRetryAfter = 2 * time.Minute

// retry repeats call while its failure may pass: for at most Options.Retry, with
// jitter. Malformed answers are tried three times only, for a page that is
// malformed for good can be asked for in smaller parts.
func retry[T any](ctx context.Context, c *Client, what string, call func() (T, error)) (T, error) {
	malformed := 0
	return backoff.Retry(ctx, func() (T, error) {
		v, err := call()
		if err == nil && c.away.Swap(false) {
			c.o.Log.InfoContext(ctx, "the feed answers again", "feed", c.base)
		}
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
			level := slog.LevelDebug
			if !c.away.Swap(true) { // said once, however long it lasts
				level = slog.LevelWarn
			}
			c.o.Log.Log(ctx, level, "asking the feed again", "feed", c.base, "for", what, "in", next, "at_most", c.o.Retry, "err", err)
		}))
}

// fetch returns the body of an answer of status 200, at most Options.MaxBody of
// it. timeout bounds all of it, so a feed that drips is unavailable. The bytes are
// buf's if there is one.
func (c *Client) fetch(ctx context.Context, address string, timeout time.Duration, buf *bytes.Buffer) ([]byte, error) {
	ctx, cancel := context.WithTimeout(ctx, timeout)
	defer cancel()
	resp, err := c.get(ctx, address, nil)
	if err != nil {
		return nil, err
	}
	defer resp.Body.Close()
	if buf == nil || buf.Cap() > maxKept {
		buf = new(bytes.Buffer)
	}
	buf.Reset()
	// The transport decompresses, so this bounds what came out of it.
	if _, err := buf.ReadFrom(io.LimitReader(resp.Body, c.o.MaxBody+1)); err != nil {
		return nil, fmt.Errorf("%w: %w", ErrUnavailable, err)
	}
	if int64(buf.Len()) > c.o.MaxBody {
		return nil, fmt.Errorf("%w: more than %d bytes", ErrTooLarge, c.o.MaxBody)
	}
	return buf.Bytes(), nil
}

// maxKept bounds a buffer that is kept from one answer to the next, in bytes.
const maxKept = 16 << 20

// get makes a request and returns an answer of status 200. ctx bounds it and
// the reading of its body.
func (c *Client) get(ctx context.Context, address string, header http.Header) (*http.Response, error) {
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, address, nil)
	if err != nil {
		return nil, fmt.Errorf("%w: %w", ErrRefused, err)
	}
	maps.Copy(req.Header, header)
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
	if errors.Is(err, ErrRefused) {
		return nil, err
	}
	if err != nil {
		return nil, fmt.Errorf("%w: %w", ErrUnavailable, err)
	}
	if err := statusError(resp); err != nil {
		resp.Body.Close()
		return nil, err
	}
	return resp, nil
}

// maxRedirects bounds what is followed for one request.
const maxRedirects = 5

// sameHost follows redirects within one host and port, and from HTTP to HTTPS but
// not back: whatever is sent with a request goes nowhere else.
func sameHost(req *http.Request, via []*http.Request) error {
	from := via[len(via)-1].URL
	if req.URL.Host != from.Host || req.URL.Scheme != from.Scheme && req.URL.Scheme != "https" {
		return fmt.Errorf("%w: it sends us to %.200s", ErrRefused, req.URL.Redacted())
	}
	if len(via) > maxRedirects {
		return fmt.Errorf("%w: more than %d redirects", ErrRefused, maxRedirects)
	}
	return nil
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
