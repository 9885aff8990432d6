package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/url"
	"strconv"
	"time"
)

const (
	// step is between two rows' sequences: npm's are sparse.
	step = 4
	// revision is that of every document.
	revision = "37-0123456789abcdef0123456789abcdef"
)

// isDeleted reports whether document n is gone.
func isDeleted(n int) bool { return n%25 == 0 }

// scattered is the document of row n: sequences and names have nothing to do
// with each other.
func scattered(n, rows int) int {
	stride := 611_953
	for rows%stride == 0 || gcd(stride, rows) != 1 {
		stride += 2
	}
	return (n*stride)%rows + 1
}

func gcd(a, b int) int {
	for b != 0 {
		a, b = b, a%b
	}
	return a
}

// nameOf is the id of document n.
func nameOf(n int) string { return fmt.Sprintf("package-%09d", n) }

// serve is npm's replicate service with so many rows, until in ends. Row n has
// sequence 4n and one of the documents "package-N"; the listing has them in the
// order of their names.
func serve(ctx context.Context, rows int, in io.Reader, out io.Writer) error {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return err
	}
	srv := &http.Server{Handler: replicate(rows), ReadHeaderTimeout: 10 * time.Second}
	served := make(chan error, 1)
	go func() { served <- srv.Serve(l) }()
	go func() { // ends with the process at the latest
		io.Copy(io.Discard, in)
		cancel()
	}()
	fmt.Fprintf(out, "http://%s\n", l.Addr())
	select {
	case err := <-served:
		return err
	case <-ctx.Done():
		srv.Close()
		if err := <-served; !errors.Is(err, http.ErrServerClosed) {
			return err
		}
		return nil
	}
}

func replicate(rows int) http.Handler {
	mux := http.NewServeMux()
	answer := func(w http.ResponseWriter, body []byte) {
		w.Header().Set("Content-Type", "application/json")
		w.Header().Set("Content-Length", strconv.Itoa(len(body)))
		w.Write(body) // a client that went away is no concern of ours
	}
	mux.HandleFunc("GET /{$}", func(w http.ResponseWriter, _ *http.Request) {
		answer(w, fmt.Appendf(nil, `{"db_name":"registry","engine":"npm-replicate","doc_count":%d,"update_seq":%d}`, rows, step*rows))
	})
	mux.HandleFunc("GET /_changes", func(w http.ResponseWriter, r *http.Request) {
		q := r.URL.Query()
		since, err := strconv.Atoi(q.Get("since"))
		limit, ok := limitOf(q)
		if err != nil || !ok {
			http.Error(w, `{"error":"Bad Request"}`, http.StatusBadRequest)
			return
		}
		body, last := []byte(`{"results":[`), since
		for n := since/step + 1; n <= rows && limit > 0; n, limit = n+1, limit-1 {
			if last != since {
				body = append(body, ",\n"...)
			}
			last = n * step
			body = append(body, `{"seq":`...)
			body = strconv.AppendInt(body, int64(last), 10)
			body = append(body, `,"id":`...)
			document := scattered(n, rows)
			body = appendName(body, document)
			body = append(body, `,"changes":[{"rev":"`+revision+`"}]`...)
			if isDeleted(document) {
				body = append(body, `,"deleted":true`...)
			}
			body = append(body, '}')
		}
		answer(w, fmt.Appendf(body, `],"last_seq":%d}`, last))
	})
	mux.HandleFunc("GET /_all_docs", func(w http.ResponseWriter, r *http.Request) {
		q := r.URL.Query()
		first := 1
		limit, ok := limitOf(q)
		if key := q.Get("startkey"); key != "" && ok {
			var id string
			n, err := 0, json.Unmarshal([]byte(key), &id)
			if err == nil {
				n, err = fmt.Sscanf(id, "package-%d", &first)
			}
			ok = err == nil && n == 1
		}
		if !ok {
			http.Error(w, `{"error":"Bad Request"}`, http.StatusBadRequest)
			return
		}
		body := fmt.Appendf(nil, `{"total_rows":%d,"offset":0,"rows":[`, rows)
		for n := first; n <= rows && n < first+limit; n++ {
			if n > first {
				body = append(body, ",\n"...)
			}
			body = append(body, `{"id":`...)
			body = appendName(body, n)
			body = append(body, `,"key":`...)
			body = appendName(body, n)
			body = append(body, `,"value":{"rev":"`+revision+`"}}`...)
		}
		answer(w, append(body, "]}"...))
	})
	return mux
}

func appendName(b []byte, n int) []byte {
	b = append(b, `"package-`...)
	digits := strconv.Itoa(n)
	for range 9 - len(digits) {
		b = append(b, '0')
	}
	return append(append(b, digits...), '"')
}

func limitOf(q url.Values) (int, bool) {
	if !q.Has("limit") {
		return 1000, true
	}
	n, err := strconv.Atoi(q.Get("limit"))
	return n, err == nil && n >= 1 && n <= 10_000
}
