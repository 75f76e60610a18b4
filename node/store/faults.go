package store

import "maps"

// What can go wrong with a [Disk], for tests and simulations.

// Crash is the machine losing power: what was not synced is gone, and the DB
// that has the Disk open can neither read nor write any more. Close it, and
// open the Disk again. A crash that [Disk.CrashAt] has planned is off.
func (d *Disk) Crash() {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.crashLocked()
}

func (d *Disk) crashLocked() {
	d.owner = nil
	d.rows = d.synced
	d.files = maps.Clone(d.durable)
	d.crash, d.then, d.owed = 0, nil, false
}

// Steps returns how many write boundaries were passed. A commit has three, and
// so has the replacement of a small file: before anything is written; when it
// is written and not yet synced; when it is synced and nobody has been told.
func (d *Disk) Steps() int {
	d.mu.Lock()
	defer d.mu.Unlock()
	return d.steps
}

// CrashAt has the machine lose power at the nth write boundary from now, 1 being
// the next, as [Disk.Crash] does: the DB gets [ErrClosed]. then is called once,
// at that instant and without the disk's lock, on the goroutine that writes: it
// must not wait for the DB, nor for what waits for it. Nil is nothing to call.
// A second CrashAt replaces the first; n = 0 takes it back.
func (d *Disk) CrashAt(n int, then func()) {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.crash, d.then = 0, nil
	if n > 0 {
		d.crash, d.then = d.steps+n, then
	}
}

// Lie makes the medium answer that it has synced, and keep nothing of it
// through a crash, as cheap disks do. The first sync after Lie(false) keeps what
// was written until then as well.
func (d *Disk) Lie(on bool) {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.lies = on
}

// Clone returns another medium that holds what this one would hold after a
// crash, and none of its failures: what somebody finds who copies the disk.
func (d *Disk) Clone() *Disk {
	d.mu.Lock()
	defer d.mu.Unlock()
	return &Disk{rows: d.synced, synced: d.synced, files: maps.Clone(d.durable), durable: maps.Clone(d.durable)}
}

// Fail makes every later write fail with err, as a full or broken disk does,
// until Fail(nil). A write that fails changes nothing; with [ErrFull] the
// database carries on once there is space, with any other error it must be
// reopened.
func (d *Disk) Fail(err error) {
	d.setFault(func(string) error { return err })
}

// setFault has fn decide before every step that writes.
func (d *Disk) setFault(fn func(step string) error) {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.fault = fn
}

// stepLocked passes the write boundary before something that can fail. After an
// error the caller does nothing more.
func (d *Disk) stepLocked(name string) error {
	if err := d.passLocked(); err != nil || d.fault == nil {
		return err
	}
	return d.fault(name)
}

// passLocked passes a write boundary, unless power is lost at it.
func (d *Disk) passLocked() error {
	d.steps++
	if d.steps != d.crash {
		return nil
	}
	d.dead = d.then
	d.crashLocked()
	return ErrClosed
}

// syncLocked makes something durable, unless the medium lies.
func (d *Disk) syncLocked(sync func()) {
	switch {
	case d.lies:
		d.owed = true
	case d.owed:
		d.synced, d.durable, d.owed = d.rows, maps.Clone(d.files), false
	default:
		sync()
	}
}
