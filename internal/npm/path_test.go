package npm

import (
	"net/url"
	"slices"
	"testing"
)

func TestPaths(t *testing.T) {
	for _, tt := range []struct {
		path string
		name Name
		rest []string
		bad  bool
	}{
		{"/left-pad", "left-pad", nil, false},
		{"/left-pad/", "left-pad", nil, false},
		{"/left-pad/1.0.0", "left-pad", []string{"1.0.0"}, false},
		{"/@types/node", "@types/node", nil, false},
		{"/@types%2fnode", "@types/node", nil, false},
		{"/@types%2Fnode/latest", "@types/node", []string{"latest"}, false},
		{"/%40types%2fnode", "@types/node", nil, false},
		{"/%40types/node/-/node-1.0.0.tgz", "@types/node", []string{"-", "node-1.0.0.tgz"}, false},
		{"/@types", "", nil, true},
		{"/..%2fetc", "", nil, true},
		{"/%2e%2e/etc", "", nil, true},
		{"/left-pad%00", "", nil, true},
	} {
		u, err := url.Parse("http://registry.example.test" + tt.path)
		if err != nil {
			t.Fatal(err)
		}
		segments, err := SplitPath(u)
		if err != nil {
			t.Fatal(err)
		}
		name, rest, err := TakeName(segments)
		if (err != nil) != tt.bad || !tt.bad && (name != tt.name || !slices.Equal(rest, tt.rest)) {
			t.Errorf("%s: %q, %q, %v", tt.path, name, rest, err)
		}
	}
	if _, err := SplitPath(&url.URL{Path: "/%zz", RawPath: "/%zz"}); err != nil {
		t.Errorf("a raw path that is none is encoded anew: %v", err)
	}
	if segments, err := SplitPath(&url.URL{Path: "/"}); len(segments) > 0 || err != nil {
		t.Errorf("the root: %q, %v", segments, err)
	}
}
