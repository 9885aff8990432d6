package unixfs

import (
	"context"
	"fmt"
	"sync"

	blocks "github.com/ipfs/go-block-format"
	"github.com/ipfs/go-cid"
)

// walk visits a DAG depth first and in order, while it asks for the blocks
// ahead. At most ahead blocks are asked for or waiting on each level of the
// DAG. One goroutine uses it; close ends and awaits those that it started.
type walk[T any] struct {
	ctx    context.Context
	cancel context.CancelFunc
	g      Getter
	ahead  int
	stack  []*visit[T] // the next visit is the last
	wg     sync.WaitGroup
}

// visit is one block to come, with what the visitor knows of it.
type visit[T any] struct {
	cid  cid.Cid
	what T
	got  chan fetched // nil until asked for
}

type fetched struct {
	blk blocks.Block
	err error
}

func newWalk[T any](ctx context.Context, g Getter, ahead int) *walk[T] {
	ctx, cancel := context.WithCancel(ctx)
	return &walk[T]{ctx: ctx, cancel: cancel, g: g, ahead: ahead}
}

func (w *walk[T]) close() {
	w.cancel()
	w.wg.Wait()
}

// push puts vs before everything that still waits, in their order.
func (w *walk[T]) push(vs []*visit[T]) {
	for i := len(vs) - 1; i >= 0; i-- {
		w.stack = append(w.stack, vs[i])
	}
}

// next waits for the next block. ok is false when there are no more.
func (w *walk[T]) next() (what T, blk blocks.Block, ok bool, err error) {
	if len(w.stack) == 0 {
		return what, nil, false, nil
	}
	top := len(w.stack) - 1
	v := w.stack[top]
	if top == 0 && v.got == nil { // alone: no need of a goroutine
		w.stack = w.stack[:0]
		blk, err = get(w.ctx, w.g, v.cid)
		return v.what, blk, true, err
	}
	for i := top; i >= 0 && i > top-w.ahead; i-- {
		if v := w.stack[i]; v.got == nil {
			v.got = make(chan fetched, 1)
			w.wg.Go(func() {
				blk, err := get(w.ctx, w.g, v.cid)
				v.got <- fetched{blk, err}
			})
		}
	}
	w.stack[top] = nil
	w.stack = w.stack[:top]
	f := <-v.got
	return v.what, f.blk, true, f.err
}

// get names the block in an error, as a Getter need not.
func get(ctx context.Context, g Getter, c cid.Cid) (blocks.Block, error) {
	blk, err := g.Get(ctx, c)
	if err != nil {
		return nil, fmt.Errorf("get block %s: %w", c, err)
	}
	return blk, nil
}
