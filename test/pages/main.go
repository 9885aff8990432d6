// Command pages shows the pages of a mirror to a headless Chromium: in light and dark,
// wide and narrow, with a screenshot of each. It fails where a page complains, is wider
// than its window, cannot be used by keyboard or read aloud, or has too little contrast;
// where the search does not follow what is typed; and where a hostile readme does
// anything at all.
//
//	apt-get install chromium
//	go run ./test/pages --shots DIR
package main

import (
	"context"
	"encoding/base64"
	"errors"
	"flag"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"os"
	"os/signal"
	"path/filepath"
	"strings"
	"sync/atomic"
	"time"

	"github.com/registry-mirror/registry-mirror/internal/page"
)

func main() {
	chromium := flag.String("chromium", "/usr/bin/chromium", "browser to use")
	shots := flag.String("shots", "", "directory for the screenshots; none without")
	flag.Parse()
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt)
	err := run(ctx, *chromium, *shots)
	stop()
	if err != nil {
		fmt.Fprintln(os.Stderr, "pages: error:", err)
		os.Exit(1)
	}
	fmt.Println("pages: ok")
}

// look is how a page is looked at.
type look struct {
	scheme string
	width  int
}

func run(ctx context.Context, chromium, shots string) (err error) {
	if shots != "" {
		if err := os.MkdirAll(shots, 0o755); err != nil {
			return err
		}
	}
	// marker counts what a hostile readme reaches; control shows that it would.
	var marker atomic.Int64
	mux := http.NewServeMux()
	mux.HandleFunc("/marker", func(w http.ResponseWriter, r *http.Request) { marker.Add(1) })
	mux.HandleFunc("/control", func(w http.ResponseWriter, r *http.Request) {
		w.Header().Set("Content-Type", "text/html")
		io.WriteString(w, "<!DOCTYPE html><title>control</title>"+hostile)
	})
	mux.Handle("/", http.NotFoundHandler())
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return err
	}
	server := &http.Server{Handler: page.Handler(mux, registry{}, slog.New(slog.DiscardHandler)), ReadHeaderTimeout: 10 * time.Second}
	go server.Serve(l)
	defer server.Close()
	root := "http://" + l.Addr().String()

	b, err := startBrowser(ctx, chromium)
	if b != nil {
		defer func() { err = errors.Join(err, b.close()) }()
	}
	if err != nil {
		return fmt.Errorf("start %s: %w", chromium, err)
	}
	var problems []error
	fmt.Printf("%-34s %8s %8s\n", "page", "bytes", "load ms")
	for _, p := range []struct{ name, path string }{
		{"state", "/"}, {"search", "/-/web/search?q=left"}, {"package", "/-/web/package/left-pad"},
		{"withheld", "/-/web/package/left-pad@1.2.0"}, {"hostile", "/-/web/package/hostile"}, {"missing", "/-/web/package/no-such"},
	} {
		for _, at := range []look{{"light", 1280}, {"dark", 1280}, {"light", 390}, {"dark", 390}} {
			name := fmt.Sprintf("%s-%s-%d", p.name, at.scheme, at.width)
			if err := b.inspect(ctx, root+p.path, name, at, shots); err != nil {
				problems = append(problems, fmt.Errorf("%s: %w", name, err))
			}
		}
	}
	if err := b.types(ctx, root); err != nil {
		problems = append(problems, fmt.Errorf("search as one types: %w", err))
	}
	if n := marker.Load(); n != 0 {
		problems = append(problems, fmt.Errorf("the hostile readme reached its marker %d times", n))
	}
	if _, err := b.open(ctx, root+"/control"); err != nil {
		return err
	}
	if err := b.eval(ctx, `new Promise(done => setTimeout(done, 500))`, nil); err != nil {
		return err
	}
	n := marker.Load()
	if n < 3 {
		problems = append(problems, fmt.Errorf("without the pages' care the hostile readme reached its marker only %d times", n))
	}
	fmt.Printf("hostile readme: marker reached 0 times; as it stands, in a page of its own, %d times\n", n)
	return errors.Join(problems...)
}

// audit looks for what people stumble over. It gives a line for each.
const audit = `(() => {
	const found = [];
	const all = s => [...document.querySelectorAll(s)];
	if (document.documentElement.scrollWidth > innerWidth) found.push("it is " + document.documentElement.scrollWidth + " wide in a window of " + innerWidth);
	for (const [what, n] of [["h1", 1], ["main", 1], ["header", 1]]) if (all(what).length !== n) found.push(all(what).length + " " + what);
	if (!document.documentElement.lang) found.push("no language");
	for (const e of all("input")) if (!e.labels.length) found.push("an input without a label");
	for (const e of all("main table:not(.readme table)")) if (!e.querySelector("thead th[scope=col]")) found.push("a table without headers");
	const ids = all("[id]").map(e => e.id);
	if (new Set(ids).size !== ids.length) found.push("an id twice");
	for (const e of all("[aria-labelledby]")) if (!document.getElementById(e.getAttribute("aria-labelledby"))) found.push("a label that is not there");
	for (const e of all("script:not([src]), [style], img, iframe, object, embed, meta[http-equiv], style")) found.push("there is " + e.outerHTML.slice(0, 80));
	for (const e of all("*")) for (const a of e.attributes) if (a.name.startsWith("on")) found.push("a handler " + a.name);
	for (const e of all("a[href]")) if (!["http:", "https:", "mailto:"].includes(e.protocol)) found.push("a link to " + e.href);
	if (document.getElementById("pwned") || window.pwned || document.title.includes("pwned")) found.push("the readme did something");
	let level = 0;
	for (const e of all("h1, h2, h3, h4, h5, h6")) { const l = +e.tagName[1]; if (l > level + 1 && !e.closest(".readme")) found.push("a heading of level " + l + " after " + level); level = l; }
	const rgb = c => c.match(/[\d.]+/g).map(Number);
	const light = c => { const [r, g, b] = c.map(v => (v /= 255) <= .03928 ? v / 12.92 : ((v + .055) / 1.055) ** 2.4); return .2126 * r + .7152 * g + .0722 * b; };
	const walk = document.createTreeWalker(document.body, NodeFilter.SHOW_TEXT);
	const poor = new Set();
	while (walk.nextNode()) {
		const e = walk.currentNode.parentElement;
		if (!walk.currentNode.data.trim() || !e.getClientRects().length || e.closest(".hidden, label, .skip")) continue;
		let back = e;
		while (back && rgb(getComputedStyle(back).backgroundColor)[3] === 0) back = back.parentElement;
		const [a, b] = [light(rgb(getComputedStyle(e).color)), light(rgb(getComputedStyle(back ?? document.body).backgroundColor))];
		const ratio = (Math.max(a, b) + .05) / (Math.min(a, b) + .05);
		if (ratio < 4.5) poor.add("contrast " + ratio.toFixed(2) + " of " + e.className + " " + e.tagName);
	}
	return found.concat([...poor]);
})()`

// inspect opens a page and says what is wrong with it.
func (b *browser) inspect(ctx context.Context, url, name string, at look, shots string) error {
	for _, set := range []struct {
		method string
		params map[string]any
	}{
		{"Emulation.setDeviceMetricsOverride", map[string]any{"width": at.width, "height": 900, "deviceScaleFactor": 1, "mobile": at.width < 600}},
		{"Emulation.setEmulatedMedia", map[string]any{"features": []map[string]string{{"name": "prefers-color-scheme", "value": at.scheme}}}},
	} {
		if err := b.call(ctx, set.method, set.params, nil); err != nil {
			return err
		}
	}
	complaints, err := b.open(ctx, url)
	if err != nil {
		return err
	}
	var problems []error
	for _, c := range complaints {
		// A status that is meant is logged by the browser all the same.
		if !strings.Contains(c, "Failed to load resource: the server responded with a status of 404") {
			problems = append(problems, errors.New("it complains: "+c))
		}
	}
	var found []string
	if err := b.eval(ctx, audit, &found); err != nil {
		return err
	}
	for _, f := range found {
		problems = append(problems, errors.New(f))
	}
	var cost struct {
		Bytes int     `json:"bytes"`
		Load  float64 `json:"load"`
	}
	if err := b.eval(ctx, `(() => {
		const all = [...performance.getEntriesByType("navigation"), ...performance.getEntriesByType("resource")];
		return { bytes: all.reduce((n, e) => n + e.encodedBodySize, 0), load: performance.getEntriesByType("navigation")[0].loadEventStart };
	})()`, &cost); err != nil {
		return err
	}
	fmt.Printf("%-34s %8d %8.0f\n", name, cost.Bytes, cost.Load)
	if shots != "" {
		var shot struct {
			Data string `json:"data"`
		}
		if err := b.call(ctx, "Page.captureScreenshot", map[string]any{"captureBeyondViewport": true}, &shot); err != nil {
			return err
		}
		png, err := base64.StdEncoding.DecodeString(shot.Data)
		if err == nil {
			err = os.WriteFile(filepath.Join(shots, name+".png"), png, 0o644)
		}
		if err != nil {
			return err
		}
	}
	// By keyboard: the first stop leads past the header. The search takes the focus
	// itself, for whoever comes there types.
	if !strings.HasPrefix(name, "search") {
		for _, kind := range []string{"keyDown", "keyUp"} {
			if err := b.call(ctx, "Input.dispatchKeyEvent", map[string]any{"type": kind, "key": "Tab", "code": "Tab", "windowsVirtualKeyCode": 9}, nil); err != nil {
				return err
			}
		}
		var focus string
		if err := b.eval(ctx, `document.activeElement.className`, &focus); err != nil {
			return err
		}
		if focus != "skip" {
			problems = append(problems, fmt.Errorf("the first stop of Tab is %q", focus))
		}
	}
	return errors.Join(problems...)
}

// types types into the search and waits for what it finds.
func (b *browser) types(ctx context.Context, root string) error {
	if _, err := b.open(ctx, root+"/-/web/search"); err != nil {
		return err
	}
	for _, typed := range []struct{ text, count, first string }{
		{"pad", "2 packages, 1 to 2 shown", "left-pad"},
		{"-x<b>", "No package here has “pad-x<b>” in its name, nor in what is held of it.", ""},
	} {
		if err := b.call(ctx, "Input.insertText", map[string]any{"text": typed.text}, nil); err != nil {
			return err
		}
		var got struct{ Count, First, Query string }
		err := b.eval(ctx, `new Promise(done => {
			const want = `+fmt.Sprintf("%q", typed.count)+`;
			const look = (tries) => {
				const count = document.getElementById("count").textContent;
				if (count !== want && tries > 0) return setTimeout(look, 50, tries - 1);
				done({ Count: count, First: document.querySelector("#results a")?.textContent ?? "", Query: new URL(location).searchParams.get("q") });
			};
			look(100);
		})`, &got)
		if err != nil {
			return err
		}
		if got.Count != typed.count || got.First != typed.first {
			return fmt.Errorf("after %q it says %q and shows %q", typed.text, got.Count, got.First)
		}
		fmt.Printf("typed %-8q -> %s (address ?q=%s)\n", typed.text, got.Count, got.Query)
	}
	return nil
}
