package identity

import (
	"bytes"
	"errors"
	"fmt"
	"slices"
	"time"

	"starling/protocol"
	"starling/protocol/wire"
	"starling/protocol/x25519"
)

// A DeviceEntry is one device in a manifest.
type DeviceEntry struct {
	Key Device
	DH  x25519.Public
}

// A Manifest is an account's list of devices (SPEC §4). A device counts only
// if it is in the newest manifest known, which is the one with the highest
// generation.
type Manifest struct {
	Account    Account
	Generation uint64
	Devices    []DeviceEntry // sorted by Key
}

// Device returns m's entry for d, if it has one.
func (m Manifest) Device(d Device) (DeviceEntry, bool) {
	i, ok := slices.BinarySearchFunc(m.Devices, d, func(e DeviceEntry, d Device) int {
		return bytes.Compare(e.Key[:], d[:])
	})
	if !ok {
		return DeviceEntry{}, false
	}
	return m.Devices[i], true
}

// SignManifest returns the encoded, signed manifest of k's account. It sorts a
// copy of devices. It panics if there is no device, a device is listed twice,
// or there are more than [protocol.MaxDevices], which the caller rules out.
func SignManifest(k *AccountKey, generation uint64, devices []DeviceEntry) []byte {
	devices = slices.Clone(devices)
	slices.SortFunc(devices, func(a, b DeviceEntry) int { return bytes.Compare(a.Key[:], b.Key[:]) })
	a := k.Account()
	m := &wire.Manifest{Account: a[:], Generation: generation}
	for _, d := range devices {
		m.Devices = append(m.Devices, &wire.Device{Key: d.Key[:], Dh: d.DH[:]})
	}
	if err := checkDevices(devices); err != nil {
		panic("identity: internal error: " + err.Error())
	}
	body := wire.Marshal(m)
	return wire.Marshal(&wire.Signed{Body: body, Signature: k.Sign(protocol.LabelManifest, body)})
}

// OpenManifest returns the manifest that b, a signed manifest of account a,
// holds. It checks the size, the signature, every key, the order of devices,
// and that the generation is at most [protocol.GenerationSkew] ahead of now.
// Any error means that b counts for nothing; the caller keeps the manifest it
// has. Whether the generation is newer than that one is for the caller to
// compare.
func OpenManifest(b []byte, a Account, now time.Time) (Manifest, error) {
	m, err := openManifest(b, a, now)
	if err != nil {
		return Manifest{}, fmt.Errorf("opening a manifest: %w", err)
	}
	return m, nil
}

func openManifest(b []byte, a Account, now time.Time) (Manifest, error) {
	var s wire.Signed
	if err := wire.Parse(b, protocol.MaxManifest, &s); err != nil {
		return Manifest{}, err
	}
	if err := a.Verify(protocol.LabelManifest, s.Body, s.Signature); err != nil {
		return Manifest{}, err
	}
	var w wire.Manifest
	if err := wire.Parse(s.Body, protocol.MaxManifest, &w); err != nil {
		return Manifest{}, err
	}
	if !bytes.Equal(w.Account, a[:]) {
		return Manifest{}, errors.New("identity: a manifest names another account")
	}
	if w.Generation > unix(now.Add(protocol.GenerationSkew)) {
		return Manifest{}, errors.New("identity: a manifest's generation lies in the future")
	}
	if len(w.Devices) > protocol.MaxDevices {
		return Manifest{}, errTooMany // before keys are imported, which costs time
	}
	m := Manifest{Account: a, Generation: w.Generation, Devices: make([]DeviceEntry, len(w.Devices))}
	for i, d := range w.Devices {
		key, err := ParseDevice(d.Key)
		if err != nil {
			return Manifest{}, err
		}
		dh, err := x25519.Parse(d.Dh)
		if err != nil {
			return Manifest{}, err
		}
		m.Devices[i] = DeviceEntry{Key: key, DH: dh}
	}
	if err := checkDevices(m.Devices); err != nil {
		return Manifest{}, err
	}
	return m, nil
}

var errTooMany = fmt.Errorf("identity: a manifest lists more than %d devices", protocol.MaxDevices)

// checkDevices checks the number of devices, and that they are sorted by key
// with no key twice.
func checkDevices(devices []DeviceEntry) error {
	switch {
	case len(devices) == 0:
		return errors.New("identity: a manifest lists no device")
	case len(devices) > protocol.MaxDevices:
		return errTooMany
	}
	for i := 1; i < len(devices); i++ {
		if bytes.Compare(devices[i-1].Key[:], devices[i].Key[:]) >= 0 {
			return errors.New("identity: a manifest lists a device twice or out of order")
		}
	}
	return nil
}

// NextGeneration returns the generation of the manifest that follows the one
// of generation previous: the time in unix seconds, or more if previous is not
// in the past. Counting seconds lets an account that has forgotten its last
// generation, restored from words, go above it all the same.
func NextGeneration(previous uint64, now time.Time) uint64 {
	return max(previous+1, unix(now))
}

// unix returns t in unix seconds, and 0 before 1970.
func unix(t time.Time) uint64 { return uint64(max(t.Unix(), 0)) }
