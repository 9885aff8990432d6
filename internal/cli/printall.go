package cli

import (
	"bufio"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"iter"
	"strings"
)

// PrintAll prints items as they come, for there may be millions: with asJSON one
// object, whose first member, key, is their list, then what rest says once all
// are printed; else a line each, as line has it, and then what end says. rest and
// end may be nil.
func PrintAll[T any](out io.Writer, asJSON bool, key string, items iter.Seq2[T, error], line func(T) string, rest func() map[string]any, end func() string) (err error) {
	w := bufio.NewWriter(out)
	defer func() { err = errors.Join(err, w.Flush()) }()
	if !asJSON {
		for item, err := range items {
			if err != nil {
				return err
			}
			if _, err := fmt.Fprintln(w, line(item)); err != nil {
				return err
			}
		}
		if end != nil {
			_, err = fmt.Fprintln(w, end())
		}
		return err
	}
	fmt.Fprintf(w, "{\n  %q: [", key)
	between := "\n    "
	for item, err := range items {
		if err != nil {
			return err
		}
		var text strings.Builder
		each := json.NewEncoder(&text)
		each.SetEscapeHTML(false)
		each.SetIndent("    ", "  ")
		if err := each.Encode(item); err != nil {
			return err
		}
		if _, err := fmt.Fprint(w, between, strings.TrimSuffix(text.String(), "\n")); err != nil {
			return err
		}
		between = ",\n    "
	}
	fmt.Fprint(w, "\n  ]")
	if rest == nil {
		_, err = fmt.Fprint(w, "\n}\n")
		return err
	}
	var text strings.Builder
	if err := PrintJSON(&text, rest()); err != nil {
		return err
	}
	_, err = fmt.Fprint(w, ",", strings.TrimPrefix(text.String(), "{"))
	return err
}
