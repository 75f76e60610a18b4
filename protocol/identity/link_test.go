package identity

import (
	"net/netip"
	"testing"
)

func testAccount(n byte) Account { return NewAccountKey(Secret{b: [32]byte{n}}).Account() }

func testTransport(n byte) Transport { return Transport(testAccount(n)) }

func quicHint(n byte, addr string) Hint {
	return Hint{Transport: testTransport(n), Addr: netip.MustParseAddr(addr), Port: 4001}
}

func TestLinkLength(t *testing.T) {
	base := Link{Account: testAccount(1), Lookup: LookupSecret{1}, Token: Token{2}}
	l := base
	l.Hints = []Hint{quicHint(2, "192.0.2.1"), quicHint(3, "198.51.100.1")}
	t.Log(len(l.String()), l.String())
	got, err := ParseLink(l.String())
	t.Log(got, err)
	id := base.Account.String()
	a, err := ParseAccountID(id)
	t.Log(id, len(id), a == base.Account, err, SafetyNumber(a, testAccount(2)))
}
