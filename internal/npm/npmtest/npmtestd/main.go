// Command npmtestd runs npmtest's registry for end-to-end scripts. It prints the
// registry's URL and the feed's, one a line, and serves until it is
// interrupted. POST /-/npmtest/publish takes a txtar archive of more,
// POST /-/npmtest/unpublish?name=N&version=V takes a version away, and
// POST /-/npmtest/delete?name=N a package.
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"io"
	"net/http"
	"os"
	"os/signal"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"time"

	"github.com/registry-mirror/registry-mirror/internal/npm/npmtest"
)

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	err := run(ctx, os.Args[1:], os.Stdout)
	stop()
	if errors.Is(err, flag.ErrHelp) {
		return
	}
	if err != nil {
		fmt.Fprintln(os.Stderr, "npmtestd: error:", err)
		os.Exit(1)
	}
}

func run(ctx context.Context, args []string, out io.Writer) error {
	flags := flag.NewFlagSet("npmtestd", flag.ContinueOnError)
	listen := flags.String("listen", "127.0.0.1:0", "`address` to listen on")
	dir := flags.String("dir", "", "`directory` of .txtar files to publish, in order of their names")
	packages := flags.Int("packages", 0, "publish so `many` generated packages")
	sign := flags.Bool("sign", false, "sign versions as npm's registry does, with a key made for this run")
	seed := flags.Uint64("seed", 1, "`seed` of the generated packages")
	if err := flags.Parse(args); err != nil {
		return err
	}
	r, err := npmtest.Start(*listen, npmtest.Generate(*packages, *seed))
	if err != nil {
		return err
	}
	defer r.Close()
	if *sign {
		r.Sign()
	}
	if *dir != "" {
		files, err := filepath.Glob(filepath.Join(*dir, "*.txtar"))
		if err != nil {
			return err
		}
		slices.Sort(files)
		for _, file := range files {
			archive, err := os.ReadFile(file)
			if err != nil {
				return err
			}
			if err := r.Add(string(archive)); err != nil {
				return fmt.Errorf("%s: %w", file, err)
			}
		}
	}
	r.Fault("/-/npmtest/", func(w http.ResponseWriter, req *http.Request) bool {
		if req.Method != http.MethodPost {
			http.Error(w, "POST only", http.StatusMethodNotAllowed)
			return true
		}
		if err := change(r, req); err != nil {
			http.Error(w, err.Error(), http.StatusBadRequest)
		}
		return true
	})
	fmt.Fprintln(out, r.URL)
	fmt.Fprintln(out, r.FeedURL)
	<-ctx.Done()
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), 5*time.Second)
	defer cancel()
	return r.Shutdown(ctx)
}

// change does what a request below /-/npmtest/ asks for.
func change(r *npmtest.Registry, req *http.Request) (err error) {
	defer func() {
		// Outside of a test the registry panics on what cannot be done.
		if p := recover(); p != nil {
			err = fmt.Errorf("%v", p)
		}
	}()
	q := req.URL.Query()
	switch strings.TrimPrefix(req.URL.Path, "/-/npmtest/") {
	case "publish":
		archive, err := io.ReadAll(io.LimitReader(req.Body, 1<<30))
		if err != nil {
			return err
		}
		return r.Add(string(archive))
	case "unpublish":
		r.Unpublish(q.Get("name"), q.Get("version"))
	case "delete":
		r.Delete(q.Get("name"))
	default:
		return fmt.Errorf("no such change: %s", req.URL.Path)
	}
	return nil
}
