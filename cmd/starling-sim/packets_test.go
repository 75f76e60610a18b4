package main

import (
	"errors"
	"os"
	"path/filepath"
	"testing"
	"time"

	"starling/simulation/network"
)

// The table says of which face each line is, and nothing of when it arrives if
// that is not foreseen.
func TestPacketsTable(t *testing.T) {
	file := filepath.Join(t.TempDir(), "packets.csv")
	write, finish, err := packets(file)
	if err != nil {
		t.Fatal(err)
	}
	write(1500*time.Millisecond, network.Chunk{From: 1, To: 2, Arrival: time.Unix(7, 5), Size: 100})
	write(2*time.Second, network.Chunk{From: 2, To: 1, Size: 1200, Datagram: true})
	if err := finish(); err != nil {
		t.Fatal(err)
	}
	if _, _, err := packets(file); !errors.Is(err, os.ErrExist) {
		t.Errorf("a file that was there: %v", err)
	}
	if _, finish, err := packets(os.DevNull); err != nil || finish() != nil {
		t.Errorf("no file: %v", err)
	}
	got, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	want := "sent_s,from,to,arrival_unix_ns,bytes,face\n1.500000000,1,2,7000000005,100,stream\n2.000000000,2,1,,1200,packet\n"
	if string(got) != want {
		t.Errorf("got\n%swant\n%s", got, want)
	}
}
