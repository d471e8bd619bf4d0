"""A mapping that never changes: putting makes another one that shares nearly all with the first.

A leaf is a dict of a few dozen entries; a full leaf splits into a branch of 32 by five more bits
of the key's hash. A put copies one leaf and the branches above it, so its price does not grow
with the table, and whoever holds an older mapping keeps exactly what it held.
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

    def put(self, key: K, value: V) -> "Trie[K, V]":
        """This mapping with `key` set to `value`."""
        root, added = _put(self._root, hash(key), 0, key, value)
        return Trie(root, self._count + added)

    def without(self, key: K) -> "Trie[K, V]":
        """This mapping without `key`, which need not be in it."""
        if self.get(key) is None:
            return self
        return Trie(_without(self._root, hash(key), key), self._count - 1)

    def items(self) -> Iterator[tuple[K, V]]:
        for leaf in _leaves(self._root):
            yield from leaf.items()

    def keys(self) -> Iterator[K]:
        for leaf in _leaves(self._root):
            yield from leaf

    def values(self) -> Iterator[V]:
        for leaf in _leaves(self._root):
            yield from leaf.values()


def _put(node: _Node | None, bits: int, depth: int, key: Any, value: Any) -> tuple[_Node, int]:
    """The node with `key` set, and how many keys that added: 0 or 1."""
    if node is None:
        return {key: value}, 1
    if type(node) is list:
        child, added = _put(node[bits & _MASK], bits >> _BITS, depth + 1, key, value)
        branch = node.copy()
        branch[bits & _MASK] = child
        return branch, added
    leaf = node.copy()
    leaf[key] = value
    added = len(leaf) - len(node)
    if len(leaf) > _LEAF_MAX and depth < _DEPTH_MAX:
        return _split(leaf, depth), added
    return leaf, added


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


def _without(node: _Node, bits: int, key: Any) -> _Node:
    copied = node.copy()
    if type(node) is not list:
        del copied[key]
        return copied
    place = bits & _MASK
    # What is empty goes: where ids come and go for years, all places would be used up in the end.
    copied[place] = _without(node[place], bits >> _BITS, key) or None
    return copied if any(copied) else {}


def _leaves(node: _Node | None) -> Iterator[dict[Any, Any]]:
    if node is None:
        return
    if type(node) is list:
        for child in node:
            yield from _leaves(child)
    else:
        yield node
