package scenario

import (
	_ "embed"
	"strings"

	"starling/simulation/network"
)

//go:embed internet.csv
var internetCSV string

// internetMatrix returns the matrix of the public internet.
func internetMatrix() network.Matrix {
	m, err := network.ParseMatrix(strings.NewReader(internetCSV))
	if err != nil {
		panic("scenario: internal error: the embedded matrix does not parse: " + err.Error())
	}
	return m
}
