package page

import (
	"fmt"
	"html/template"
	"math"
	"net/url"
	"strings"
	"time"
	"unicode"
	"unicode/utf8"

	"github.com/registry-mirror/registry-mirror/internal/mirror"
	"github.com/registry-mirror/registry-mirror/internal/npm"
)

// functions are those of the templates.
var functions = template.FuncMap{
	"bytes": size, "count": count, "thousands": thousands, "ago": ago, "day": day, "moment": moment, "sentence": sentence, "capital": func(text any) string { return capital(fmt.Sprint(text)) },
	"address": address, "outward": link, "name": packageName,
	"sum": sum, "share": share, "bars": bars, "source": source, "short": short,
}

// size is a number of bytes for people.
func size(n any) string {
	value, unit := 0.0, 0
	switch n := n.(type) {
	case int64:
		value = float64(n)
	case uint64:
		value = float64(n)
	}
	if value < 1024 {
		return fmt.Sprintf("%.0f B", value)
	}
	value /= 1024
	for ; value >= 1024 && unit < 3; unit++ {
		value /= 1024
	}
	return fmt.Sprintf("%.1f %ciB", value, "KMGT"[unit])
}

// thousands is a whole number, its thousands apart.
func thousands(n any) string {
	text := fmt.Sprint(n)
	for i := len(text) - 3; i > 0; i -= 3 {
		text = text[:i] + "," + text[i:]
	}
	return text
}

// count is a whole number and what it counts.
func count(n any, one string) string {
	text := thousands(n)
	if text != "1" {
		one += "s"
	}
	return text + " " + one
}

// ago is how long before now something was, or how long after.
func ago(now, t time.Time) string {
	d := now.Sub(t)
	format := "%s ago"
	if d < 0 {
		d, format = -d, "in %s"
	}
	var text string
	switch {
	case d < time.Second:
		return "just now"
	case d < 90*time.Second:
		text = count(int(d/time.Second), "second")
	case d < 90*time.Minute:
		text = count(int(d/time.Minute), "minute")
	case d < 48*time.Hour:
		text = count(int(d/time.Hour), "hour")
	case d < 730*24*time.Hour:
		text = count(int(d/(24*time.Hour)), "day")
	default:
		text = count(int(d/(365*24*time.Hour)), "year")
	}
	return fmt.Sprintf(format, text)
}

func moment(t time.Time) string { return t.UTC().Format("2006-01-02 15:04 UTC") }

// day is the day of a time in a packument, which may be anything.
func day(text string) string {
	t, err := time.Parse(time.RFC3339, text)
	if err != nil {
		return ""
	}
	return t.UTC().Format(time.DateOnly)
}

// capital is text that begins with a capital.
func capital(text string) string {
	first, n := utf8.DecodeRuneInString(text)
	if n == 0 {
		return ""
	}
	return string(unicode.ToUpper(first)) + text[n:]
}

// sentence begins with a capital and ends with a period.
func sentence(text string) string {
	if text = capital(text); text == "" {
		return ""
	}
	if !strings.ContainsAny(text[len(text)-1:], ".!?") {
		text += "."
	}
	return text
}

// address is a registry's name as its path.
func address(name string) string {
	if strings.HasPrefix(name, "/") {
		return name
	}
	return "/ipns/" + name
}

// short is the beginning and end of a CID, or of another long name.
func short(text string) string {
	if len(text) <= 24 {
		return text
	}
	return text[:12] + "…" + text[len(text)-8:]
}

// link is an address that a page may lead to, "" for others: what a manifest has is
// its publisher's, git addresses among it.
func link(text string) string {
	text = strings.TrimPrefix(text, "git+")
	if rest, ok := strings.CutPrefix(text, "git://github.com/"); ok {
		text = "https://github.com/" + rest
	}
	u, err := url.Parse(text)
	if err != nil || u.Scheme != "http" && u.Scheme != "https" || u.Host == "" || len(text) > 2048 {
		return ""
	}
	u.User = nil
	return u.String()
}

// packageName is text where it is the name of a package, else "".
func packageName(text string) string {
	name, err := npm.ParseName(text)
	if err != nil {
		return ""
	}
	return string(name)
}

// sum is all bytes of some.
func sum(all ...mirror.Bytes) (s mirror.Bytes) {
	for _, b := range all {
		s.Cache += b.Cache
		s.Bitswap += b.Bitswap
		s.CAR += b.CAR
		s.Upstream += b.Upstream
	}
	return s
}

func total(b mirror.Bytes) int64 { return b.Cache + b.Bitswap + b.CAR + b.Upstream }

// share is how much of some bytes was held already; "" where there were none. All and
// none are said of what is so, and not of what is nearly: bars shows the difference.
func share(b mirror.Bytes) string {
	all := total(b)
	if all == 0 {
		return ""
	}
	percent := math.Round(100 * float64(b.Cache) / float64(all))
	switch {
	case b.Cache == 0, b.Cache == all:
		return fmt.Sprintf("%.0f %%", percent)
	case percent < 1:
		return "under 1 %"
	case percent > 99:
		return "over 99 %"
	}
	return fmt.Sprintf("%.0f %%", percent)
}

// bar is a part of a bar that is 100 wide.
type bar struct {
	Class string
	X, W  float64
}

// bars are the parts of some bytes by source.
func bars(b mirror.Bytes) (all []bar) {
	x := 0.0
	for _, part := range []struct {
		class string
		n     int64
	}{{"held", b.Cache}, {"peers", b.Bitswap}, {"gateways", b.CAR}, {"upstream", b.Upstream}} {
		if part.n > 0 {
			w := 100 * float64(part.n) / float64(total(b))
			all = append(all, bar{part.class, x, w})
			x += w
		}
	}
	return all
}

// source is who an arrival's source is.
func source(a mirror.Arrival) string {
	switch a.Source {
	case "bitswap":
		return "peers, by bitswap"
	case "car":
		return "the gateway " + a.From
	case "upstream":
		return "the registry upstream"
	}
	return a.Source
}
