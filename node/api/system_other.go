//go:build !linux && !darwin

package api

// systemUser is nil: this system is not asked who connects, and a token file
// that only its owner can read stands in.
var systemUser peerUser
