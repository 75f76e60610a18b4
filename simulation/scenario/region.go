package scenario

import (
	_ "embed"
	"strings"

	"starling/simulation/network"
)

//go:embed internet.csv
var internetCSV string

// Internet returns latencies between six regions of the public internet, as
// scenario files get them with matrix = "internet"; those also have a Spread of
// 0.2. They are round figures of the right order and size.
func Internet() network.Matrix {
	m, err := network.ParseMatrix(strings.NewReader(internetCSV))
	if err != nil {
		panic("scenario: internal error: the embedded matrix does not parse: " + err.Error())
	}
	return m
}
