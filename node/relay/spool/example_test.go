package spool_test

import (
	"context"
	"fmt"
	"log"
	"time"

	"starling/node/relay/spool"
)

// A relay keeps an envelope, promises that with one signature a group, and hands
// it to the reader, who then deletes it.
func Example() {
	s, err := spool.OpenMemory(spool.Config{
		Sizes: []int{2160, 5232, 17520, 66672},
		Quota: 1 << 30,
		Attest: func(leaves []spool.Leaf) func(i int) any {
			// Here a relay builds the tree of the leaves and signs its root.
			return func(i int) any { return fmt.Sprintf("%s is one of %d", leaves[i][:5], len(leaves)) }
		},
	}, spool.NewDisk(1))
	if err != nil {
		log.Fatal(err)
	}
	defer s.Close()
	ctx := context.Background()

	q := spool.Queue{1}
	stored, err := s.Put(ctx, []spool.Entry{{
		Queue:   q,
		Expires: time.Now().Add(14 * 24 * time.Hour).Unix(),
		Leaf:    spool.Leaf([]byte("hello---------------------------")),
		Blob:    make([]byte, 2160),
	}})
	if err != nil {
		log.Fatal(err) // the depositor is told QUOTA, or to come back
	}
	fmt.Printf("%s\n", stored[0].Receipt)

	for _, item := range s.List(q, 0, 100) {
		blob, err := s.Read(q, item.ID, nil)
		if err != nil {
			log.Fatal(err)
		}
		fmt.Println(len(blob), "bytes")
		if err := s.Delete(ctx, q, item.ID); err != nil {
			log.Fatal(err)
		}
	}
	fmt.Println(s.Usage().Entries, "left")
	// Output:
	// hello is one of 1
	// 2160 bytes
	// 0 left
}
