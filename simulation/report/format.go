package report

import (
	"fmt"
	"math"
	"regexp"
	"strconv"
	"strings"
	"time"
	"unicode"
	"unicode/utf8"

	"starling/simulation"
)

// Between a number and its unit stands a space that does not break.
const nbsp = "\u00a0"

// none stands for a number that there was nothing to measure for.
const none = "–"

// span writes a time for a reader: two or three digits and a unit.
func span(d time.Duration) string {
	switch s := math.Abs(d.Seconds()); {
	case d == 0:
		return "0" + nbsp + "s"
	case s >= 1 && s < 60 && d%time.Second == 0:
		return strconv.Itoa(int(d/time.Second)) + nbsp + "s"
	case s < 0.0995:
		return digits(d.Seconds()*1e3, 2) + nbsp + "ms"
	case s < 9.95:
		return digits(d.Seconds(), 2) + nbsp + "s"
	case s < 99.5:
		return digits(d.Seconds(), 3) + nbsp + "s"
	case s < 3600:
		return twoUnits(d.Round(time.Second), time.Minute, "min", time.Second, "s")
	case s < 48*3600:
		return twoUnits(d.Round(time.Minute), time.Hour, "h", time.Minute, "min")
	}
	return twoUnits(d.Round(time.Hour), 24*time.Hour, "d", time.Hour, "h")
}

// Time writes a time as [Headline] does, for a terminal.
func Time(d time.Duration) string { return strings.ReplaceAll(span(d), nbsp, " ") }

func twoUnits(d, big time.Duration, bigUnit string, small time.Duration, smallUnit string) string {
	s := fmt.Sprintf("%d%s%s", d/big, nbsp, bigUnit)
	if rest := d % big / small; rest != 0 {
		s += fmt.Sprintf("%s%d%s%s", nbsp, rest, nbsp, smallUnit)
	}
	return s
}

// digits writes v with n significant digits, never as a power of ten.
func digits(v float64, n int) string {
	if v == 0 {
		return "0"
	}
	places := n - 1 - int(math.Floor(math.Log10(math.Abs(v))))
	scale := math.Pow(10, float64(places))
	v = math.Round(v*scale) / scale
	return grouped(strconv.FormatFloat(v, 'f', max(0, places), 64))
}

// grouped puts a comma between thousands.
func grouped(s string) string {
	whole, fraction, dot := strings.Cut(s, ".")
	first := 0
	if strings.HasPrefix(whole, "-") {
		first = 1
	}
	for i := len(whole) - 3; i > first; i -= 3 {
		whole = whole[:i] + "," + whole[i:]
	}
	if dot {
		return whole + "." + fraction
	}
	return whole
}

func integer[T ~int | ~int64](n T) string { return grouped(strconv.FormatInt(int64(n), 10)) }

// percent writes a share; only what is whole reads "100 %".
func percent(share float64) string {
	if math.IsNaN(share) {
		return none
	}
	s := strconv.FormatFloat(share*100, 'f', 1, 64)
	switch {
	case share < 1 && s == "100.0":
		s = ">" + nbsp + "99.9"
	case share > 0 && s == "0.0":
		s = "<" + nbsp + "0.1"
	default:
		s = strings.TrimSuffix(s, ".0")
	}
	return s + nbsp + "%"
}

// tenths writes a share for a column, always with one decimal.
func tenths(share float64) string {
	if math.IsNaN(share) {
		return none
	}
	return strconv.FormatFloat(share*100, 'f', 1, 64) + nbsp + "%"
}

// size writes bytes in powers of 1,000.
func size(v float64) string {
	if math.IsNaN(v) {
		return none
	}
	units := []string{"B", "kB", "MB", "GB", "TB"}
	i := 0
	for math.Abs(v) >= 999.5 && i < len(units)-1 {
		v /= 1000
		i++
	}
	if i == 0 {
		return digits(math.Round(v), 3) + nbsp + units[0]
	}
	return digits(v, 3) + nbsp + units[i]
}

// roundSize is size for an axis, whose numbers are round.
func roundSize(v float64) string {
	s, unit, _ := strings.Cut(size(v), nbsp)
	if strings.Contains(s, ".") {
		s = strings.TrimRight(strings.TrimRight(s, "0"), ".")
	}
	return s + nbsp + unit
}

// value writes a metric with its unit.
func value(v float64, unit string) string {
	switch {
	case math.IsNaN(v):
		return none
	case math.IsInf(v, 0):
		return strconv.FormatFloat(v, 'g', -1, 64)
	}
	switch unit {
	case "s":
		if math.Abs(v) < 100*365*86400 {
			return span(time.Duration(v * float64(time.Second)))
		}
	case "share":
		return percent(v)
	case "bytes":
		return size(v)
	case "times real time":
		return digits(v, 3) + "×"
	}
	s := plainNumber(v)
	if unit != "" {
		s += nbsp + unit
	}
	return s
}

// apart writes a metric as a number and the unit for the next column.
func apart(v float64, unit string) (string, string) {
	switch unit {
	case "s", "share", "bytes", "times real time":
		return value(v, unit), ""
	}
	return value(v, ""), unit
}

// plainNumber writes whole numbers whole and others with three digits.
func plainNumber(v float64) string {
	switch a := math.Abs(v); {
	case v == math.Trunc(v) && a < 1e15:
		return integer(int64(v))
	case a >= 1e15 || a < 1e-6:
		return strconv.FormatFloat(v, 'g', 4, 64)
	case a >= 1000:
		return integer(int64(math.Round(v)))
	}
	s := digits(v, 3)
	if strings.Contains(s, ".") {
		s = strings.TrimRight(strings.TrimRight(s, "0"), ".")
	}
	return s
}

// plural joins a number and its noun.
func plural(n int, one, many string) string {
	if n == 1 {
		return "1 " + one
	}
	return integer(n) + " " + many
}

// precise matches a duration as Go writes it, with more digits than anybody reads.
var precise = regexp.MustCompile(`-?\b(\d+h)?(\d+m)?\d+\.\d{3,}(s|ms|µs)\b`)

// rounded writes the durations in a sentence for a reader.
func rounded(s string) string {
	return precise.ReplaceAllStringFunc(s, func(text string) string {
		d, err := time.ParseDuration(text)
		switch {
		case err != nil:
			return text // too long for one
		case d < 0:
			return "-" + span(-d)
		}
		return span(d)
	})
}

// visible replaces what a terminal or an XML reader would take for more than
// text.
func visible(s string) string {
	return strings.Map(func(r rune) rune {
		if r == unicode.ReplacementChar || !unicode.IsPrint(r) && r != '\u00a0' {
			return '·'
		}
		return r
	}, s)
}

// short cuts s to n characters.
func short(s string, n int) string {
	if r := []rune(s); len(r) > n {
		return string(r[:n-1]) + "…"
	}
	return s
}

// label is the name of a metric, written as words.
func label(name string) string {
	if l, ok := labels[name]; ok {
		return l
	}
	words := strings.ReplaceAll(name, "_", " ")
	if words == "" {
		return words
	}
	first, size := utf8.DecodeRuneInString(words)
	return string(unicode.ToUpper(first)) + words[size:]
}

var labels = map[string]string{
	"accepted":          "Messages accepted",
	"delivered":         "Messages delivered",
	"delivered_share":   "Share delivered",
	"confirmed":         "Deliveries confirmed",
	"delivery_p50":      "Delivery time, median",
	"delivery_p90":      "Delivery time, 90th percentile",
	"delivery_p99":      "Delivery time, 99th percentile",
	"delivery_max":      "Delivery time, longest",
	"sealed":            "Envelopes sealed",
	"opened":            "Envelopes opened",
	"duplicates":        "Envelopes that came again",
	"refused":           "Envelopes that did not open",
	"bytes_sent":        "Bytes sent",
	"bytes_per_message": "Bytes sent per message delivered",
	"lookups":           "Lookups",
	"lookup_success":    "Share of lookups that found",
	"lookup_stale":      "Lookups offered only old records",
	"lookup_hops_mean":  "Hops of a lookup, mean",
	"lookup_p50":        "Lookup time, median",
	"lookup_p99":        "Lookup time, 99th percentile",
	"friends_direct":    "Friends connected directly",
	"friends_relayed":   "Friends connected through a circuit only",
	"crashes":           "Crashes",
	"simulated_s":       "Simulated time",
	"wall_s":            "Real time",
	"cpu_s":             "CPU time",
	"speed":             "Simulated per real time",
	"peak_memory":       "Memory, peak",
}

// setting names the parameters of a run in a fixed order.
func setting(params map[string]string, keys []string) string {
	parts := make([]string, len(keys))
	for i, k := range keys {
		parts[i] = k + "=" + params[k]
	}
	return strings.Join(parts, ", ")
}

// settingKey tells settings apart, whatever their values are; setting is for
// readers.
func settingKey(params map[string]string, keys []string) string {
	var b strings.Builder
	for _, k := range keys {
		fmt.Fprintf(&b, "%q=%q ", k, params[k])
	}
	return b.String()
}

// title names a run.
func title(m simulation.Manifest) string {
	return fmt.Sprintf("%s, seed %d", m.Scenario, m.Seed)
}
