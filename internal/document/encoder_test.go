package document

import (
	"bytes"
	"maps"
	"slices"
	"sync"
	"testing"
)

// same compares an encoder's document with the one made from nothing, segment by
// segment.
func same(t *testing.T, e *Encoder, raw []byte) Document {
	t.Helper()
	got, want := e.Encode(raw), Encode(raw)
	if got.Size != want.Size || !slices.EqualFunc(got.Segments, want.Segments, bytes.Equal) {
		t.Fatalf("%d segments of a document of %d bytes are not the %d that Encode gives", len(got.Segments), len(raw), len(want.Segments))
	}
	return got
}

func TestEncoderIsEncode(t *testing.T) {
	for _, memory := range []int{0, 1000, 40_000, 64 << 20} {
		e := NewEncoder(memory)
		for range 2 { // in another order each time
			for _, raw := range inputs() {
				same(t, e, raw)
			}
			for n := 2000; n < 2005; n++ {
				same(t, e, packument(n, upTo(n)))
			}
		}
		held := 0
		for _, z := range slices.Concat(slices.Collect(maps.Values(e.young)), slices.Collect(maps.Values(e.old))) {
			held += len(z)
		}
		if held > memory {
			t.Errorf("%d bytes are remembered of at most %d", held, memory)
		}
		if memory >= 40_000 && held == 0 {
			t.Errorf("nothing is remembered of at most %d bytes", memory)
		}
	}
}

// TestEncoderRemembers adds a version: what is unchanged is the very memory that
// was made before.
func TestEncoderRemembers(t *testing.T) {
	e := NewEncoder(1 << 20)
	before := map[*byte]bool{}
	for _, z := range same(t, e, packument(1, upTo(3000))).Segments[1:] {
		before[&z[0]] = true
	}
	d := same(t, e, packument(2, upTo(3001)))
	again := 0
	for _, z := range d.Segments[1:] {
		if !before[&z[0]] {
			again++
		}
	}
	// The last of the versions and of the times, and the checksum, which never was.
	if again > 3 {
		t.Errorf("%d of %d segments were compressed again", again, len(d.Segments))
	}
}

func TestEncoderForgets(t *testing.T) {
	of := func(name string) []byte {
		return bytes.ReplaceAll(packument(1, upTo(1000)), []byte("pkg"), []byte(name))
	}
	e := NewEncoder(4 * len(Encode(of("one")).Bytes()))
	asked, other := e.Encode(of("one")).Segments[1], e.Encode(of("two")).Segments[1]
	for i := range 20 {
		if z := e.Encode(of("one")).Segments[1]; &z[0] != &asked[0] {
			t.Fatalf("it forgot what it was asked for lately, in round %d", i)
		}
		e.Encode(of(string(rune('A' + i))))
	}
	if z := e.Encode(of("two")).Segments[1]; &z[0] == &other[0] {
		t.Error("it still knows what nobody asked for")
	}
}

func TestEncoderConcurrently(t *testing.T) {
	e := NewEncoder(100_000) // so that it forgets meanwhile
	var all sync.WaitGroup
	for n := range 4 {
		all.Go(func() {
			for rev := range 5 {
				raw := packument(rev, upTo(1000+n%2+rev))
				if !bytes.Equal(e.Encode(raw).Bytes(), Encode(raw).Bytes()) {
					t.Errorf("revision %d is not what Encode gives", rev)
				}
			}
		})
	}
	all.Wait()
}

// FuzzEncoder has one encoder make documents that share sections, with so little
// memory that it forgets some.
func FuzzEncoder(f *testing.F) {
	large := packument(1, upTo(300))
	f.Add([]byte(`,"1.7.0":{}`), uint32(5000), uint16(3))
	f.Add([]byte(`{"versions":{"`), uint32(1<<20), uint16(20))
	f.Fuzz(func(t *testing.T, part []byte, memory uint32, at uint16) {
		cut := int(at) * 2 % len(large)
		e := NewEncoder(int(memory % (1 << 20)))
		same(t, e, large)
		same(t, e, slices.Concat(large[:cut], part, large[cut:]))
		same(t, e, slices.Concat(part, large[cut:], part, large))
		same(t, e, large)
	})
}

func BenchmarkEncoder(b *testing.B) {
	raw := packument(1, upTo(20_000))
	e := NewEncoder(64 << 20)
	b.SetBytes(int64(len(raw)))
	for b.Loop() {
		e.Encode(raw)
	}
}
