package document

import (
	"bytes"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"os/exec"
	"strings"
	"testing"
	"testing/iotest"

	stdgzip "compress/gzip"

	"github.com/registry-mirror/registry-mirror/internal/loopback"
)

func TestMain(m *testing.M) { loopback.Main(m) }

// packument renders a document of npm's shape with the given versions.
func packument(rev int, versions []int) []byte {
	var b bytes.Buffer
	fmt.Fprintf(&b, `{"_id":"pkg","_rev":"%d-x","name":"pkg","dist-tags":{"latest":"1.%d.0"},"versions":{`, rev, versions[len(versions)-1])
	for i, v := range versions {
		if i > 0 {
			b.WriteByte(',')
		}
		fmt.Fprintf(&b, `"1.%d.0":{"name":"pkg","version":"1.%d.0","description":"a \"quoted\" {thing}","scripts":{"test":"x\\"},"dist":{"shasum":"%x","files":[%d,[]]}}`,
			v, v, sha256.Sum256(fmt.Append(nil, v)), v)
	}
	b.WriteString("},\n \"time\":{\"created\":\"2020\"")
	for _, v := range versions {
		fmt.Fprintf(&b, `,"1.%d.0":"2020-01-01T00:00:00.%03dZ"`, v, v%1000)
	}
	b.WriteString(`},"readme":"` + strings.Repeat("lorem ipsum \\\" dolor ", 500) + `"}`)
	return b.Bytes()
}

func upTo(n int) []int {
	out := make([]int, n)
	for i := range out {
		out[i] = i
	}
	return out
}

func noise(n int) []byte {
	b := make([]byte, n)
	rand.NewChaCha8([32]byte{7}).Read(b)
	return b
}

func inputs() map[string][]byte {
	deep := bytes.Repeat([]byte(`{"versions":{"a":[`), 20_000)
	return map[string][]byte{
		"nothing":       nil,
		"small":         packument(1, upTo(3)),
		"large":         packument(1, upTo(3000)),
		"noise":         noise(3<<20 + 11),
		"exactly 1 MiB": noise(1 << 20),
		"text":          bytes.Repeat([]byte("not JSON, but text. "), 100_000),
		"zeros":         make([]byte, 5<<20),
		"deep":          deep,
		"cut off":       packument(1, upTo(3000))[:500_000],
		"one entry":     []byte(`{"versions":{"1.0.0":"` + strings.Repeat("x", 3<<20) + `"},"time":{}}`),
		"backslashes":   []byte(`{"versions":{"` + strings.Repeat(`\`, 1<<20) + `":1}}`),
		"no object":     []byte(`{"versions":[` + strings.Repeat("1,", 100_000) + `1],"time":7}`),
		"twice":         []byte(`{"versions":{"a":1},"versions":{"b":` + strings.Repeat(" ", 100_000) + `2}}`),
	}
}

func TestEncodeDecodes(t *testing.T) {
	for name, raw := range inputs() {
		d := Encode(raw)
		if d.Size != int64(len(raw)) {
			t.Errorf("%s: Size %d of %d", name, d.Size, len(raw))
		}
		for i, s := range d.Segments {
			if len(s) == 0 || len(s) > MaxSegment {
				t.Errorf("%s: segment %d has %d bytes", name, i, len(s))
			}
		}
		got, err := Decode(iotest.HalfReader(bytes.NewReader(d.Bytes())), d.Size, int64(len(raw)))
		if err != nil || !bytes.Equal(got, raw) {
			t.Errorf("%s: decoded %d bytes of %d, %v", name, len(got), len(raw), err)
		}
		z, err := stdgzip.NewReader(bytes.NewReader(d.Bytes()))
		if err != nil {
			t.Fatal(err)
		}
		z.Multistream(false)
		if got, err := io.ReadAll(z); err != nil || !bytes.Equal(got, raw) {
			t.Errorf("%s: the standard library decoded %d bytes of %d, %v", name, len(got), len(raw), err)
		}
	}
}

func TestGunzip(t *testing.T) {
	gunzip, err := exec.LookPath("gunzip")
	if err != nil {
		t.Skip("no gunzip on this machine")
	}
	raw := packument(1, upTo(3000))
	cmd := exec.CommandContext(t.Context(), gunzip, "-c")
	cmd.Stdin = bytes.NewReader(Encode(raw).Bytes())
	if got, err := cmd.Output(); err != nil || !bytes.Equal(got, raw) {
		t.Errorf("gunzip gave %d bytes of %d, %v", len(got), len(raw), err)
	}
}

func TestSectionsArePieces(t *testing.T) {
	for name, raw := range inputs() {
		sections := Sections(raw)
		if got := bytes.Join(sections, nil); !bytes.Equal(got, raw) {
			t.Errorf("%s: the pieces are not the whole", name)
		}
		for i, s := range sections {
			if len(s) == 0 || len(s) > MaxSegment {
				t.Errorf("%s: piece %d has %d bytes", name, i, len(s))
			}
		}
		if len(raw) > 0 && len(raw) <= whole && len(sections) != 1 {
			t.Errorf("%s: %d bytes in %d pieces", name, len(raw), len(sections))
		}
	}
	if n := len(Sections(packument(1, upTo(3000)))); n < 10 || n > 60 {
		t.Errorf("a packument of 3000 versions has %d pieces", n)
	}
}

// TestNewVersionLeavesSegments adds, changes and removes a version: all but a
// few segments stay as they were.
func TestNewVersionLeavesSegments(t *testing.T) {
	base := upTo(3000)
	middle := append(append(upTo(1500), 5000), base[1500:]...)
	removed := append(upTo(1500), base[1501:]...)
	old := map[string]bool{}
	first := Encode(packument(1, base))
	for _, s := range first.Segments {
		old[string(s)] = true
	}
	for name, versions := range map[string][]int{
		"at the end": upTo(3001), "in the middle": middle, "removed": removed,
	} {
		d := Encode(packument(2222, versions))
		fresh, size := 0, 0
		for _, s := range d.Segments {
			if !old[string(s)] {
				fresh++
				size += len(s)
			}
		}
		// The header, the section in versions, the one in time, the checksum;
		// two each where an edge moved.
		if fresh > 6 || size > len(first.Bytes())/2 {
			t.Errorf("%s: %d of %d segments are new, %d bytes of %d", name, fresh, len(d.Segments), size, len(first.Bytes()))
		}
		if fresh < 3 {
			t.Errorf("%s: only %d segments are new: the test tests nothing", name, fresh)
		}
	}
}

// TestGolden holds the encoder's bytes. Where this fails the encoder or the
// splitter changed, and with it every CID: that is another Format, or a
// dependency to put back, never a new number here.
func TestGolden(t *testing.T) {
	want := map[string]string{
		"nothing": "b99c87689405b2835940f50f5a40607f9d7cdc997d860a30faddaf4b8efe288e",
		"small":   "8ef6cabd82bc53563c9f6f8551a34bbea33fe9814937174f88b9f0d008fee68a",
		"large":   "5ed6f4786e16374feb656d0739eda3bb7b60e0c076acd0b6a0bef31bf9d2e2eb",
		"noise":   "c19211d49e7607f0f323e0a63ef77f5df789038bfd3997fd97b3cb230b4bcd4b",
		"text":    "847482dc88a5bbb3246e48a8d6c0eb9676a7d09d123d02d98be1902ac6ad8778",
		"zeros":   "e7ce81a56949a9ede6838a59756fbf411c812d71f0210546a78edb255c8a993f",
		"cut off": "5970ca98fd6cd77b645516019f681338592f67c7ebf332605bbe0ef10ed548ad",
	}
	in := inputs()
	for name, want := range want {
		d := Encode(in[name])
		h := sha256.New()
		for _, s := range d.Segments { // edges too
			fmt.Fprintf(h, "%d\n", len(s))
			h.Write(s)
		}
		if got := hex.EncodeToString(h.Sum(nil)); got != want {
			t.Errorf("%s (%d segments, %d bytes): %s, want %s", name, len(d.Segments), len(d.Bytes()), got, want)
		}
	}
	if Format != "sections-64k-16k-gzip-1" {
		t.Errorf("Format %q", Format)
	}
}

func TestDecodeRefuses(t *testing.T) {
	raw := packument(1, upTo(2000))
	good := Encode(raw).Bytes()
	flipped := bytes.Clone(good)
	flipped[len(flipped)/2] ^= 1
	sum := bytes.Clone(good)
	sum[len(sum)-5] ^= 1
	for name, c := range map[string]struct {
		in   []byte
		max  int64
		want error
	}{
		"one byte too many": {good, int64(len(raw)) - 1, ErrTooLarge},
		"a bomb":            {Encode(make([]byte, 50<<20)).Bytes(), 1 << 20, ErrTooLarge},
		"cut off":           {good[:len(good)-1], 1 << 30, ErrMalformed},
		"cut in the middle": {good[:len(good)/2], 1 << 30, ErrMalformed},
		"flipped":           {flipped, 1 << 30, ErrMalformed},
		"wrong checksum":    {sum, 1 << 30, ErrMalformed},
		"bytes after":       {append(bytes.Clone(good), 0), 1 << 30, ErrMalformed},
		"two members":       {append(bytes.Clone(good), good...), 1 << 30, ErrMalformed},
		"plain":             {raw, 1 << 30, ErrMalformed},
		"nothing":           {nil, 1 << 30, ErrMalformed},
	} {
		if got, err := Decode(bytes.NewReader(c.in), int64(len(raw)), c.max); !errors.Is(err, c.want) || got != nil {
			t.Errorf("%s: %d bytes, %v; want %v", name, len(got), err, c.want)
		}
	}
	boom := errors.New("boom")
	for _, n := range []int{0, 5, len(good) / 2, len(good)} {
		_, err := Decode(io.MultiReader(bytes.NewReader(good[:n]), iotest.ErrReader(boom)), 1000, 1<<30)
		if !errors.Is(err, boom) || errors.Is(err, ErrMalformed) {
			t.Errorf("reader failing after %d bytes: %v", n, err)
		}
	}
}

func FuzzEncode(f *testing.F) {
	f.Add(packument(1, upTo(5)), uint16(3))
	f.Add([]byte(`{"versions":{"a\"":{},"b":[1,"}"]},"time":{"x":"y"}}`), uint16(4000))
	f.Add([]byte("}{"), uint16(1))
	f.Fuzz(func(t *testing.T, part []byte, times uint16) {
		// Repeated, so that it is cut at all; splitter.scan sees it as it is too.
		raw := bytes.Repeat(part, min(int(times), 1+(1<<17)/(len(part)+1)))
		for _, b := range [][]byte{part, raw} {
			s := splitter{raw: b}
			s.scan()
			s.cut(len(b))
			if !bytes.Equal(bytes.Join(s.out, nil), b) {
				t.Fatal("the pieces are not the whole")
			}
		}
		d := Encode(raw)
		got, err := Decode(bytes.NewReader(d.Bytes()), 0, int64(len(raw)))
		if err != nil || !bytes.Equal(got, raw) {
			t.Fatalf("decoded %d bytes of %d, %v", len(got), len(raw), err)
		}
	})
}

func FuzzDecode(f *testing.F) {
	f.Add(Encode(packument(1, upTo(5))).Bytes())
	f.Add(Encode(nil).Bytes())
	f.Fuzz(func(t *testing.T, in []byte) {
		got, err := Decode(bytes.NewReader(in), int64(len(in))*3-50, 1<<20)
		if err != nil {
			return
		}
		z, err := stdgzip.NewReader(bytes.NewReader(in))
		if err != nil {
			t.Fatalf("the standard library refuses it: %v", err)
		}
		z.Multistream(false)
		if want, err := io.ReadAll(z); err != nil || !bytes.Equal(got, want) {
			t.Fatalf("the standard library reads %d bytes, not %d: %v", len(want), len(got), err)
		}
	})
}

func BenchmarkEncode(b *testing.B) {
	raw := packument(1, upTo(20_000))
	b.SetBytes(int64(len(raw)))
	for b.Loop() {
		Encode(raw)
	}
}
