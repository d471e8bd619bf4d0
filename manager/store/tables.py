"""Which kinds of objects are stored, and by what they can be found.

All that differs from kind to kind stands here: the name in the log, the indexes, and whose
names must be unique. An index gives the keys under which an object is found; names are compared
without regard to case, because DNS does.
"""

from collections.abc import Callable, Generator, Hashable, Iterable, Iterator, Mapping
from operator import attrgetter
from typing import Any, TypeVar, cast

import msgspec

from common.model.base import Object
from common.model.cluster import Cluster
from common.model.network import Network
from common.model.node import Node
from common.model.secret import Config, Secret
from common.model.service import Service
from common.model.task import Task
from manager.store.trie import STEP, Own, Trie

O = TypeVar("O", bound=Object)  # noqa: E741 - the stored kind, as usual for a type variable
Keys = Iterable[Hashable]
Ids = tuple[str, ...] | Trie[str, bool]  # a set of ids; most are small
Index = Trie[Hashable, Ids]
_FEW = 8  # ids that are kept as a tuple


class Kind(msgspec.Struct, frozen=True):
    """What the store knows of one kind of object."""

    type: type[Object]
    name: str  # in the log and in snapshots: never changes
    indexes: Mapping[str, Callable[[Any], Keys]]
    unique_name: bool = False
    # From what the keys of an index follow: while it is the same nothing moves there.
    basis: Mapping[str, Callable[[Any], object]] = {}


def _service_name(service: Service) -> Keys:
    """A service on its way out has given its name back already."""
    return () if service.pending_delete else (service.spec.name.lower(),)


def _service_networks(service: Service) -> Keys:
    wishes = service.spec.task_template.networks or service.spec.networks
    return {wish.target: None for wish in wishes}


def _spec_name(object: Secret | Config) -> Keys:
    return (object.spec.name.lower(),)


def _network_name(network: Network) -> Keys:
    return () if network.pending_delete else (network.spec.name.lower(),)


def _node_names(node: Node) -> Keys:
    """Machines may share a hostname; so a node's name finds any number of them."""
    return {name.lower(): None for name in (node.spec.name, node.description.hostname) if name}


def _task_slot(task: Task) -> Hashable:
    return task.service_id, task.slot or task.node_id


def _task_networks(task: Task) -> Keys:
    return {attachment.network_id: None for attachment in task.networks_attachments}


KINDS: tuple[Kind, ...] = (
    Kind(Cluster, "cluster", {"name": lambda cluster: (cluster.spec.name.lower(),)}, True),
    Kind(Node, "node", {"name": _node_names}),
    Kind(Network, "network", {"name": _network_name}, True),
    Kind(Secret, "secret", {"name": _spec_name}, True),
    Kind(Config, "config", {"name": _spec_name}, True),
    Kind(Service, "service", {"name": _service_name, "network": _service_networks}, True),
    Kind(
        Task,
        "task",
        {
            "service_id": lambda task: (task.service_id,) if task.service_id else (),
            "node_id": lambda task: (task.node_id,) if task.node_id else (),
            "slot": lambda task: (_task_slot(task),),
            "network_id": _task_networks,
        },
        basis={
            "service_id": attrgetter("service_id"),
            "node_id": attrgetter("node_id"),
            "slot": _task_slot,
            "network_id": attrgetter("networks_attachments"),
        },
    ),
)
BY_TYPE = {kind.type: kind for kind in KINDS}
BY_NAME = {kind.name: kind for kind in KINDS}


class Table:
    """All objects of one kind with their indexes. Changed only by the `Tables` that copied it."""

    __slots__ = ("_indexes", "_kind", "_objects")

    def __init__(
        self,
        kind: Kind,
        objects: Trie[str, Object] | None = None,
        indexes: dict[str, Index] | None = None,
    ) -> None:
        self._kind = kind
        self._objects: Trie[str, Object] = Trie() if objects is None else objects
        self._indexes = {name: Trie() for name in kind.indexes} if indexes is None else indexes

    @classmethod
    def growing(cls, kind: Kind, objects: dict[str, Object]) -> Generator[None, None, "Table"]:
        """A table of `objects`, by id, made in steps of bounded length."""
        indexes = {}
        for name, keys in kind.indexes.items():
            indexes[name] = yield from _index(keys, objects.values())
        return cls(kind, (yield from Trie.growing(objects)), indexes)

    def __len__(self) -> int:
        return len(self._objects)

    def get(self, id: str) -> Object | None:
        return self._objects.get(id)

    def all(self) -> Iterator[Object]:
        """Every object, in no order."""
        return self._objects.values()

    def find(self, index: str, key: Hashable) -> list[Object]:
        """The objects that `index` has under `key`, in no order."""
        trie = self._indexes.get(index)
        if trie is None:
            known = ", ".join(self._kind.indexes)
            raise TypeError(f"{self._kind.name} has no index {index!r}, only {known}")
        ids = trie.get(key.lower() if index == "name" and isinstance(key, str) else key)
        get = self._objects.get
        if ids is None:
            return []
        return [cast(Object, get(id)) for id in (ids if isinstance(ids, tuple) else ids.keys())]

    def has(self, index: str, key: Hashable) -> bool:
        """Whether `index` has anything under `key`, as `find` takes it."""
        return self._indexes[index].get(key) is not None

    def copy(self) -> "Table":
        return Table(self._kind, self._objects, self._indexes.copy())

    def put(self, object: Object, old: Object | None, own: Own) -> None:
        """Set `object` in the place of `old`, which is there under the same id."""
        self._objects = self._objects.put(object.id, object, own)
        self._reindex(object.id, old, object, own)

    def remove(self, old: Object, own: Own) -> None:
        self._objects = self._objects.without(old.id, own)
        self._reindex(old.id, old, None, own)

    def _reindex(self, id: str, old: Object | None, new: Object | None, own: Own) -> None:
        for name, keys in self._kind.indexes.items():
            basis = self._kind.basis.get(name)
            if basis and old is not None and new is not None and basis(old) == basis(new):
                continue
            before = () if old is None else tuple(keys(old))
            after = () if new is None else tuple(keys(new))
            if before != after:
                self._indexes[name] = _move(self._indexes[name], id, before, after, own)


def _index(keys: Callable[[Any], Keys], objects: Iterable[Object]) -> Generator[None, None, Index]:
    found: dict[Hashable, dict[str, bool]] = {}
    for count, object in enumerate(objects):
        for key in keys(object):
            if (ids := found.get(key)) is None:
                found[key] = {object.id: True}
            else:
                ids[object.id] = True
        if not count % STEP:
            yield
    tries: dict[Hashable, Ids] = {}
    for count, (key, ids) in enumerate(found.items()):
        tries[key] = tuple(ids) if len(ids) <= _FEW else (yield from Trie.growing(ids))
        if not count % STEP:
            yield
    return (yield from Trie.growing(tries))


def _move(
    index: Index, id: str, before: tuple[Hashable, ...], after: tuple[Hashable, ...], own: Own
) -> Index:
    for key in before:
        if key not in after:
            rest = _less(index.get(key), id, own)
            index = index.put(key, rest, own) if len(rest) else index.without(key, own)
    for key in after:
        if key not in before:
            index = index.put(key, _more(index.get(key), id, own), own)
    return index


def _more(ids: Ids | None, id: str, own: Own) -> Ids:
    """`ids` with `id`, which is not in it."""
    if ids is None:
        return (id,)
    if isinstance(ids, tuple):
        if len(ids) < _FEW:
            return (*ids, id)
        return Trie(dict.fromkeys((*ids, id), True), len(ids) + 1)
    return ids.put(id, True, own)


def _less(ids: Ids | None, id: str, own: Own) -> Ids:
    """`ids` without `id`, which is in it."""
    if ids is None or isinstance(ids, tuple):
        return tuple(other for other in ids or () if other != id)
    return ids.without(id, own)


class Tables:
    """One state of the whole store. Cheap to fork; a fork changes without the others seeing it.

    What a fork copied it goes on changing in place, until it is forked itself: by then others may
    look at it. Nobody may change one after that.
    """

    __slots__ = ("_own", "_tables", "_touched")

    def __init__(self, tables: dict[type[Object], Table] | None = None) -> None:
        self._tables = {kind.type: Table(kind) for kind in KINDS} if tables is None else tables
        self._own: Own = {}
        self._touched: set[type[Object]] = set()

    def fork(self) -> "Tables":
        self.seal()
        return Tables(self._tables.copy())

    def seal(self) -> None:
        """Say that all changes were made: what comes later is copied again."""
        self._own = {}
        self._touched = set()

    def table(self, kind: type[Object]) -> Table:
        return self._tables[kind]

    def put(self, object: Object, old: Object | None) -> None:
        """Set `object` in the place of `old`, what is there under its id."""
        self._mine(type(object)).put(object, old, self._own)

    def delete(self, old: Object) -> None:
        """Take away `old`, which is there."""
        self._mine(type(old)).remove(old, self._own)

    def _mine(self, kind: type[Object]) -> Table:
        if kind not in self._touched:
            self._tables[kind] = self._tables[kind].copy()
            self._touched.add(kind)
        return self._tables[kind]
