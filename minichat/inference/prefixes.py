"""What was read before: a tree of the beginnings of prompts and conversations, with their keys and values.

A prompt is named by a key for each token: its id, or for an image token the identity of its picture.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence

from minichat.inference.kv_pool import States

Key = int | str


def shared(one: Sequence[Key], other: Sequence[Key]) -> int:
    """How many keys two prompts begin with alike."""
    limit = min(len(one), len(other))
    if one[:limit] == other[:limit]:
        return limit
    low, high = 0, limit  # comparing slices runs in C: halve instead of walking
    while high - low > 1:
        middle = (low + high) // 2
        if one[low:middle] == other[low:middle]:
            low = middle
        else:
            high = middle
    return low


class _Node:
    """A stretch of keys after its parent's, and what was computed for it."""

    __slots__ = ("children", "keys", "parent", "states", "used")

    def __init__(self, keys: list[Key], states: States, parent: _Node | None) -> None:
        self.keys, self.states, self.parent = keys, states, parent
        self.children: dict[Key, _Node] = {}
        self.used = 0

    @property
    def nbytes(self) -> int:
        return sum(tensor.nbytes for pair in self.states for tensor in pair)


class PrefixTree:
    """Beginnings and their keys and values, at most `limit` bytes of them: what was not used for longest goes first.

    What two prompts begin with alike is held once. Everything in it can be computed anew, so nothing is lost by its
    going.
    """

    def __init__(self, limit: int) -> None:
        self.limit = limit
        self.nbytes = 0
        self._root = _Node([], [], None)
        self._clock = 0

    def clear(self) -> None:
        self._root = _Node([], [], None)
        self.nbytes = 0

    def longest(self, keys: Sequence[Key]) -> int:
        """How many of the first keys are known."""
        return sum(length for _, length in self._walk(list(keys)))

    def find(self, keys: Sequence[Key]) -> list[States]:
        """What is known of the first keys, piece by piece in their order. The tensors are the tree's own: read only."""
        self._clock += 1
        found = []
        for node, length in self._walk(list(keys)):
            node.used = self._clock
            found.append([(k[:, :length], v[:, :length]) for k, v in node.states])
        return found

    def insert(self, keys: Sequence[Key], read: Callable[[int, int], States]) -> None:
        """Keep these keys; `read(start, end)` returns a copy of what was computed for those that are not known yet."""
        self._clock += 1
        path = list(self._walk(list(keys)))
        known = sum(length for _, length in path)
        node = self._root
        for node, length in path:
            if length < len(node.keys) and known < len(keys):
                self._split(node, length)
            node.used = self._clock
        if known == len(keys):
            return
        leaf = _Node(list(keys[known:]), read(known, len(keys)), node)
        if leaf.nbytes > self.limit:
            return
        leaf.used = self._clock
        node.children[leaf.keys[0]] = leaf
        self.nbytes += leaf.nbytes
        self.evict(self.limit)

    def evict(self, limit: int) -> None:
        """Let go of what was not used for longest, until at most `limit` bytes are left."""
        while self.nbytes > limit:
            leaf = min((node for node in self._nodes() if not node.children), key=lambda node: node.used)
            if leaf.parent is not None:
                del leaf.parent.children[leaf.keys[0]]
            self.nbytes -= leaf.nbytes

    def _walk(self, keys: list[Key]) -> Iterator[tuple[_Node, int]]:
        """The nodes that hold the first keys, and how many of its keys each of them shares."""
        node, at = self._root, 0
        while at < len(keys) and (child := node.children.get(keys[at])) is not None:
            length = shared(child.keys, keys[at : at + len(child.keys)])
            yield child, length
            if length < len(child.keys):
                return
            node, at = child, at + length

    def _split(self, node: _Node, length: int) -> None:
        """Cut a node in two, the second a child of the first. Copies, so that either can go without the other."""
        rest = _Node(node.keys[length:], [(k[:, length:].clone(), v[:, length:].clone()) for k, v in node.states], node)
        first = [(k[:, :length].clone(), v[:, :length].clone()) for k, v in node.states]
        rest.used, rest.children = node.used, node.children
        for child in rest.children.values():
            child.parent = rest
        node.keys, node.states, node.children = node.keys[:length], first, {rest.keys[0]: rest}

    def _nodes(self) -> Iterator[_Node]:
        todo = list(self._root.children.values())
        while todo:
            node = todo.pop()
            todo += node.children.values()
            yield node
