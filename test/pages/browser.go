package main

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"slices"
	"sync"
	"time"
)

// browser is a headless Chromium, spoken to by the DevTools protocol over a pipe, and
// its only tab.
type browser struct {
	cmd     *exec.Cmd
	dir     string
	to      io.WriteCloser
	session string

	mu      sync.Mutex
	last    int
	waiting map[int]chan message
	events  []message // since they were last taken
	arrived chan struct{}
}

type message struct {
	ID      int             `json:"id,omitempty"`
	Session string          `json:"sessionId,omitempty"`
	Method  string          `json:"method,omitempty"`
	Params  json.RawMessage `json:"params,omitempty"`
	Result  json.RawMessage `json:"result,omitempty"`
	Error   *struct {
		Message string `json:"message"`
	} `json:"error,omitempty"`
}

func startBrowser(ctx context.Context, path string) (b *browser, err error) {
	dir, err := os.MkdirTemp("", "pages-chromium-*")
	if err != nil {
		return nil, err
	}
	b = &browser{dir: dir, waiting: map[int]chan message{}, arrived: make(chan struct{}, 1)}
	b.cmd = exec.CommandContext(ctx, path, "--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run",
		"--disable-background-networking", "--disable-component-update", "--disable-sync", "--hide-scrollbars",
		"--user-data-dir="+dir, "--remote-debugging-pipe", "about:blank")
	theirs, to, err := os.Pipe()
	if err != nil {
		return nil, err
	}
	from, ours, err := os.Pipe()
	if err != nil {
		return nil, err
	}
	b.to = to
	b.cmd.ExtraFiles = []*os.File{theirs, ours} // 3 is read and 4 is written
	if err := b.cmd.Start(); err != nil {
		return nil, err
	}
	theirs.Close()
	ours.Close()
	go b.listen(from)
	var target struct {
		ID string `json:"targetId"`
	}
	if err := b.call(ctx, "Target.createTarget", map[string]any{"url": "about:blank"}, &target); err != nil {
		return b, err
	}
	var session struct {
		ID string `json:"sessionId"`
	}
	if err := b.call(ctx, "Target.attachToTarget", map[string]any{"targetId": target.ID, "flatten": true}, &session); err != nil {
		return b, err
	}
	b.session = session.ID
	for _, domain := range []string{"Page", "Runtime", "Log"} {
		if err := b.call(ctx, domain+".enable", nil, nil); err != nil {
			return b, err
		}
	}
	return b, nil
}

// close ends the browser and takes its directory away. Its children end by themselves
// once it is gone, and write there until then.
func (b *browser) close() (err error) {
	b.to.Close()
	_ = b.cmd.Process.Kill()
	_ = b.cmd.Wait()
	for range 50 {
		if err = os.RemoveAll(b.dir); err == nil {
			return nil
		}
		time.Sleep(100 * time.Millisecond)
	}
	return err
}

func (b *browser) listen(from io.ReadCloser) {
	defer from.Close()
	lines := bufio.NewReader(from)
	for {
		raw, err := lines.ReadBytes(0)
		b.mu.Lock()
		if err != nil {
			for _, c := range b.waiting {
				close(c)
			}
			b.waiting = nil
			b.mu.Unlock()
			return
		}
		var m message
		if json.Unmarshal(raw[:len(raw)-1], &m) == nil {
			if c := b.waiting[m.ID]; m.ID != 0 && c != nil {
				delete(b.waiting, m.ID)
				c <- m
			} else {
				b.events = append(b.events, m)
				select {
				case b.arrived <- struct{}{}:
				default:
				}
			}
		}
		b.mu.Unlock()
	}
}

func (b *browser) call(ctx context.Context, method string, params, result any) error {
	ctx, cancel := context.WithTimeout(ctx, 30*time.Second)
	defer cancel()
	raw, err := json.Marshal(params)
	if err != nil {
		return err
	}
	answer := make(chan message, 1)
	b.mu.Lock()
	if b.waiting == nil {
		b.mu.Unlock()
		return errors.New("the browser has ended")
	}
	b.last++
	m := message{ID: b.last, Session: b.session, Method: method, Params: raw}
	b.waiting[m.ID] = answer
	b.mu.Unlock()
	if raw, err = json.Marshal(m); err == nil {
		_, err = b.to.Write(append(raw, 0))
	}
	if err != nil {
		return fmt.Errorf("%s: %w", method, err)
	}
	select {
	case got, ok := <-answer:
		switch {
		case !ok:
			return fmt.Errorf("%s: the browser has ended", method)
		case got.Error != nil:
			return fmt.Errorf("%s: %s", method, got.Error.Message)
		case result != nil:
			return json.Unmarshal(got.Result, result)
		}
		return nil
	case <-ctx.Done():
		return fmt.Errorf("%s: %w", method, ctx.Err())
	}
}

// take takes all events away.
func (b *browser) take() []message {
	b.mu.Lock()
	defer b.mu.Unlock()
	all := b.events
	b.events = nil
	return all
}

// open shows a page and gives what it complained of while it loaded.
func (b *browser) open(ctx context.Context, url string) (complaints []string, err error) {
	ctx, cancel := context.WithTimeout(ctx, 30*time.Second)
	defer cancel()
	b.take()
	if err := b.call(ctx, "Page.navigate", map[string]any{"url": url}, nil); err != nil {
		return nil, err
	}
	for {
		events := b.take()
		for _, e := range events {
			if e.Method == "Log.entryAdded" || e.Method == "Runtime.exceptionThrown" || e.Method == "Runtime.consoleAPICalled" {
				complaints = append(complaints, string(e.Params))
			}
		}
		if slices.ContainsFunc(events, func(e message) bool { return e.Method == "Page.loadEventFired" }) {
			return complaints, nil
		}
		select {
		case <-b.arrived:
		case <-ctx.Done():
			return complaints, fmt.Errorf("%s: %w", url, ctx.Err())
		}
	}
}

// eval gives the value of a script's expression, waiting for a promise.
func (b *browser) eval(ctx context.Context, script string, value any) error {
	var got struct {
		Result struct {
			Value json.RawMessage `json:"value"`
		} `json:"result"`
		Exception *struct {
			Text string `json:"text"`
		} `json:"exceptionDetails"`
	}
	err := b.call(ctx, "Runtime.evaluate", map[string]any{"expression": script, "returnByValue": true, "awaitPromise": true}, &got)
	if err == nil && got.Exception != nil {
		err = fmt.Errorf("script: %s", got.Exception.Text)
	}
	if err == nil && value != nil {
		err = json.Unmarshal(got.Result.Value, value)
	}
	return err
}
