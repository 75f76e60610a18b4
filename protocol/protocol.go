// Package protocol holds every label, limit and version of the Starling
// protocol once. SPEC.md beside it is the normative text; each package below
// implements one section of it and cites it.
//
// It imports nothing and computes nothing but the framing of a label, so that
// every other package can stand on it.
package protocol

import "time"

// A Label separates one use of a key, hash or signature from every other
// (SPEC §2). No label is a prefix of another followed by 0x00, so labelled
// inputs of two uses never collide.
type Label string

// One label a use. A label is never reused for another purpose, and never
// changed: a new meaning takes a new label.
const (
	LabelAccountID    Label = "starling/v1/account-id"      // checksum of the text form of an account ID
	LabelAccountSeed  Label = "starling/v1/account-seed"    // account secret → account key seed
	LabelLink         Label = "starling/v1/link"            // checksum of an invite link
	LabelManifest     Label = "starling/v1/manifest"        // account key signs a manifest
	LabelBundle       Label = "starling/v1/bundle"          // device key signs a pre-key bundle
	LabelKeyID        Label = "starling/v1/key-id"          // hash that names a pre-key bundle
	LabelSafetyNumber Label = "starling/v1/safety-number"   // reserved: the algorithm has version bytes of its own
	LabelHandshake    Label = "starling/v1/handshake"       // hash that names a handshake by its public part
	LabelTranscript   Label = "starling/v1/transcript"      // hash over a whole handshake
	LabelPQXDH        Label = "starling/v1/pqxdh"           // PQXDH key derivation
	LabelIntroduction Label = "starling/v1/introduction"    // key of the introduction layer of a first message
	LabelSenderTag    Label = "starling/v1/sender-tag"      // static-DH tag that names the sender of a first message
	LabelTokenID      Label = "starling/v1/token-id"        // hash that names an invite token
	LabelTokenMAC     Label = "starling/v1/token-mac"       // proof of an invite token over a transcript
	LabelAssociated   Label = "starling/v1/associated"      // associated data of a session
	LabelRootKDF      Label = "starling/v1/ratchet-root"    // KDF_RK of the Double Ratchet
	LabelMessageKDF   Label = "starling/v1/ratchet-message" // message key and hedge → AEAD key and nonce
	LabelAckKDF       Label = "starling/v1/ratchet-ack"     // message key and hedge → acknowledgement key
	LabelAck          Label = "starling/v1/ack"             // MAC of a direct acknowledgement
	LabelEnvelope     Label = "starling/v1/envelope"        // hash that names an envelope
	LabelDecryptError Label = "starling/v1/decrypt-error"   // MAC of a decryption error
	LabelSealingKey   Label = "starling/v1/sealing-key"     // device key signs a sealing key
	LabelSealed       Label = "starling/v1/sealed"          // HPKE info of a sealed envelope
	LabelSealedTag    Label = "starling/v1/sealed-tag"      // static-DH tag that names the sender of a sealed envelope
	LabelPreKeyProof  Label = "starling/v1/prekey-proof"    // proof of A and L in a request for a one-time key (T1)
	LabelPreKeyAnswer Label = "starling/v1/prekey-answer"   // key of the answer to such a request
	LabelBlind        Label = "starling/v1/blind"           // blinding factor of a day's record key
	LabelBlindPrefix  Label = "starling/v1/blind-prefix"    // nonce prefix of a blinded signature
	LabelRecordKey    Label = "starling/v1/record-key"      // blinded key → DHT key
	LabelRecordBody   Label = "starling/v1/record-body"     // key of a record's body
	LabelDelegation   Label = "starling/v1/delegation"      // blinded key signs a day key
	LabelRecord       Label = "starling/v1/record"          // day key signs a record
	LabelStoreKey     Label = "starling/v1/store"           // master key → keys of the store at rest
	LabelQueue        Label = "starling/v1/queue"           // hash that names a relay's queue by its reader key
	LabelReader       Label = "starling/v1/reader"          // reader key proves that it may read a queue
	LabelCapability   Label = "starling/v1/capability"      // hash of a deposit capability, all that a relay keeps of it
	LabelRelayToken   Label = "starling/v1/relay-token"     // hash of an invite token, as a relay sees it
	LabelAdmission    Label = "starling/v1/admission"       // relay key → key of its admission tokens
	LabelWork         Label = "starling/v1/work"            // proof of work at a relay
	LabelKeyWork      Label = "starling/v1/key-work"        // hash that stands for a request for a one-time key in such a proof
	LabelReceiptLeaf  Label = "starling/v1/receipt-leaf"    // hash of one deposit of a group
	LabelReceiptNode  Label = "starling/v1/receipt-node"    // hash of two nodes of a group's tree
	LabelReceipt      Label = "starling/v1/receipt"         // relay key signs the root of a group
	LabelPoolID       Label = "starling/v1/pool-id"         // A, L and contact box → name of a pool of one-time keys (T2)
	LabelPoolKey      Label = "starling/v1/pool-key"        // A, L and contact box → key of that pool's blobs
	LabelRelayLink    Label = "starling/v1/relay-link"      // checksum of a relay link
)

// Bind returns label ‖ 0x00 ‖ parts, the exact bytes that are signed, hashed
// or authenticated for this use (SPEC §2). Callers make parts unambiguous:
// every part but the last has a fixed length.
func (l Label) Bind(parts ...[]byte) []byte {
	n := len(l) + 1
	for _, p := range parts {
		n += len(p)
	}
	b := make([]byte, 0, n)
	b = append(b, l...)
	b = append(b, 0)
	for _, p := range parts {
		b = append(b, p...)
	}
	return b
}

// Stream protocols between nodes (SPEC §9).
const (
	StreamMessage = "/starling/message/1" // envelopes and their acknowledgements
	StreamPreKey  = "/starling/prekey/1"  // one-time keys from the peer itself (T1)
	StreamRecord  = "/starling/record/1"  // DHT records from whoever holds them
	StreamRelay   = "/starling/relay/1"   // queues, one-time keys (T2), records and blobs at a relay
	KadPrefix     = "/starling"           // Kademlia: /starling/kad/1.0.0
)

// Agent is the identify agent string, the same on every node: a version would
// tell nodes apart.
const Agent = "starling"

// Suite 1 is X25519, Ed25519, ML-KEM-1024, HKDF-SHA-256 and AES-256-GCM. It is
// in the transcript, so nobody can negotiate a session down to less.
const Suite = 1

// Limits on what a peer can make us read, compute or keep. Each is part of the
// protocol: a sender that exceeds one is refused.
const (
	MaxText      = 16 << 10 // bytes of UTF-8 in one text message
	MaxContent   = 32256    // bytes of padded content in one ratchet message: 32 KiB less 512
	MaxEnvelope  = 59 << 10 // bytes of one envelope: the longest content, a handshake and the longest introduction; sealed, 64 KiB hold it
	MaxBatch     = 64       // envelopes in one delivery
	MaxFrame     = 1 << 20  // bytes of one frame on a stream
	MaxRecord    = 17 << 10 // bytes of one DHT record
	MaxManifest  = 4 << 10  // bytes of one signed manifest
	MaxBundle    = 2 << 10  // bytes of one signed pre-key bundle
	MaxSealing   = 1536     // bytes of one signed sealing key
	MaxSealed    = 66672    // bytes of one sealed envelope: 64 KiB inside, 1,136 around it
	MaxIntro     = 25 << 10 // bytes of the sealed introduction of a first message: manifest, profile with mail, tag, token
	MaxReceipt   = 1024     // content IDs in one receipt
	MaxDevices   = 16       // devices in a manifest
	MaxName      = 64       // bytes of UTF-8 in a profile name
	MaxLink      = 512      // characters of an invite link
	MaxSkip      = 2000     // skipped message keys of one session, and the longest jump
	MaxArchived  = 8        // archived sessions of one peer device
	MaxEndpoints = 4        // transport keys in one record
	MaxAddrs     = 8        // addresses of one endpoint
	MaxAddr      = 256      // bytes of one binary multiaddr
)

// Limits at a relay (SPEC §13). A relay may offer less of what it keeps for one
// reader, and says so; it never accepts more.
const (
	MaxRelays       = 3         // relays that an account names
	MaxSealingKeys  = 6         // sealing keys beside the mailboxes there
	DepositRelays   = 2         // relays that a sender leaves a message at
	MaxDeposit      = 66672     // bytes of one deposit: the longest sealed envelope
	MaxRelayRequest = 160 << 10 // bytes of one request to a relay; an answer is bounded by MaxFrame
	MaxClaim        = 256       // queues attached by one request
	MaxAttached     = 1024      // queues attached on one stream
	MaxPoll         = 256       // entries in one answer to a poll
	MaxDelete       = 256       // entries deleted by one request
	MaxCursors      = 64        // queues with a cursor of their own in one poll
	MaxGroup        = 4096      // deposits under one signature
	MaxMailbox      = 1 << 10   // bytes of one mailbox: where a queue is
	MaxRelayHints   = 4         // hints in a relay link
	QueueMessages   = 128       // messages in a pairwise queue
	QueueBytes      = 2 << 20   // bytes in a pairwise queue
	BoxMessages     = 64        // messages in a contact box
	BoxDeposit      = 17520     // bytes of one deposit in a contact box: a sealed envelope of 16 KiB
	LogMessages     = 4096      // messages in a log queue
	LogBytes        = 64 << 20  // bytes in a log queue
	MaxTokens       = 128       // token hashes that a contact box admits
	TokenDeposits   = 8         // deposits that one token hash admits
	TokenKeys       = 2         // one-time keys that one token hash gets
	WorkBits        = 22        // bits of work when nothing presses: some 4 million hashes
	MaxWork         = 30        // the most bits of work that are asked for
	PoolKeys        = 100       // one-time keys in a pool
	PoolReserve     = 10        // the last of them, for tokens only
	KeyBlob         = 2160      // bytes of a sealed one-time key: as long as the shortest sealed envelope
	MaxPutKeys      = 50        // one-time keys in one request
	MaxPutRecords   = 8         // DHT records in one request
	MaxRecordsAhead = 32        // DHT records held for one contact box: two replicas of 16 days
	BlobChunk       = 64 << 10  // bytes of one chunk of a blob
	MaxBlobChunks   = 1 << 16   // chunks of one blob
)

// Lifetimes (SPEC §1). They fit together: a message lives shorter than the key
// that opens it, and that key shorter than the memory of its use.
const (
	MessageLife    = 14 * 24 * time.Hour // from making to expiry
	DedupeLife     = 30 * 24 * time.Hour // memory of message IDs and envelope hashes
	SkippedLife    = 30 * 24 * time.Hour // a skipped message key
	ArchivedLife   = 15 * 24 * time.Hour // an archived session
	DayKeyLife     = 17 * 24 * time.Hour // private half of a day's keys, from the start of its day
	OneTimeLife    = 10 * time.Minute    // a one-time pair minted on a stream
	PoolKeyLife    = 14 * 24 * time.Hour // a one-time bundle of a relay's pool, the longest that any is valid
	InviteLife     = 7 * 24 * time.Hour  // a one-use invite link
	DaysAhead      = 14                  // days of bundles made and signed ahead
	SealingKeyLife = 15 * 24 * time.Hour // private half of a week's sealing key, from the end of its week; longer while it has no successor
	SealingLate    = 14 * 24 * time.Hour // use of a sealing key after its week, by a sender that has nothing newer
	WeeksAhead     = 2                   // weeks of sealing keys made and signed ahead
	GenerationSkew = 24 * time.Hour      // how far ahead of our clock a manifest's generation may be
	BundleSkew     = 24 * time.Hour      // how far outside a bundle's validity our clock may be: 1 day + skew + MessageLife < DayKeyLife
	SealingSkew    = 24 * time.Hour      // how far outside a sealing key's week our clock may be
	RenewEvery     = time.Hour           // the most often one peer can make us renew a session
)

// Lifetimes at a relay (SPEC §13).
const (
	QueueLife   = 60 * 24 * time.Hour // the farthest a queue's expiry is set or renewed ahead
	LogLife     = 16 * 24 * time.Hour // a log queue: the day it is for, a day of skew, MessageLife
	BoxLife     = 7 * 24 * time.Hour  // a deposit in a contact box
	BlobLife    = 30 * 24 * time.Hour // a blob
	KeyWorkLife = 10 * time.Minute    // a proof of work for a one-time key
	RelaySkew   = 10 * time.Minute    // how far beyond a bound a time may be that a client read from its own clock
	PollWait    = 55 * time.Second    // the longest wait for an answer to a poll
)
