package mirror

import (
	"errors"
	"net"
	"net/http"
	"sync"
	"time"

	"github.com/registry-mirror/registry-mirror/internal/crowd"
	"github.com/registry-mirror/registry-mirror/internal/unixfs"
)

const (
	// maxSending bounds the bytes that answers under way of one registry hold in memory.
	maxSending = 256 << 20
	// maxHeld is the most that a tarball on its way holds, in bytes: as many blocks
	// as are read ahead, and that which is being written.
	maxHeld = 9 * unixfs.ChunkSize
)

// sending is the answers under way that hold much memory.
type sending struct {
	crowd crowd.Crowd[*transfer]
	most  int64 // bytes

	mu   sync.Mutex
	held int64         // bytes
	door chan struct{} // one token: who has it is the next to begin
	left chan struct{} // one token: there may be room
}

func newSending(most int64) *sending {
	return &sending{most: most, door: make(chan struct{}, 1), left: make(chan struct{}, 1)}
}

// transfer is one of these. It waits for its client while a piece is written; what it
// is to hold does not count while it waits for a block that is not here.
type transfer struct {
	*patientWriter
	of       *sending
	size     int64
	host     string
	fetching int // under of.mu
}

// Client is the address that it is for.
func (t *transfer) Client() string { return t.host }

// begin waits for its turn, until the client has gone. Who holds nothing yet waits
// here; of those that do, one goes that is not read.
func (s *sending) begin(w http.ResponseWriter, r *http.Request, size int64) (*transfer, error) {
	p, ok := w.(*patientWriter)
	if !ok {
		return nil, errors.New("an answer that is not written with patience")
	}
	t := &transfer{patientWriter: p, of: s, size: min(max(size, 0), s.most)}
	t.host, _, _ = net.SplitHostPort(r.RemoteAddr)
	select {
	case s.door <- struct{}{}:
		defer func() { <-s.door }()
	case <-r.Context().Done():
		return nil, r.Context().Err()
	}
	for !s.take(t) {
		s.crowd.MakeRoom()
		select {
		case <-s.left:
		case <-time.After(crowd.Look):
		case <-r.Context().Done():
			return nil, r.Context().Err()
		}
	}
	s.crowd.Add(t)
	// Its time to be written begins now.
	p.extend(writePatience + tarballPatience)
	return t, nil
}

func (s *sending) take(t *transfer) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.held+t.size > s.most {
		return false
	}
	s.held += t.size
	return true
}

// add counts bytes that are held, or no longer.
func (s *sending) add(bytes int64) {
	if s.held += bytes; bytes < 0 {
		select {
		case s.left <- struct{}{}:
		default:
		}
	}
}

// done is called once nothing is held any more.
func (t *transfer) done() {
	t.of.crowd.Remove(t)
	t.of.mu.Lock()
	defer t.of.mu.Unlock()
	t.of.add(-t.size)
}

// fetch is called when a block is asked for that is not here, and its result when
// that is over. A nil transfer counts nothing.
func (t *transfer) fetch() (over func()) {
	if t == nil {
		return func() {}
	}
	t.of.mu.Lock()
	defer t.of.mu.Unlock()
	if t.fetching++; t.fetching == 1 {
		t.of.add(-t.size)
	}
	return func() {
		t.of.mu.Lock()
		defer t.of.mu.Unlock()
		if t.fetching--; t.fetching == 0 {
			t.of.add(t.size) // it goes on, room or not: it has begun
		}
	}
}
