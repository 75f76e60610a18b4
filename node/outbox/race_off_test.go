//go:build !race

package outbox_test

const slower = 1
