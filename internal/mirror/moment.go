package mirror

import (
	"errors"
	"fmt"
	"regexp"
	"strconv"
	"time"
)

// ErrMoment is returned by ParseMoment for what names no release.
var ErrMoment = errors.New("neither a release's number nor a date")

// ErrFuture is returned for a moment that has not come yet: what a registry will be
// then nobody knows.
var ErrFuture = errors.New("that moment has not come yet")

// clockSkew is how far a client's clock may go before this machine's.
const clockSkew = 5 * time.Minute

// Moment names one of a registry's releases: by its number, or the one that was
// current at a time. The zero Moment is the newest.
type Moment struct {
	number uint64    // 0: by time
	begins time.Time // the first second that belongs to it
	time   time.Time // the last one
	text   string    // as it was written
}

// The forms of a date. In a URL they need no escape.
var (
	dayForm  = regexp.MustCompile(`^\d{4}-\d\d-\d\d$`)
	timeForm = regexp.MustCompile(`^\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d(\.\d{1,9})?(Z|[+-]\d\d:\d\d)$`)
)

// ParseMoment reads a release's number, "41"; a day, "2026-11-20", which is all of
// that day in UTC; or a time as RFC 3339 has it. Anything else is ErrMoment.
func ParseMoment(text string) (Moment, error) {
	m := Moment{text: text}
	var err error
	switch {
	case dayForm.MatchString(text):
		if m.begins, err = time.Parse(time.DateOnly, text); err == nil {
			m.time = m.begins.AddDate(0, 0, 1).Add(-time.Second)
		}
	case timeForm.MatchString(text):
		m.time, err = time.Parse(time.RFC3339, text)
		m.begins = m.time
	default:
		m.number, err = strconv.ParseUint(text, 10, 64)
		if m.number == 0 || strconv.FormatUint(m.number, 10) != text {
			err = ErrMoment
		}
	}
	if err != nil {
		return Moment{}, fmt.Errorf("%.64q: %w", text, ErrMoment)
	}
	return m, nil
}

// String is as it was written.
func (m Moment) String() string { return m.text }

// Begun is ErrFuture for a time that begins more than five minutes after now. The day
// that runs has begun.
func (m Moment) Begun(now time.Time) error {
	if m.begins.After(now.Add(clockSkew)) {
		return fmt.Errorf("%s: %w: it is %s here", m.title(), ErrFuture, dateText(now))
	}
	return nil
}

// IsNumber says whether it is a number, which is one registry's alone.
func (m Moment) IsNumber() bool { return m.number > 0 }

// isNewest says whether it is the zero Moment.
func (m Moment) isNewest() bool { return m.text == "" }

// title says what it is to a person.
func (m Moment) title() string {
	if m.IsNumber() {
		return "release " + m.text
	}
	return "release as of " + m.text
}
