package store

import (
	"encoding/binary"
	"slices"
	"time"

	"google.golang.org/protobuf/proto"

	"starling/protocol"
	"starling/protocol/identity"
)

// The tables. IDs are part of the format: never reuse one. Keys are of fixed
// size unless they end in a name; numbers in them are big-endian, so that
// tables are in their order.
var (
	internal = newTable[Blob](table{id: 0x01, name: "internal", size: -1})

	// Selves holds this account and device; the key is [SelfKey]. It is not
	// under the erase key: losing that would lose the account, and its secrets
	// live as long as the profile anyway.
	Selves = newTable[Self](table{id: 0x02, name: "selves", size: 0})
	// PreKeys holds private halves of bundles; the key is [PreKeyKey]. Secret.
	PreKeys = newTable[PreKey](table{
		id: 0x03, name: "prekeys", size: 16, secret: true,
		pause: time.Minute, dies: dies(func(r *PreKey) int64 { return r.Dies }),
	})
	// Handshakes holds transcripts; the key is [HandshakeKey].
	Handshakes = newTable[Handshake](table{
		id: 0x04, name: "handshakes", size: 32,
		pause: time.Hour, dies: dies(func(r *Handshake) int64 { return r.Dies }),
	})
	// Contacts holds people; the key is [ContactKey].
	Contacts = newTable[Contact](table{id: 0x05, name: "contacts", size: 32, busy: true})
	// Names finds an account by local name, folded by the caller; the key is
	// [NameKey].
	Names = newTable[Blob](table{id: 0x06, name: "names", size: -1})
	// Invites holds links this user made; the key is [InviteKey].
	Invites = newTable[Invite](table{id: 0x07, name: "invites", size: 16})
	// Sessions holds ratchet sessions; the key is [SessionKey]. Secret. An
	// archived session dies after [protocol.ArchivedLife] with its skipped keys
	// and its row in [SessionOwners].
	Sessions = newTable[Session](table{
		id: 0x08, name: "sessions", size: 96, secret: true, busy: true,
		pause: time.Hour, dies: dies(func(r *Session) int64 {
			if r.Archived == 0 {
				return 0
			}
			return r.Archived + protocol.ArchivedLife.Milliseconds()
		}),
	})
	// SessionOwners finds a session by its ID alone; the key is
	// [SessionOwnerKey], the data the session's key. Deleted by whoever deletes
	// the session.
	SessionOwners = newTable[Blob](table{id: 0x09, name: "session owners", size: 32})
	// SkippedKeys holds message keys that were skipped; the key is [SkippedKey].
	// Secret. When keys die of age, the session's row counts them in forgotten.
	SkippedKeys = newTable[Skipped](table{
		id: 0x0a, name: "skipped keys", size: 68, secret: true,
		pause: time.Hour, dies: dies(func(r *Skipped) int64 { return r.Dies }),
	})
	// Outbox holds contents on their way; the key is [OutboxKey].
	Outbox = newTable[Outgoing](table{id: 0x0b, name: "outbox", size: 40, busy: true})
	// Unacked finds an outbox row by envelope hash; the key is [UnackedKey].
	Unacked = newTable[Unacknowledged](table{id: 0x0c, name: "unacknowledged", size: 32})
	// History holds the lines of chats; the key is [HistoryKey].
	History = newTable[Entry](table{id: 0x0d, name: "history", size: 40})
	// Messages finds a history row by content ID; the key is [MessageKey].
	Messages = newTable[EntryRef](table{id: 0x0e, name: "messages", size: 16})
	// SeenIDs holds content IDs that were shown; the key is [SeenKey].
	SeenIDs = newTable[Seen](table{
		id: 0x0f, name: "seen", size: 48,
		pause: time.Hour, dies: dies(func(r *Seen) int64 { return r.Dies }),
	})
	// ReceivedEnvelopes holds answers by envelope hash; the key is
	// [ReceivedKey].
	ReceivedEnvelopes = newTable[Received](table{
		id: 0x10, name: "received", size: 32,
		pause: time.Hour, dies: dies(func(r *Received) int64 { return r.Dies }),
	})
	// Journal holds events; the key is [JournalKey].
	Journal = newTable[Event](table{id: 0x11, name: "journal", size: 8})
	// Peers holds good DHT peers; the key is [PeerKey].
	Peers = newTable[Peer](table{id: 0x12, name: "peers", size: 32})
	// Bootstrap holds bootstrap addresses; the key is [PeerKey].
	Bootstrap = newTable[Peer](table{id: 0x13, name: "bootstrap", size: 32})
	// Meta holds what is one of a kind; the key is [MetaKey].
	Meta = newTable[Blob](table{id: 0x14, name: "meta", size: -1})
	// OwnRelays holds the relays that this user names; the key is [PeerKey].
	OwnRelays = newTable[OwnRelay](table{id: 0x1d, name: "own relays", size: 32})
	// OwnQueues holds this user's queues at relays; the key is [OwnQueueKey].
	OwnQueues = newTable[OwnQueue](table{id: 0x1e, name: "own queues", size: 64})
	// Answers holds decryption errors for relays to carry; the key is
	// [UnackedKey].
	Answers = newTable[Answer](table{
		id: 0x1f, name: "answers", size: 32,
		pause: time.Hour, dies: dies(func(r *Answer) int64 { return r.Dies }),
	})
	// OwedReceipts holds content IDs whose sender is owed a receipt; the key is
	// [OwedKey].
	OwedReceipts = newTable[Owed](table{
		id: 0x1c, name: "owed receipts", size: 48, busy: true,
		pause: time.Hour, dies: dies(func(r *Owed) int64 { return r.Dies }),
	})

	// SealingKeys holds private halves of sealing keys; the key is
	// [SealingKeyKey]. Secret. Few rows, scanned for every sealed envelope.
	SealingKeys = newTable[SealingKey](table{
		id: 0x15, name: "sealing keys", size: 4, secret: true, busy: true,
		pause: time.Hour, dies: dies(func(r *SealingKey) int64 { return r.Dies }),
	})
	// SeenSealed holds sealed envelopes that opened; the key is
	// [SeenSealedKey].
	SeenSealed = newTable[Seen](table{
		id: 0x16, name: "seen sealed", size: 32,
		pause: time.Hour, dies: dies(func(r *Seen) int64 { return r.Dies }),
	})
	// PoolKeys holds private halves of one-time bundles for the pools at relays;
	// the key is [PoolKeyKey]. Secret.
	PoolKeys = newTable[PoolKey](table{
		id: 0x17, name: "pool keys", size: 16, secret: true,
		pause: time.Hour, dies: dies(func(r *PoolKey) int64 { return r.Dies }),
	})
	// UsedOneTime holds which keys of pools were used; the key is [PoolKeyKey].
	UsedOneTime = newTable[UsedKey](table{
		id: 0x18, name: "used one-time keys", size: 16,
		pause: time.Hour, dies: dies(func(r *UsedKey) int64 { return r.Dies }),
	})

	// RelayStates holds what a relay knows of itself; the key is
	// [RelayStateKey].
	RelayStates = newTable[RelayState](table{id: 0x20, name: "relay state", size: 0})
	// RelayQueues holds the queues at this relay; the key is [RelayQueueKey].
	RelayQueues = newTable[RelayQueue](table{id: 0x21, name: "relay queues", size: 32})
	// RelayKeys holds sealed one-time keys; the key is [RelayOneTimeKey].
	RelayKeys = newTable[RelayOneTime](table{id: 0x22, name: "relay keys", size: 40, busy: true})
	// RelayRecords holds DHT records of coming days; the key is
	// [RelayRecordKey].
	RelayRecords = newTable[RelayAhead](table{id: 0x23, name: "relay records", size: 64})
	// RelayAdmissions holds who may make queues; the key is
	// [RelayAdmissionKey].
	RelayAdmissions = newTable[RelayAdmission](table{id: 0x24, name: "relay admissions", size: 32})
	// RelayBlobs holds what blobs there are; the key is [RelayBlobKey].
	RelayBlobs = newTable[RelayBlob](table{id: 0x25, name: "relay blobs", size: 64})
)

// all is every table, in the order of their IDs.
var all = []*table{
	internal.t, Selves.t, PreKeys.t, Handshakes.t, Contacts.t, Names.t, Invites.t, Sessions.t, SessionOwners.t,
	SkippedKeys.t, Outbox.t, Unacked.t, History.t, Messages.t, SeenIDs.t, ReceivedEnvelopes.t, Journal.t, Peers.t,
	Bootstrap.t, Meta.t, SealingKeys.t, SeenSealed.t, PoolKeys.t, UsedOneTime.t, OwedReceipts.t, OwnRelays.t, OwnQueues.t, Answers.t,
	RelayStates.t, RelayQueues.t, RelayKeys.t, RelayRecords.t, RelayAdmissions.t, RelayBlobs.t,
}

// byID finds a table by its ID; the IDs have gaps.
var byID = func() (ts [1 << 8]*table) {
	for _, t := range all {
		ts[t.id] = t
	}
	return ts
}()

// tableOf returns the table of an engine key.
func tableOf(place string) *table { return byID[place[0]] }

// A RowKey names a row within its table, or is the beginning of such names.
// Whoever made it owns it; tables copy what they keep.
type RowKey []byte

// SelfKey is the key of the one row of [Selves].
func SelfKey() RowKey { return RowKey{} }

// PreKeyKey is the key of a bundle's private half: its prekey.KeyID.
func PreKeyKey(id [16]byte) RowKey { return id[:] }

// SealingKeyKey is the key of a sealing key: its week.
func SealingKeyKey(week uint32) RowKey { return binary.BigEndian.AppendUint32(nil, week) }

// SeenSealedKey is the key of a sealed envelope that opened: its hash.
func SeenSealedKey(sealed [32]byte) RowKey { return sealed[:] }

// PoolKeyKey is the key of a one-time bundle of a pool: its prekey.KeyID.
func PoolKeyKey(id [16]byte) RowKey { return id[:] }

// HandshakeKey is the key of a handshake: its transcript or prekey.HandshakeID.
func HandshakeKey(transcript [32]byte) RowKey { return transcript[:] }

// ContactKey is the key of a contact.
func ContactKey(a identity.Account) RowKey { return a[:] }

// NameKey is the key of a local name, which the caller has folded.
func NameKey(name string) RowKey { return RowKey(name) }

// InviteKey is the key of an invite: its token's ID.
func InviteKey(id [16]byte) RowKey { return id[:] }

// SessionKey is the key of a session.
func SessionKey(a identity.Account, d identity.Device, session [32]byte) RowKey {
	return slices.Concat(a[:], d[:], session[:])
}

// SessionsOf is the prefix of all sessions with an account.
func SessionsOf(a identity.Account) RowKey { return a[:] }

// SessionsWith is the prefix of all sessions with a device.
func SessionsWith(a identity.Account, d identity.Device) RowKey { return slices.Concat(a[:], d[:]) }

// SessionOwnerKey is the key of a session's row in [SessionOwners].
func SessionOwnerKey(session [32]byte) RowKey { return session[:] }

// SkippedKey is the key of a skipped message key: session, ratchet key, number.
func SkippedKey(session, ratchet [32]byte, n uint32) RowKey {
	return binary.BigEndian.AppendUint32(slices.Concat(session[:], ratchet[:]), n)
}

// SkippedOf is the prefix of a session's skipped message keys.
func SkippedOf(session [32]byte) RowKey { return session[:] }

// OutboxKey is the key of the order-th content to an account.
func OutboxKey(a identity.Account, order uint64) RowKey { return ordered(a, order) }

// OutboxOf is the prefix of all that waits for an account.
func OutboxOf(a identity.Account) RowKey { return a[:] }

// UnackedKey is the key of an envelope in the send log: its hash.
func UnackedKey(envelope [32]byte) RowKey { return envelope[:] }

// HistoryKey is the key of the order-th line of a chat.
func HistoryKey(chat identity.Account, order uint64) RowKey { return ordered(chat, order) }

// HistoryOf is the prefix of a chat.
func HistoryOf(chat identity.Account) RowKey { return chat[:] }

// MessageKey is the key of a message's row in [Messages]: its content ID.
func MessageKey(id [16]byte) RowKey { return id[:] }

// SeenKey is the key of a content ID of a sender.
func SeenKey(from identity.Account, id [16]byte) RowKey { return slices.Concat(from[:], id[:]) }

// ReceivedKey is the key of an envelope that was received: its hash.
func ReceivedKey(envelope [32]byte) RowKey { return envelope[:] }

// OwedKey is the key of a receipt that is owed for a content.
func OwedKey(to identity.Account, id [16]byte) RowKey { return slices.Concat(to[:], id[:]) }

// OwedTo is the prefix of all receipts owed to an account.
func OwedTo(a identity.Account) RowKey { return a[:] }

// JournalKey is the key of an event: its number.
func JournalKey(seq uint64) RowKey { return binary.BigEndian.AppendUint64(nil, seq) }

// PeerKey is the key of a node: its transport key.
func PeerKey(t identity.Transport) RowKey { return t[:] }

// OwnQueueKey is the key of this user's queue at a relay.
func OwnQueueKey(relay identity.Transport, queue [32]byte) RowKey {
	return slices.Concat(relay[:], queue[:])
}

// OwnQueuesAt is the prefix of this user's queues at a relay.
func OwnQueuesAt(relay identity.Transport) RowKey { return relay[:] }

// MetaKey is the key of something one of a kind.
func MetaKey(name string) RowKey { return RowKey(name) }

// RelayStateKey is the key of the one row of [RelayStates].
func RelayStateKey() RowKey { return RowKey{} }

// RelayQueueKey is the key of a queue: its ID.
func RelayQueueKey(queue [32]byte) RowKey { return queue[:] }

// RelayOneTimeKey is the key of the order-th one-time key of a contact box.
func RelayOneTimeKey(queue [32]byte, order uint64) RowKey {
	return binary.BigEndian.AppendUint64(slices.Clone(queue[:]), order)
}

// RelayRecordKey is the key of a DHT record held for a contact box: the box and
// the key under which the record is published.
func RelayRecordKey(queue, key [32]byte) RowKey { return slices.Concat(queue[:], key[:]) }

// RelayBlobKey is the key of a blob: the contact box on whose account it is, and
// the hash of its handle.
func RelayBlobKey(queue, name [32]byte) RowKey { return slices.Concat(queue[:], name[:]) }

// RelayAdmissionKey is the key of an admission token: its hash.
func RelayAdmissionKey(hash [32]byte) RowKey { return hash[:] }

// RelayOf is the prefix of what is kept for a queue in [RelayKeys], [RelayRecords]
// and [RelayBlobs].
func RelayOf(queue [32]byte) RowKey { return queue[:] }

func ordered(a identity.Account, order uint64) RowKey {
	return binary.BigEndian.AppendUint64(slices.Clone(a[:]), order)
}

// Account returns the account at the start of a key of [Contacts], [Sessions],
// [Outbox], [History], [SeenIDs] or [OwedReceipts].
func (k RowKey) Account() identity.Account { return identity.Account(k[:identity.KeySize]) }

// Device returns the device in a key of [Sessions].
func (k RowKey) Device() identity.Device { return identity.Device(k[32:64]) }

// Session returns the session in a key of [Sessions].
func (k RowKey) Session() [32]byte { return [32]byte(k[64:96]) }

// Relay returns the relay in a key of [OwnRelays] or [OwnQueues].
func (k RowKey) Relay() identity.Transport { return identity.Transport(k[:identity.KeySize]) }

// Queue returns the queue in a key of [OwnQueues].
func (k RowKey) Queue() [32]byte { return [32]byte(k[32:64]) }

// Order returns the number at the end of a key of [Outbox], [History] or
// [Journal].
func (k RowKey) Order() uint64 { return binary.BigEndian.Uint64(k[len(k)-8:]) }

// Week returns the week in a key of [SealingKeys].
func (k RowKey) Week() uint32 { return binary.BigEndian.Uint32(k) }

// Skipped returns the parts of a key of [SkippedKeys].
func (k RowKey) Skipped() (session, ratchet [32]byte, n uint32) {
	return [32]byte(k[:32]), [32]byte(k[32:64]), binary.BigEndian.Uint32(k[64:])
}

// dies returns a table's expiry: the unix milliseconds at which a row dies, 0
// for never.
func dies[T any, P message[T]](at func(P) int64) func(raw []byte) (int64, error) {
	return func(raw []byte) (int64, error) {
		row := P(new(T))
		if err := proto.Unmarshal(raw, row); err != nil {
			return 0, err
		}
		return at(row), nil
	}
}
