package index

import (
	"os"
	"testing"
	"time"
)

// TestRemoveCopies: of copies that were left each is removed, but none that is looked at
// or has just been made.
func TestRemoveCopies(t *testing.T) {
	dir := t.TempDir()
	ix, err := Create(dir+"/index", Options{Documents: "test-1", Gateway: "http://127.0.0.1:8080"})
	if err != nil {
		t.Fatal(err)
	}
	defer ix.Close()
	copies := dir + "/copies"
	if err := RemoveCopies(copies, time.Hour); err != nil {
		t.Errorf("where none was made: %v", err)
	}
	if err := os.Mkdir(copies, 0o700); err != nil {
		t.Fatal(err)
	}
	for _, name := range []string{"fresh", "left", "open"} {
		if err := ix.Copy(copies + "/" + name); err != nil {
			t.Fatal(err)
		}
	}
	looked, err := Open(copies+"/open", Options{})
	if err != nil {
		t.Fatal(err)
	}
	defer looked.Close()
	before := time.Now().Add(-2 * time.Hour)
	for _, name := range []string{"left", "open"} {
		if err := os.Chtimes(copies+"/"+name, before, before); err != nil {
			t.Fatal(err)
		}
	}
	if err := RemoveCopies(copies, time.Hour); err != nil {
		t.Fatal(err)
	}
	there, err := os.ReadDir(copies)
	if err != nil {
		t.Fatal(err)
	}
	if len(there) != 2 || there[0].Name() != "fresh" || there[1].Name() != "open" {
		t.Errorf("there are %v, want fresh and open", there)
	}
}
