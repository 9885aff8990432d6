package policy

import (
	"fmt"
	"maps"
	"regexp"
	"slices"
)

// title is what a policy may be called: everybody reads it.
var title = regexp.MustCompile(`^[A-Za-z0-9][A-Za-z0-9._-]{0,63}$`)

// Read reads a policy as it stands in a table of a configuration file: Rules by their
// keys in JSON, and its name, which is otherwise that given. A table without rules is
// a policy that keeps nothing out; no table (nil) is no word on it, and gives nil.
// Errors wrap ErrRule and name the key.
func Read(table map[string]any, name string) (*Policy, string, error) {
	if table == nil {
		return nil, name, nil
	}
	var r Rules
	lists := map[string]*[]string{"only": &r.Only, "except": &r.Except, "min-age-except": &r.MinAgeExcept}
	words := map[string]*string{"signatures": &r.Signatures, "min-age": &r.MinAge, "name": &name}
	for _, key := range slices.Sorted(maps.Keys(table)) {
		word, isWord := table[key].(string)
		list, isList := table[key].([]any)
		switch {
		case words[key] == nil && lists[key] == nil:
			return nil, "", fmt.Errorf("%.80q: %w: the keys are only, except, signatures, min-age, min-age-except and name", key, ErrRule)
		case words[key] != nil && !isWord:
			return nil, "", fmt.Errorf(`%s: %w: it is written in quotes, as in min-age = "3d"`, key, ErrRule)
		case words[key] != nil:
			*words[key] = word
		case !isList:
			return nil, "", fmt.Errorf(`%s: %w: it is a list, as in only = ["@acme/*", "lodash@4"]`, key, ErrRule)
		}
		for _, one := range list {
			text, ok := one.(string)
			if !ok {
				return nil, "", fmt.Errorf(`%s: %w: %.80v is not in quotes, as in only = ["lodash@4"]`, key, ErrRule, one)
			}
			*lists[key] = append(*lists[key], text)
		}
	}
	if !title.MatchString(name) {
		return nil, "", fmt.Errorf("name: %w: %.80q has other than letters, digits, dot, hyphen and underscore, or more than 64", ErrRule, name)
	}
	p, err := Parse(r)
	return p, name, err
}
