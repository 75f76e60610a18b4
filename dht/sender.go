package dht

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"sync"
	"time"

	pb "github.com/libp2p/go-libp2p-kad-dht/pb"
	"github.com/libp2p/go-libp2p/core/host"
	"github.com/libp2p/go-libp2p/core/network"
	"github.com/libp2p/go-libp2p/core/peer"
	libp2p "github.com/libp2p/go-libp2p/core/protocol"
	"google.golang.org/protobuf/proto"

	"starling/protocol/wire"
)

const (
	// requestTimeout bounds one Kademlia request, the dial not included.
	requestTimeout = 10 * time.Second

	// maxAnswer bounds one Kademlia answer in bytes: a record and 20 peers with
	// many addresses. kad-dht itself would read 4 MiB.
	maxAnswer = 256 << 10
)

// A sender sends kad-dht's requests, one stream each. It takes the place of the
// sender that comes with kad-dht, for three reasons: it can be waited for; it
// bounds an answer before reading it; and it refuses an answer to PUT_VALUE
// without a record, at which kad-dht v0.42.0 dereferences nil, so that any
// holder could crash a publisher (pb.ProtocolMessenger.PutValue).
type sender struct {
	host host.Host
	kad  []libp2p.ID

	mu     sync.Mutex // guards closed, and wg against Add after Wait
	closed bool
	wg     sync.WaitGroup // requests under way
}

var _ pb.MessageSenderWithDisconnect = (*sender)(nil)

var errAnswer = errors.New("dht: an answer that does not fit the request")

// SendRequest implements [pb.MessageSender].
func (s *sender) SendRequest(ctx context.Context, p peer.ID, m *pb.Message) (*pb.Message, error) {
	var answer *pb.Message
	err := s.exchange(ctx, p, m, func(st network.Stream) error {
		b, err := wire.ReadFrame(bufio.NewReader(st), maxAnswer)
		if err != nil {
			return fmt.Errorf("reading an answer: %w", err)
		}
		answer = new(pb.Message)
		if err := proto.Unmarshal(b, answer); err != nil {
			return fmt.Errorf("%w: %w", errAnswer, err)
		}
		if answer.GetType() != m.GetType() || m.GetType() == pb.Message_PUT_VALUE && answer.GetRecord() == nil {
			return errAnswer
		}
		return nil
	})
	if err != nil {
		return nil, err
	}
	return answer, nil
}

// SendMessage implements [pb.MessageSender].
func (s *sender) SendMessage(ctx context.Context, p peer.ID, m *pb.Message) error {
	return s.exchange(ctx, p, m, func(network.Stream) error { return nil })
}

// OnDisconnect implements [pb.MessageSenderWithDisconnect]. Streams are not
// kept, so there is nothing to forget.
func (s *sender) OnDisconnect(context.Context, peer.ID) {}

func (s *sender) exchange(ctx context.Context, p peer.ID, m *pb.Message, read func(network.Stream) error) error {
	s.mu.Lock()
	if s.closed {
		s.mu.Unlock()
		return ErrClosed
	}
	s.wg.Add(1)
	s.mu.Unlock()
	defer s.wg.Done()

	b, err := proto.Marshal(m)
	if err != nil {
		return fmt.Errorf("dht: encoding a request: %w", err)
	}
	st, err := s.host.NewStream(ctx, p, s.kad...)
	if err != nil {
		return fmt.Errorf("opening a stream: %w", err)
	}
	ctx, cancel := context.WithTimeout(ctx, requestTimeout)
	defer cancel()
	stop := context.AfterFunc(ctx, func() { st.Reset() })
	defer stop()

	begun := time.Now()
	if err = wire.WriteFrame(st, b); err == nil {
		err = read(st)
	}
	if err != nil {
		st.Reset()
		return err
	}
	s.host.Peerstore().RecordLatency(p, time.Since(begun))
	return st.Close()
}

// close refuses further requests and waits for those under way, whose contexts
// the caller has cancelled.
func (s *sender) close() {
	s.mu.Lock()
	s.closed = true
	s.mu.Unlock()
	s.wg.Wait()
}
