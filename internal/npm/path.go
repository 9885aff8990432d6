package npm

import (
	"fmt"
	"net/url"
	"strings"
)

// SplitPath gives the segments of the path of a request to a registry, each with
// its percent-encoding taken off: clients write a scope's slash as it is, as %2f or
// as %2F, and may encode any other character. A slash at the end counts for nothing.
func SplitPath(u *url.URL) ([]string, error) {
	path := strings.TrimSuffix(strings.TrimPrefix(u.EscapedPath(), "/"), "/")
	if path == "" {
		return nil, nil
	}
	segments := strings.Split(path, "/")
	for i, s := range segments {
		var err error
		if segments[i], err = url.PathUnescape(s); err != nil {
			return nil, fmt.Errorf("the path is not properly escaped: %w", err)
		}
	}
	return segments, nil
}

// TakeName takes a package's name off the front of a path, which has one segment at
// least: a scope may be a segment of its own, or part of the name's. Error: ErrName.
func TakeName(segments []string) (Name, []string, error) {
	first, rest := segments[0], segments[1:]
	if strings.HasPrefix(first, "@") && !strings.Contains(first, "/") && len(rest) > 0 {
		first, rest = first+"/"+rest[0], rest[1:]
	}
	name, err := ParseName(first)
	return name, rest, err
}
