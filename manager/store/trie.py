"""A mapping that never changes: putting makes another one that shares nearly all with the first.

A leaf is a dict of a few dozen entries; a full leaf splits into a branch of 32 by five more bits
of the key's hash. A put copies one leaf and the branches above it, so its price does not grow
with the table, and whoever holds an older mapping keeps exactly what it held.

Who makes many changes before anybody else looks gives the nodes that it made itself along (`own`):
those are changed in place, and copied no more than once.
"""

from collections.abc import Generator, Hashable, Iterator
from typing import Any, Generic, TypeVar

import msgspec

K = TypeVar("K", bound=Hashable)
V = TypeVar("V")

_BITS = 5
_WIDTH = 1 << _BITS
_MASK = _WIDTH - 1
_LEAF_MAX = 48
_DEPTH_MAX = 10  # beyond that the hashes are the same, and a bigger leaf is all that helps

STEP = 500  # entries taken in between two pauses

_Node = Any  # dict[K, V], a leaf; or list[_Node | None], a branch

# The nodes that only one writer has seen yet, by `id`: held here, so that no other gets their id.
Own = dict[int, _Node]


class Trie(msgspec.Struct, Generic[K, V], frozen=True, eq=False, gc=False):
    """An immutable mapping. Its order means nothing; sort what you take out."""

    # As with stored objects, the cyclic collector need not look at what cannot form a cycle; an
    # index has one of these for each of its keys.
    _root: _Node = {}
    _count: int = 0

    @classmethod
    def small(cls, items: dict[K, V]) -> "Trie[K, V] | None":
        """A mapping of `items`, which must not change any more, if it is made at once."""
        return cls(items, len(items)) if len(items) <= _LEAF_MAX else None

    @classmethod
    def growing(cls, items: dict[K, V]) -> Generator[None, None, "Trie[K, V]"]:
        """A mapping of `items`, which must not change any more: not put by put, but in steps of
        bounded length, so that it can be made beside others without holding them up.
        """
        if (small := cls.small(items)) is not None:
            return small
        branch: list[_Node | None] = [None] * _WIDTH
        for count, (key, value) in enumerate(items.items()):
            place = hash(key) & _MASK
            child = branch[place]
            if child is None:
                branch[place] = {key: value}
            else:
                child[key] = value
            if not count % STEP:
                yield
        for place, child in enumerate(branch):
            branch[place] = None if child is None else _grown(child, 1)
            yield
        return cls(branch, len(items))

    def __len__(self) -> int:
        return self._count

    def get(self, key: K) -> V | None:
        """The value of `key`, or None."""
        node = self._root
        bits = hash(key)
        while type(node) is list:
            node = node[bits & _MASK]
            bits >>= _BITS
        found: V | None = None if node is None else node.get(key)
        return found

    def put(self, key: K, value: V, own: Own | None = None) -> "Trie[K, V]":
        """This mapping with `key` set to `value`. If `own` has nodes of this one, it is gone."""
        own = {} if own is None else own
        root = self._root
        if id(root) not in own:
            root = root.copy()
            own[id(root)] = root
        node, bits, depth = root, hash(key), 0
        above: list[_Node | None] = []
        while type(node) is list:
            above, place = node, bits & _MASK
            node = above[place]
            if id(node) not in own:
                node = {} if node is None else node.copy()
                own[id(node)] = above[place] = node
            bits >>= _BITS
            depth += 1
        before = len(node)
        node[key] = value
        after = len(node)
        if after > _LEAF_MAX and depth < _DEPTH_MAX:
            branch = _split(node, depth)
            own[id(branch)] = branch
            if above:
                above[place] = branch
            else:
                root = branch
        return Trie(root, self._count + after - before)

    def without(self, key: K, own: Own | None = None) -> "Trie[K, V]":
        """This mapping without `key`, which need not be in it. For `own` see `put`."""
        if self.get(key) is None:
            return self
        own = {} if own is None else own
        return Trie(_without(self._root, hash(key), key, own), self._count - 1)

    def items(self) -> Iterator[tuple[K, V]]:
        for leaf in _leaves(self._root):
            yield from leaf.items()

    def keys(self) -> Iterator[K]:
        for leaf in _leaves(self._root):
            yield from leaf

    def values(self) -> Iterator[V]:
        for leaf in _leaves(self._root):
            yield from leaf.values()


def _owned(node: _Node, own: Own) -> _Node:
    """`node`, or a copy of it that may be changed."""
    if id(node) in own:
        return node
    copied = node.copy()
    own[id(copied)] = copied
    return copied


def _grown(leaf: dict[Any, Any], depth: int) -> _Node:
    if len(leaf) <= _LEAF_MAX or depth == _DEPTH_MAX:
        return leaf
    branch = _split(leaf, depth)
    return [None if child is None else _grown(child, depth + 1) for child in branch]


def _split(leaf: dict[Any, Any], depth: int) -> list[_Node | None]:
    branch: list[_Node | None] = [None] * _WIDTH
    for key, value in leaf.items():
        place = (hash(key) >> (_BITS * depth)) & _MASK
        child = branch[place]
        if child is None:
            branch[place] = {key: value}
        else:
            child[key] = value
    return branch


def _without(node: _Node, bits: int, key: Any, own: Own) -> _Node:
    copied = _owned(node, own)
    if type(node) is not list:
        del copied[key]
        return copied
    place = bits & _MASK
    # What is empty goes: where ids come and go for years, all places would be used up in the end.
    copied[place] = _without(node[place], bits >> _BITS, key, own) or None
    return copied if any(copied) else {}


def _leaves(node: _Node | None) -> Iterator[dict[Any, Any]]:
    if node is None:
        return
    if type(node) is list:
        for child in node:
            yield from _leaves(child)
    else:
        yield node
