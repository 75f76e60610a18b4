package main

import (
	"context"
	"encoding/base64"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"os"
	"strconv"
	"sync/atomic"

	"github.com/zalando/go-keyring"

	"starling/node"
	"starling/node/api"
	"starling/node/store"
)

// systemKeyring is the keyring of this system, as the store needs it.
type systemKeyring struct{}

const keyringService = "starling"

func (systemKeyring) Get(name string) ([]byte, error) {
	s, err := keyring.Get(keyringService, name)
	if errors.Is(err, keyring.ErrNotFound) {
		return nil, fmt.Errorf("%w: %w", store.ErrNotFound, err)
	}
	if err != nil {
		return nil, err
	}
	return base64.StdEncoding.DecodeString(s)
}

func (systemKeyring) Set(name string, secret []byte) error {
	return keyring.Set(keyringService, name, base64.StdEncoding.EncodeToString(secret))
}

func (systemKeyring) Delete(name string) error {
	if err := keyring.Delete(keyringService, name); !errors.Is(err, keyring.ErrNotFound) {
		return err
	}
	return store.ErrNotFound
}

// protection is how a key file is opened that is of the given kind.
func protection(kind store.Kind, pass []byte) store.Protection {
	switch kind {
	case store.KindKeyring:
		return store.Protection{Keyring: systemKeyring{}}
	case store.KindPlain:
		return store.Protection{Plain: true}
	}
	return store.Protection{Passphrase: pass}
}

// kinds are the ways to keep a key, as the store knows them.
var kinds = map[string]store.Kind{keyPassphrase: store.KindPassphrase, keyKeyring: store.KindKeyring, keyFile: store.KindPlain}

// needsPassphrase reports whether the profile opens with a passphrase only.
func (p profile) needsPassphrase() (bool, error) {
	kind, err := store.KeyFileKind(p.key())
	return kind == store.KindPassphrase, err
}

// openKey opens the key of the profile. Without a passphrase where one is
// needed the error is api.ErrLocked, with a wrong one api.ErrPassphrase.
func (p profile) openKey(pass []byte) (store.Key, error) {
	kind, err := store.KeyFileKind(p.key())
	if err != nil {
		return store.Key{}, err
	}
	if kind == store.KindPassphrase && len(pass) == 0 {
		return store.Key{}, api.ErrLocked
	}
	key, err := store.OpenKeyFile(p.key(), protection(kind, pass))
	switch {
	case err == nil:
		return key, nil
	case kind == store.KindKeyring && errors.Is(err, store.ErrPassphrase):
		return store.Key{}, fail(exitLocked, "the keyring has no key for this profile").try("Unlock the keyring of the user who made the profile, and start again.")
	case kind == store.KindKeyring:
		return store.Key{}, fail(exitLocked, "the keyring does not answer: %s", err).try("Unlock the keyring, and start again.")
	case errors.Is(err, store.ErrPassphrase):
		return store.Key{}, api.ErrPassphrase
	}
	return store.Key{}, err
}

// changePassphrase protects the key by a new passphrase, whatever protected it
// before.
func (p profile) changePassphrase(old, fresh []byte) error {
	kind, err := store.KeyFileKind(p.key())
	if err != nil {
		return err
	}
	if kind == store.KindPassphrase && len(old) == 0 {
		return api.ErrPassphrase
	}
	err = store.ChangeProtection(p.key(), protection(kind, old), store.Protection{Passphrase: fresh})
	if errors.Is(err, store.ErrPassphrase) {
		return api.ErrPassphrase
	}
	return err
}

// create makes the key and the store of a new profile with its account, whole
// or not at all, and returns the account's ID.
func (p profile) create(ctx context.Context, name, key string, pass []byte) (account string, err error) {
	_, serr := os.Stat(p.dir)
	if err := os.MkdirAll(p.dir, 0o700); err != nil {
		return "", err
	}
	how := protection(kinds[key], pass)
	made := false
	defer func() {
		if err == nil {
			return
		}
		if made {
			if how.Keyring != nil { // takes the entry out of the keyring
				err = errors.Join(err, store.ChangeProtection(p.key(), how, store.Protection{Plain: true}))
			}
			err = errors.Join(err, os.RemoveAll(p.store()), os.Remove(p.key()))
		}
		if serr != nil {
			os.Remove(p.dir) // stays if something else is in it by now
		}
	}()
	k, err := store.CreateKeyFile(p.key(), how)
	if err != nil {
		if how.Keyring != nil {
			return "", fail(exitError, "the keyring does not take the key: %s", err).try("There may be none on this machine. Use --passphrase-file FILE or --no-passphrase.")
		}
		return "", err
	}
	made = true
	// The account is made by opening the node, on loopback and with everything
	// off that could talk to anybody.
	n, err := openNode(ctx, p, node.Config{
		Name: name, Listen: []string{"/ip4/127.0.0.1/udp/0/quic-v1"},
		NoMDNS: true, NoPortMap: true, NoAutoNAT: true, NoHolePunch: true, NoRelayClient: true,
	}, k)
	if err != nil {
		return "", err
	}
	return n.Status().Account, n.Close()
}

// nodeConfig says what the daemon's node is made of: flags first, then the
// settings.
func (p profile) nodeConfig(s settings, o upOptions, log *slog.Logger) (node.Config, error) {
	cfg := node.Config{
		Name:          loginName(), // of a profile whose making was interrupted
		Listen:        addresses(o.listen, s.Listen),
		Announce:      addresses(o.announce, s.Announce),
		Bootstrap:     addresses(o.bootstrap, s.Bootstrap),
		Local:         o.local || s.Local,
		Reach:         s.Reach.is,
		Circuits:      s.Circuits,
		CircuitRelays: addresses(nil, s.CircuitRelays),
		ReadReceipts:  s.ReadReceipts,
		Log:           log,
		NoMDNS:        o.noMDNS || s.MDNS != nil && !*s.MDNS,
	}
	cfg.NoPortMap = cfg.Local
	switch mode := orElse(o.dht.text, s.DHT.text); mode {
	case "server":
		cfg.DHT = node.DHTServer
	case "client":
		cfg.DHT = node.DHTClient
	}
	if len(cfg.Listen) > 0 {
		return cfg, nil
	}
	port, err := p.listenPort()
	if err != nil {
		return cfg, err
	}
	for _, ip := range []string{"/ip4/0.0.0.0", "/ip6/::"} {
		cfg.Listen = append(cfg.Listen, fmt.Sprintf("%s/udp/%d/quic-v1", ip, port), fmt.Sprintf("%s/tcp/%d", ip, port))
	}
	return cfg, nil
}

// listenPort returns the port of the profile, and chooses it the first time:
// routers and contacts remember it.
func (p profile) listenPort() (int, error) {
	port, err := p.readPort()
	if port != 0 || err != nil {
		return port, err
	}
	if port, err = freePort(); err != nil {
		return 0, fmt.Errorf("choosing a port: %w", err)
	}
	return port, p.writePort(port)
}

// freePort returns a port that is free for UDP and TCP.
func freePort() (int, error) {
	var last error
	for range 20 {
		u, err := net.ListenPacket("udp", ":0")
		if err != nil {
			return 0, err
		}
		port := u.LocalAddr().(*net.UDPAddr).Port
		t, err := net.Listen("tcp", ":"+strconv.Itoa(port))
		if err == nil {
			return port, errors.Join(t.Close(), u.Close())
		}
		last = errors.Join(err, u.Close())
	}
	return 0, last
}

// A running node knows whether it was told to close.
type running struct {
	*node.Node
	closing atomic.Bool
}

func (r *running) Close() error {
	r.closing.Store(true)
	return r.Node.Close()
}

// openNode opens the store of the profile and the node on it.
func openNode(ctx context.Context, p profile, cfg node.Config, key store.Key) (*running, error) {
	db, err := store.Open(store.Config{Dir: p.store(), Key: key, Log: cfg.Log})
	if err != nil {
		return nil, err
	}
	cfg.Store = db
	n, err := node.Open(ctx, cfg)
	if err != nil {
		return nil, err
	}
	return &running{Node: n}, nil
}
