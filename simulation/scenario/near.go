package scenario

// near returns the word that another one was probably meant to be, or nothing:
// at most one letter in three is wrong.
func near(word string, words []string) string {
	meant, least := "", len(word)
	for _, w := range words {
		long := max(len(word), len(w))
		if long-min(len(word), len(w)) > long/3 {
			continue
		}
		if d := distance(word, w); 3*d <= long && d < least {
			meant, least = w, d
		}
	}
	return meant
}

// distance counts the letters to put in, leave out, replace or swap with the
// next to make b of a: the optimal string alignment distance.
func distance(a, b string) int {
	rows := make([][]int, len(a)+1)
	for i := range rows {
		rows[i] = make([]int, len(b)+1)
		rows[i][0] = i
	}
	for j := range rows[0] {
		rows[0][j] = j
	}
	for i := 1; i <= len(a); i++ {
		for j := 1; j <= len(b); j++ {
			cost := 1
			if a[i-1] == b[j-1] {
				cost = 0
			}
			d := min(rows[i-1][j]+1, rows[i][j-1]+1, rows[i-1][j-1]+cost)
			if i > 1 && j > 1 && a[i-1] == b[j-2] && a[i-2] == b[j-1] {
				d = min(d, rows[i-2][j-2]+1)
			}
			rows[i][j] = d
		}
	}
	return rows[len(a)][len(b)]
}
