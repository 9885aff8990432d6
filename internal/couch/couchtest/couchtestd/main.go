// Command couchtestd serves a feed in memory for end-to-end scripts, below
// /registry. It prints the feed's URL and serves until it is interrupted; it
// changes a document every so often, and tells each request on standard error.
package main

import (
	"bytes"
	"context"
	"errors"
	"flag"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"os/signal"
	"syscall"
	"time"

	"github.com/registry-mirror/registry-mirror/internal/couch"
	"github.com/registry-mirror/registry-mirror/internal/couch/couchtest"
)

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	err := run(ctx, os.Args[1:], os.Stdout, os.Stderr)
	stop()
	if errors.Is(err, flag.ErrHelp) {
		return
	}
	if err != nil {
		fmt.Fprintln(os.Stderr, "couchtestd: error:", err)
		os.Exit(1)
	}
}

func run(ctx context.Context, args []string, out, log io.Writer) error {
	flags := flag.NewFlagSet("couchtestd", flag.ContinueOnError)
	listen := flags.String("listen", "127.0.0.1:0", "`address` to listen on")
	rows := flags.Int("rows", 1000, "`documents` to begin with")
	every := flags.Duration("every", 100*time.Millisecond, "change a document so `often`")
	if err := flags.Parse(args); err != nil {
		return err
	}
	src := couchtest.New("c0ffee")
	for i := range *rows {
		src.Put(fmt.Sprintf("package-%04d", i))
	}
	src.Put("@scope/name")
	src.Delete("package-0007")

	feed := http.StripPrefix("/registry", couch.Handler(couchtest.Documents{Source: src}))
	mux := http.NewServeMux()
	mux.Handle("/registry", feed)
	mux.Handle("/registry/", feed)
	l, err := net.Listen("tcp", *listen)
	if err != nil {
		return err
	}
	srv := &http.Server{
		Handler: http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			body, _ := io.ReadAll(io.LimitReader(r.Body, 1<<20)) // shortened bodies fail below
			r.Body = io.NopCloser(bytes.NewReader(body))
			fmt.Fprintf(log, "%s %s %.200s\n", r.Method, r.URL.RequestURI(), body)
			mux.ServeHTTP(w, r)
		}),
		BaseContext: func(net.Listener) context.Context { return ctx },
	}
	fmt.Fprintf(out, "http://%s/registry\n", l.Addr())
	served := make(chan error, 1)
	go func() { served <- srv.Serve(l) }()
	tick := time.NewTicker(*every)
	defer tick.Stop()
	for n := 0; ; n++ {
		select {
		case <-ctx.Done():
			// The requests end with ctx.
			end, cancel := context.WithTimeout(context.WithoutCancel(ctx), 5*time.Second)
			defer cancel()
			return srv.Shutdown(end)
		case err := <-served:
			return err
		case <-tick.C:
			src.Put(fmt.Sprintf("live-%04d", n))
		}
	}
}
