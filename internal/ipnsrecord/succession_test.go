package ipnsrecord

import (
	"errors"
	"testing"
	"time"

	"github.com/ipfs/boxo/ipns"
	"github.com/ipfs/go-cid"
)

func commitment(t testing.TB, name ipns.Name) string {
	t.Helper()
	c, err := Commitment(name)
	if err != nil {
		t.Fatal(err)
	}
	return c
}

func TestAcceptRelease(t *testing.T) {
	one, two := testCID(t, "one"), testCID(t, "two")
	s, err := AcceptRelease(State{}, Release{Root: one, Number: 3, Next: "aa"})
	if err != nil {
		t.Fatal(err)
	}
	for _, c := range []struct {
		name   string
		root   cid.Cid
		number uint64
		next   string
		err    error
	}{
		{"same", one, 3, "aa", nil},
		{"newer", two, 4, "aa", nil},
		{"newer, silent on its successor", two, 4, "", nil},
		{"older", two, 2, "aa", ErrRollback},
		{"twin", two, 3, "aa", ErrEquivocation},
		{"a thief's successor", two, 4, "bb", ErrSuccessor},
	} {
		t.Run(c.name, func(t *testing.T) {
			got, err := AcceptRelease(s, Release{Root: c.root, Number: c.number, Next: c.next})
			if !errors.Is(err, c.err) || (c.err == nil) != (err == nil) {
				t.Fatalf("got %v, want %v", err, c.err)
			}
			want := s
			if err == nil {
				want.Number, want.Root = c.number, c.root.String()
			}
			if got != want {
				t.Errorf("state is %+v", got)
			}
		})
	}
}

// Who is promised, and by whom, for every way in which a release can name names.
func TestAnnounce(t *testing.T) {
	_, followed := testKey(t, 1)
	_, owner := testKey(t, 2)  // the successor that the owner minted
	_, after := testKey(t, 3)  // and the one after
	_, thief := testKey(t, 4)  // a successor of the thief's own
	_, before := testKey(t, 5) // what was there before
	promise, afterwards, stolen := commitment(t, owner), commitment(t, after), commitment(t, thief)
	old, f, o, a, th := before.String(), followed.String(), owner.String(), after.String(), thief.String()
	state := func(next, successor string) State {
		return State{Name: f, Sequence: 7, Value: "v", Number: 3, Root: "r", Next: next, Successor: successor}
	}
	pinned, fresh, told := state(promise, ""), state("", ""), state(promise, o)

	for _, c := range []struct {
		name  string
		s     State
		names []string
		next  string
		want  State
		err   error
	}{
		{"the first promise is pinned", fresh, nil, promise, pinned, nil},
		{"the first, of a registry that was rotated before", fresh, []string{old, f}, promise, pinned, nil},
		{"no promise", pinned, nil, "", pinned, nil},
		{"the same", pinned, nil, promise, pinned, nil},
		{"a thief's promise", pinned, nil, stolen, pinned, ErrSuccessor},
		{"a thief's promise after a rotation before", pinned, []string{old, f}, stolen, pinned, ErrSuccessor},

		{"the successor", pinned, []string{f, o}, afterwards, told, nil},
		{"the successor, again", told, []string{f, o}, afterwards, told, nil},
		// What follows the successor is no business of the name followed now.
		{"the successor, and a thief's promise behind it", pinned, []string{f, o}, stolen, told, nil},
		{"the successor, which promises nothing", pinned, []string{f, o}, "", told, nil},
		{"two rotations at once", pinned, []string{old, f, o, a}, stolen, told, nil},
		{"the first word is a rotation", fresh, []string{f, o}, afterwards, told, nil},
		{"a thief's name", pinned, []string{f, th}, promise, pinned, ErrSuccessor},
		{"a thief's name between", pinned, []string{f, th, o}, promise, pinned, ErrSuccessor},
		{"a thief's name after the owner's was told", told, []string{f, th}, stolen, told, ErrSuccessor},
		{"a thief takes the announcement back", told, nil, promise, told, nil},
		{"the followed name left out", pinned, []string{o}, afterwards, pinned, ErrSuccessor},
		{"the followed name twice", pinned, []string{f, o, f}, promise, pinned, ErrSuccessor},
		{"itself", fresh, []string{f, f}, promise, fresh, ErrSuccessor},
		{"no name", pinned, []string{f, "../../etc"}, promise, pinned, ErrSuccessor},
		{"another form of the name", pinned, []string{f, owner.Peer().String()}, promise, pinned, ErrSuccessor},
		// Somebody's own name for another registry's releases.
		{"names of others, and nothing pinned", fresh, []string{o, a}, afterwards, fresh, nil},
	} {
		t.Run(c.name, func(t *testing.T) {
			r := Release{Root: testCID(t, "root"), Number: 4, Names: c.names, Next: c.next}
			got, err := Announce(c.s, r)
			if !errors.Is(err, c.err) || (c.err == nil) != (err == nil) {
				t.Fatalf("got %v, want %v", err, c.err)
			}
			if got != c.want {
				t.Errorf("state is %+v, want %+v", got, c.want)
			}
			accepted, err := AcceptRelease(c.s, r)
			if !errors.Is(err, c.err) || (c.err == nil) != (err == nil) {
				t.Fatalf("AcceptRelease: %v", err)
			}
			if accepted.Next != got.Next || accepted.Successor != got.Successor {
				t.Errorf("AcceptRelease gives %+v", accepted)
			}
		})
	}
}

func TestTold(t *testing.T) {
	_, followed := testKey(t, 1)
	_, owner := testKey(t, 2)
	_, thief := testKey(t, 3)
	pinned := State{Name: followed.String(), Next: commitment(t, owner)}
	for _, c := range []struct {
		name string
		s    State
		who  ipns.Name
		want string
		err  error
	}{
		{"who was promised", pinned, owner, owner.String(), nil},
		{"another", pinned, thief, "", ErrSuccessor},
		{"nothing was promised", State{Name: followed.String()}, owner, "", ErrSuccessor},
		{"no name", pinned, ipns.Name{}, "", ErrSuccessor},
	} {
		got, err := Told(c.s, c.who)
		if !errors.Is(err, c.err) || (c.err == nil) != (err == nil) || got.Successor != c.want || got.Next != c.s.Next {
			t.Errorf("%s: %+v, %v", c.name, got, err)
		}
	}
}

func TestSucceed(t *testing.T) {
	_, followed := testKey(t, 1)
	key, owner := testKey(t, 2)
	other, thief := testKey(t, 3)
	hour := epoch.Add(time.Hour)
	// A thief ran all numbers of the old name up.
	told := State{Name: followed.String(), Sequence: MaxSequence - 1, Value: "v", EOL: hour.Add(time.Hour), Number: 1 << 60, Root: "r",
		Next: commitment(t, owner), Successor: owner.String()}
	untold, unfit, loop := told, told, told
	untold.Successor = ""
	unfit.Next = commitment(t, thief)
	loop.Name = owner.String()
	first := record(t, key, owner, "new", 1, hour)
	for _, c := range []struct {
		name   string
		s      State
		former []string
		r      Record
		err    error
	}{
		{"a record of the successor", told, nil, first, nil},
		{"and others were followed before", told, []string{thief.String()}, first, nil},
		{"nobody was announced", untold, nil, first, ErrName},
		{"a record of another", told, nil, record(t, other, thief, "new", 1, hour), ErrName},
		{"the pin is of another", unfit, nil, first, ErrSuccessor},
		{"it was followed before", told, []string{owner.String()}, first, ErrSuccessor},
		{"it is followed now", loop, nil, first, ErrSuccessor},
	} {
		t.Run(c.name, func(t *testing.T) {
			got, err := Succeed(c.s, c.former, c.r)
			if !errors.Is(err, c.err) || (c.err == nil) != (err == nil) {
				t.Fatalf("got %v, want %v", err, c.err)
			}
			want := c.s
			if err == nil {
				want = State{Name: owner.String(), Sequence: 1, Value: first.Value.String(), EOL: hour}
			}
			if got != want {
				t.Errorf("state is %+v", got)
			}
		})
	}
}
