"""What is written many at a time is changed in place, but never where somebody looks."""

import datetime as dt
import enum
import typing
from typing import Any

import msgspec
from hypothesis import given
from hypothesis import strategies as st
from msgspec.structs import replace

from common.model.base import Object
from common.model.node import Node
from common.model.service import Service
from common.model.task import Task, TaskState
from manager.store.change import Put, decode_entry, encode_change, encode_entry
from manager.store.store import Store, Tx
from manager.store.tables import KINDS
from manager.store.trie import Own, Trie
from tests.support import build
from tests.support.memory_proposer import LoopClock, MemoryProposer, memory_store

STEPS = st.lists(st.tuples(st.integers(0, 3), st.integers(0, 200)), max_size=400)


@given(STEPS)
def test_writers_in_place_disturb_nobody_who_looked_before(steps: list[tuple[int, int]]) -> None:
    """Each "look" (0) keeps what is there; after it the writer may own nothing of it."""
    trie, own, expected = Trie[int, int](), Own(), dict[int, int]()
    seen: list[tuple[Trie[int, int], dict[int, int]]] = []
    for number, (step, key) in enumerate(steps):
        if step == 0:
            seen.append((trie, expected.copy()))
            own = {}
        elif step == 1:
            trie = trie.without(key * 1024, own)
            expected.pop(key * 1024, None)
        else:
            trie = trie.put(key * 1024, number, own)
            expected[key * 1024] = number
    for then, known in [*seen, (trie, expected)]:
        assert dict(then.items()) == known
        assert len(then) == len(known)


async def test_views_and_failed_transactions_see_nothing_of_later_writes() -> None:
    store = memory_store()
    web = build.service("web")

    def fill(tx: Tx) -> None:
        tx.put(web)
        for number in range(300):
            tx.put(build.task(web, id=f"t{number}", slot=number + 1))

    await store.update(fill)
    before = store.view()
    known = {task.id: task for task in before.find(Task)}

    def change(tx: Tx, fail: bool) -> None:
        for number in range(0, 300, 3):
            task = tx.get(Task, f"t{number}")
            assert task is not None
            tx.put(replace(task, node_id="n1"))
            tx.delete(Task, f"t{number + 1}")
        if fail:
            raise RuntimeError("no")

    for fail in (True, False):
        try:
            await store.update(lambda tx, fail=fail: change(tx, fail))  # type: ignore[misc]
        except RuntimeError:
            assert store.view().find(Task, node_id="n1") == []
        assert {task.id: task for task in before.find(Task)} == known
    assert len(store.view().find(Task, node_id="n1")) == 100
    assert len(store.view().find(Task, service_id=web.id)) == 200


async def test_a_leader_that_does_not_read_its_own_entries_has_what_a_follower_reads() -> None:
    """Equal as objects, not only as bytes; and of equal specs each keeps one."""
    leader, follower = Store(LoopClock()), Store(LoopClock())
    leader.lead(MemoryProposer(leader, (follower,)))

    def write(tx: Tx) -> None:
        service = tx.put(build.service("web", networks=["net"], constraints=["node.id==1"]))
        tx.put(build.node("n1"))
        for number in range(3):
            tx.put(replace(build.task(service, id=f"t{number}"), spec_version=service.spec_version))

    await leader.update(write)
    await leader.update(
        lambda tx: [
            tx.put(replace(task, node_id="n1", desired_state=TaskState.SHUTDOWN))
            for task in tx.find(Task)
        ]
    )
    for kind in (Service, Node, Task):
        assert leader.view().find(kind) == follower.view().find(kind) != []
    for store in (leader, follower):
        web = store.view().find(Service)[0]
        for task in store.view().find(Task):
            assert task.spec is web.spec.task_template
            assert task.spec_version == web.spec_version


def test_every_kind_is_read_as_it_was_written() -> None:
    """With every field set: what a leader keeps of its own writing is what others read."""
    for kind in KINDS:
        made = _full(kind.type)
        assert isinstance(made, Object)
        (change,) = decode_entry(encode_entry([encode_change(Put(made))]))
        assert change == Put(made)


def _full(kind: Any, depth: int = 0) -> Any:
    """A value of the type `kind` in which nothing is left at its default where that can be."""
    info = typing.get_origin(kind)
    args = typing.get_args(kind)
    if args and type(None) in args:
        return _full(next(arg for arg in args if arg is not type(None)), depth)
    if info is tuple:
        return (_full(args[0], depth + 1),) if depth < 12 else ()
    if info is dict:
        return {"key": _full(args[1], depth + 1)}
    if isinstance(kind, type) and issubclass(kind, msgspec.Struct):
        hints = typing.get_type_hints(kind)
        return kind(**{name: _full(hints[name], depth + 1) for name in hints})
    return _plain(kind)


def _plain(kind: Any) -> Any:
    if isinstance(kind, type) and issubclass(kind, enum.Enum):
        return list(kind)[-1]
    known: dict[Any, Any] = {
        str: "text",
        int: 7,
        bool: True,
        float: 0.5,
        bytes: b"bytes",
        object: "anything",
        dt.datetime: dt.datetime(2024, 5, 6, 7, 8, 9, 10, tzinfo=dt.UTC),
    }
    return known[kind]
