package store_test

import (
	"fmt"

	"starling/node/store"
	"starling/protocol/identity"
)

// A message is written with its reference in one update, and read back newest
// first.
func ExampleDB_Update() {
	db, err := store.OpenMemory(store.Config{}, store.NewDisk())
	if err != nil {
		panic(err)
	}
	defer db.Close()
	chat := identity.Account{1}
	for order, text := range []string{"hi", "how are you?"} {
		if err := db.Update(func(tx *store.Tx) error {
			id := [16]byte{byte(order)}
			if err := store.History.Put(tx, store.HistoryKey(chat, uint64(order)), &store.Entry{Id: id[:], Text: text}); err != nil {
				return err
			}
			return store.Messages.Put(tx, store.MessageKey(id), &store.EntryRef{Account: chat[:], Order: uint64(order)})
		}); err != nil {
			panic(err)
		}
	}
	if err := db.View(func(tx *store.Tx) error {
		for row, err := range store.History.ScanBack(tx, store.HistoryOf(chat), nil) {
			if err != nil {
				return err
			}
			fmt.Println(row.Key.Order(), row.Value.Text)
		}
		return nil
	}); err != nil {
		panic(err)
	}
	// Output:
	// 1 how are you?
	// 0 hi
}
