package mirror

import (
	"container/list"
	"sync"
)

// lru keeps the most recently used values whose costs, in bytes, add up to at
// most max. A value dearer than a quarter of max is not kept, so that one giant
// never empties the cache.
type lru[K comparable, V any] struct {
	max int64

	mu    sync.Mutex
	used  int64
	order *list.List // of *lruEntry, most recently used first
	items map[K]*list.Element
}

type lruEntry[K comparable, V any] struct {
	key   K
	value V
	cost  int64
}

func newLRU[K comparable, V any](max int64) *lru[K, V] {
	return &lru[K, V]{max: max, order: list.New(), items: map[K]*list.Element{}}
}

func (c *lru[K, V]) get(key K) (V, bool) {
	c.mu.Lock()
	defer c.mu.Unlock()
	e, ok := c.items[key]
	if !ok {
		var zero V
		return zero, false
	}
	c.order.MoveToFront(e)
	return e.Value.(*lruEntry[K, V]).value, true
}

func (c *lru[K, V]) put(key K, value V, cost int64) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if e, ok := c.items[key]; ok {
		c.drop(e)
	}
	if cost > c.max/4 {
		return
	}
	c.items[key] = c.order.PushFront(&lruEntry[K, V]{key, value, cost})
	c.used += cost
	for c.used > c.max {
		c.drop(c.order.Back())
	}
}

func (c *lru[K, V]) remove(key K) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if e, ok := c.items[key]; ok {
		c.drop(e)
	}
}

// drop needs mu.
func (c *lru[K, V]) drop(e *list.Element) {
	entry := c.order.Remove(e).(*lruEntry[K, V])
	delete(c.items, entry.key)
	c.used -= entry.cost
}
