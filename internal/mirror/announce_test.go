package mirror

import (
	"net/http"
	"sync"
	"testing"
	"time"

	"github.com/ipfs/go-cid"
)

// crier is who tells others what is here.
type crier struct {
	mu   sync.Mutex
	said map[cid.Cid]bool
}

func (c *crier) Announce(cids ...cid.Cid) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.said == nil {
		c.said = map[cid.Cid]bool{}
	}
	for _, one := range cids {
		c.said[one] = true
	}
}

func (c *crier) Withdraw(cids ...cid.Cid) error {
	c.mu.Lock()
	defer c.mu.Unlock()
	for _, one := range cids {
		delete(c.said, one)
	}
	return nil
}

func (c *crier) says(one cid.Cid) bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.said[one]
}

// TestAnnounced: what is announced is the newest list, and of the registry's packages
// those that are here whole: after a restart too, without what another registry has in
// the same node.
func TestAnnounced(t *testing.T) {
	const size = 1500 << 10
	w, names := cachedWorld(t, size)
	private, _ := cachedWorld(t, 2000)
	private.publish("d")
	c := testCache(t, CacheOptions{Bound: 2*size + size/2, Now: func() time.Time { return w.now }})
	part := c.Part("node", w.node, nil)
	first, again := &crier{}, &crier{}
	m := w.synced(func(o *Options) { o.Cached, o.Announce = part, first })
	silent := private.synced(func(o *Options) { o.Cached = part })
	tarball := func(w *world, name string) cid.Cid { return w.files[name+"-1.0.0.tgz"] }
	fetch := func(m *Mirror, name string) {
		t.Helper()
		if r := get(m, tarballPath(name, name+"-1.0.0.tgz")); r.Code != http.StatusOK {
			t.Fatalf("%s: %d", name, r.Code)
		}
		quiet(t, c)
	}
	if !first.says(w.release) || first.says(tarball(w, "a")) {
		t.Error("announced before anything was installed: not the release, or a tarball")
	}
	fetch(m, "a")
	fetch(silent, "d")
	get(m, "/a")
	quiet(t, c)
	for what, one := range map[string]cid.Cid{"tarball": tarball(w, "a"), "document": w.docs["a"], "directory": w.dirs["a"]} {
		if !first.says(one) {
			t.Errorf("the %s is not announced", what)
		}
	}
	if first.says(tarball(w, "b")) {
		t.Error("announced without being here")
	}
	before := w.release
	w.publish(names[:3]...)
	check(t, m.Sync(t.Context()))
	if first.says(before) || !first.says(w.release) {
		t.Error("the older release is announced, or the newer is not")
	}
	fetch(m, "b")
	fetch(m, "c") // a goes
	m.o.Announce = again
	m.announceHeld(t.Context())
	for name, want := range map[string]bool{"a": false, "b": true, "c": true} {
		if again.says(tarball(w, name)) != want {
			t.Errorf("after a restart %s is announced: %v", name, !want)
		}
	}
	if !again.says(w.release) {
		t.Error("after a restart the release is not announced")
	}
	if one := tarball(private, "d"); !part.knows(one) || first.says(one) || again.says(one) {
		t.Error("what another registry has is announced, or was not fetched")
	}
}
