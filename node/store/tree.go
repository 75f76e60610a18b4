package store

// A tree is an immutable ordered map from keys to values: an AVL tree whose
// changes copy the path from the root. Holding on to an old root is therefore
// a snapshot, a savepoint and a crash image at no cost, which is all that the
// in-memory engine and uncommitted transactions need. The zero tree is empty.
type tree struct{ root *node }

// A node is never changed once another node or tree refers to it.
type node struct {
	key         string
	value       []byte // nil in an overlay: deleted
	left, right *node
	height      int8 // 1 for a leaf; 90 for more rows than memory holds
}

func (n *node) h() int8 {
	if n == nil {
		return 0
	}
	return n.height
}

// join returns a balanced node over l < key < r whose heights differ by two at
// most, as after one insertion or deletion below.
func join(l *node, key string, value []byte, r *node) *node {
	switch d := l.h() - r.h(); {
	case d > 1 && l.left.h() >= l.right.h():
		return link(l.left, l.key, l.value, link(l.right, key, value, r))
	case d > 1:
		m := l.right
		return link(link(l.left, l.key, l.value, m.left), m.key, m.value, link(m.right, key, value, r))
	case d < -1 && r.right.h() >= r.left.h():
		return link(link(l, key, value, r.left), r.key, r.value, r.right)
	case d < -1:
		m := r.left
		return link(link(l, key, value, m.left), m.key, m.value, link(m.right, r.key, r.value, r.right))
	}
	return link(l, key, value, r)
}

func link(l *node, key string, value []byte, r *node) *node {
	return &node{key: key, value: value, left: l, right: r, height: 1 + max(l.h(), r.h())}
}

// put returns t with key set to value, which the tree then owns.
func (t tree) put(key string, value []byte) tree { return tree{put(t.root, key, value)} }

func put(n *node, key string, value []byte) *node {
	switch {
	case n == nil:
		return link(nil, key, value, nil)
	case key < n.key:
		return join(put(n.left, key, value), n.key, n.value, n.right)
	case key > n.key:
		return join(n.left, n.key, n.value, put(n.right, key, value))
	}
	return link(n.left, key, value, n.right)
}

// remove returns t without key.
func (t tree) remove(key string) tree { return tree{remove(t.root, key)} }

func remove(n *node, key string) *node {
	switch {
	case n == nil:
		return nil
	case key < n.key:
		return join(remove(n.left, key), n.key, n.value, n.right)
	case key > n.key:
		return join(n.left, n.key, n.value, remove(n.right, key))
	case n.left == nil:
		return n.right
	case n.right == nil:
		return n.left
	}
	least := n.right
	for least.left != nil {
		least = least.left
	}
	return join(n.left, least.key, least.value, remove(n.right, least.key))
}

// get returns the value of key; ok tells a missing key from a nil value.
func (t tree) get(key string) (value []byte, ok bool) {
	for n := t.root; n != nil; {
		switch {
		case key < n.key:
			n = n.left
		case key > n.key:
			n = n.right
		default:
			return n.value, true
		}
	}
	return nil, false
}

// A treeCursor walks a tree from one key in one direction.
type treeCursor struct {
	backward bool
	stack    []*node // path of nodes not yet visited; the top is next
}

// walk returns a cursor at the first key ≥ from, or, backward, ≤ from.
func (t tree) walk(from string, backward bool) *treeCursor {
	c := &treeCursor{backward: backward}
	for n := t.root; n != nil; {
		switch {
		case n.key == from:
			c.stack = append(c.stack, n)
			return c
		case (n.key > from) != backward:
			c.stack = append(c.stack, n)
			n = c.toward(n)
		default:
			n = c.away(n)
		}
	}
	return c
}

// toward is the child that comes before n in the cursor's direction.
func (c *treeCursor) toward(n *node) *node {
	if c.backward {
		return n.right
	}
	return n.left
}

// away is the child that comes after n in the cursor's direction.
func (c *treeCursor) away(n *node) *node {
	if c.backward {
		return n.left
	}
	return n.right
}

// at returns the node under the cursor, nil at the end.
func (c *treeCursor) at() *node {
	if len(c.stack) == 0 {
		return nil
	}
	return c.stack[len(c.stack)-1]
}

func (c *treeCursor) next() {
	n := c.at()
	c.stack = c.stack[:len(c.stack)-1]
	for n = c.away(n); n != nil; n = c.toward(n) {
		c.stack = append(c.stack, n)
	}
}

// each calls fn for every key in order until it returns false.
func (t tree) each(fn func(key string, value []byte) bool) {
	for c := t.walk("", false); c.at() != nil; c.next() {
		if !fn(c.at().key, c.at().value) {
			return
		}
	}
}
