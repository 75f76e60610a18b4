package node

import ("testing";"time";"log/slog";"os")

func TestZZ(t *testing.T) {
	w := newWorld(t)
	addr := "/ip4/127.0.0.1/udp/0/quic-v1"
	lg := func(p *person) { p.cfg.Log = slog.New(slog.NewTextHandler(os.Stderr, &slog.HandlerOptions{Level: slog.LevelDebug})).With("who", p.name) }
	a, b := w.person("Ada", listening(addr), lg), w.person("Bo", listening(addr), lg)
	link := a.invite(false)
	s := time.Now()
	b.add(link, "Ada")
	a.until(contactIs("Bo", "accepted"))
	t.Log("a", time.Since(s))
	b.until(contactIs("Ada", "accepted"))
	t.Log("b", time.Since(s))
}
