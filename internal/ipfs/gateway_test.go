package ipfs

import (
	"bytes"
	"context"
	"errors"
	"io"
	"net/http"
	"net/http/httptest"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/ipfs/boxo/ipns"
	blocks "github.com/ipfs/go-block-format"
)

// TestGatewayBelievesNothing: whatever a gateway sends, what reaches the sink
// was asked for and hashes to its CID, and a nil error means all came.
func TestGatewayBelievesNothing(t *testing.T) {
	t.Parallel()
	a, b, stray := randomLeaf(1, 1000), randomLeaf(2, 2000), randomLeaf(3, 10)
	root := dir(a, b)
	forged := must(blocks.NewBlockWithCid([]byte("forged"), a.Cid()))
	carOf := func(blks ...blocks.Block) []byte { return must(io.ReadAll(newCAR(carHeader, blks))) }
	whole := carOf(root, a, b)
	for _, test := range []struct {
		name  string
		serve http.HandlerFunc
		want  error // nil: success
	}{
		{"Whole", sendCAR(whole), nil},
		{"Twice", sendCAR(carOf(root, a, a, b, root)), nil},
		{"Forged", sendCAR(carOf(root, forged, b)), ErrBadGateway},
		{"Stray", sendCAR(carOf(root, stray, a, b)), ErrBadGateway},
		{"ChildFirst", sendCAR(carOf(a, root, b)), ErrBadGateway},
		{"Short", sendCAR(carOf(root, a)), ErrUnavailable},
		{"Empty", sendCAR(carOf()), ErrUnavailable},
		{"Garbage", sendCAR([]byte("<html>welcome to our hotel</html>")), ErrBadGateway},
		{"HugeSection", sendCAR(append(carOf(root), 0xff, 0xff, 0xff, 0xff, 0x7f)), ErrBadGateway},
		{"TooMuch", sendCAR(carOf(root, a, b)), ErrBadGateway},
		{"HTML", func(w http.ResponseWriter, _ *http.Request) { io.WriteString(w, "<html>") }, ErrBadGateway},
		{"NotFound", status(404, "no"), ErrNotFound},
		{"NotHeld", status(500, "ipld: could not find bafk"), ErrNotFound},
		{"Overloaded", status(429, "slow down"), ErrUnavailable},
		{"Broken", status(503, "later"), ErrUnavailable},
		{"CutOff", func(w http.ResponseWriter, _ *http.Request) {
			w.Header().Set("Content-Type", "application/vnd.ipld.car")
			w.Write(whole[:len(whole)-700])
			w.(http.Flusher).Flush()
			panic(http.ErrAbortHandler)
		}, ErrUnavailable},
	} {
		t.Run(test.name, func(t *testing.T) {
			srv := httptest.NewServer(test.serve)
			defer srv.Close()
			limit := int64(1 << 20)
			if test.name == "TooMuch" {
				limit = 2000
			}
			got := map[string]bool{}
			err := NewGateway(srv.URL).Fetch(t.Context(), root.Cid(), nil, ScopeAll, limit, func(blk blocks.Block) error {
				if got[blk.Cid().String()] {
					t.Errorf("%s came twice", blk.Cid())
				}
				got[blk.Cid().String()] = true
				return verify(blk.Cid(), blk.RawData())
			})
			if !errors.Is(err, test.want) {
				t.Errorf("%v, want %v", err, test.want)
			}
			if test.want == nil && len(got) != 3 {
				t.Errorf("%d blocks", len(got))
			}
			if got[stray.Cid().String()] {
				t.Error("a stray block reached the sink")
			}
		})
	}
}

func sendCAR(body []byte) http.HandlerFunc {
	return func(w http.ResponseWriter, _ *http.Request) {
		w.Header().Set("Content-Type", "application/vnd.ipld.car; version=1")
		w.Write(body)
	}
}

func status(code int, text string) http.HandlerFunc {
	return func(w http.ResponseWriter, _ *http.Request) { http.Error(w, text, code) }
}

// TestGatewaySinkError: the sink's error ends the download and comes back.
func TestGatewaySinkError(t *testing.T) {
	t.Parallel()
	full := errors.New("disk full")
	a := randomLeaf(1, 10)
	srv := httptest.NewServer(sendCAR(must(io.ReadAll(newCAR(carHeader, []blocks.Block{a})))))
	defer srv.Close()
	err := NewGateway(srv.URL).Fetch(t.Context(), a.Cid(), nil, ScopeAll, 1000, func(blocks.Block) error { return full })
	if !errors.Is(err, full) {
		t.Error(err)
	}
}

// TestGatewayBlock: one block, hashed, bounded and tried again.
func TestGatewayBlock(t *testing.T) {
	t.Parallel()
	b := randomLeaf(1, 1000)
	var tries atomic.Int32
	for name, test := range map[string]struct {
		serve http.HandlerFunc
		want  error
		tries int32
	}{
		"Good": {func(w http.ResponseWriter, _ *http.Request) { w.Write(b.RawData()) }, nil, 1},
		"OnceBroken": {func(w http.ResponseWriter, _ *http.Request) {
			if tries.Load() == 1 {
				w.WriteHeader(502)
				return
			}
			w.Write(b.RawData())
		}, nil, 2},
		"Forged":  {func(w http.ResponseWriter, _ *http.Request) { io.WriteString(w, "forged") }, ErrBadGateway, 1},
		"Endless": {func(w http.ResponseWriter, _ *http.Request) { w.Write(make([]byte, maxBlock+1)) }, ErrBadGateway, 1},
		"Broken":  {status(500, "oops"), ErrUnavailable, 3},
		"Absent":  {status(404, "no"), ErrNotFound, 1},
	} {
		tries.Store(0)
		srv := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			tries.Add(1)
			test.serve(w, r)
		}))
		got, err := NewGateway(srv.URL).Get(t.Context(), b.Cid())
		if !errors.Is(err, test.want) || tries.Load() != test.tries {
			t.Errorf("%s: %v after %d tries, want %v after %d", name, err, tries.Load(), test.want, test.tries)
		}
		if test.want == nil && (err != nil || !bytes.Equal(got.RawData(), b.RawData())) {
			t.Errorf("%s: %v", name, err)
		}
		srv.Close()
	}
}

// TestGatewayRecord: by /routing/v1, else by /ipns, and checked.
func TestGatewayRecord(t *testing.T) {
	t.Parallel()
	s, other := newSigner(t), newSigner(t)
	value, hour := randomLeaf(1, 1).Cid(), time.Now().Add(time.Hour)
	raw := s.sign(t, value, 1, hour)
	send := func(raw []byte) http.HandlerFunc {
		return func(w http.ResponseWriter, _ *http.Request) {
			w.Header().Set("Content-Type", recordType)
			w.Write(raw)
		}
	}
	expired := s.sign(t, value, 9, time.Now().Add(-time.Hour))
	nothing := func(w http.ResponseWriter, _ *http.Request) { http.Error(w, "delegate error: routing: not found", 200) }
	for _, test := range []struct {
		name          string
		routing, ipns http.HandlerFunc
		want          error
	}{
		{"Routing", send(raw), status(500, "unused"), nil},
		{"OnlyIPNS", status(404, "404 page not found"), send(raw), nil},
		{"RoutingBroken", status(400, "no"), send(raw), nil},
		{"Neither", nothing, status(404, "no"), ErrNotFound},
		{"Forged", send(other.sign(t, value, 9, hour)), status(404, "no"), ErrBadGateway},
		{"ExpiredOne", send(expired), send(raw), nil},
		{"ExpiredOther", send(raw), send(expired), nil},
		{"Expired", send(expired), status(404, "no"), nil},
		{"TooLong", send(make([]byte, ipns.MaxRecordSize+1)), status(404, "no"), ErrBadGateway},
	} {
		t.Run(test.name, func(t *testing.T) {
			srv := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
				if strings.HasPrefix(r.URL.Path, "/routing/v1/ipns/") {
					test.routing(w, r)
					return
				}
				test.ipns(w, r)
			}))
			defer srv.Close()
			got, err := NewGateway(srv.URL).Record(t.Context(), s.name)
			if !errors.Is(err, test.want) {
				t.Fatalf("%v, want %v", err, test.want)
			}
			want := raw
			if test.name == "Expired" {
				want = expired // there is no better one
			}
			if test.want == nil && !bytes.Equal(got, want) {
				t.Error("another record")
			}
		})
	}
}

// TestGatewayAway: nobody there, and a caller who goes.
func TestGatewayAway(t *testing.T) {
	t.Parallel()
	srv := httptest.NewServer(nil)
	srv.Close()
	g := NewGateway(srv.URL)
	if _, err := g.Get(t.Context(), randomLeaf(1, 1).Cid()); !errors.Is(err, ErrUnavailable) {
		t.Errorf("%v, want ErrUnavailable", err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if _, err := g.Get(ctx, randomLeaf(1, 1).Cid()); !errors.Is(err, context.Canceled) {
		t.Errorf("%v, want context.Canceled", err)
	}
}
