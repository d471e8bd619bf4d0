"""The stream of events, snapshots, and that every manager holds the same."""

import asyncio
import gc
import random
from collections.abc import Iterable, Iterator

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st
from msgspec.structs import replace

from common.model.node import Node
from common.model.service import Service
from common.model.task import Task
from manager.store.change import BadEntry
from manager.store.state import MAGIC, PIECE_BYTES
from manager.store.store import Resync, Store
from manager.store.tables import KINDS
from manager.store.trie import Trie
from tests.support import build
from tests.support.memory_proposer import LoopClock, MemoryProposer, memory_store


def shape(events: list[object]) -> list[tuple[str, str]]:
    return [(event.action, event.object.id) for event in events]  # type: ignore[attr-defined]


def restore(store: Store, index: int, pieces: Iterable[bytes]) -> None:
    restoring = store.restoring(index)
    for piece in pieces:
        restoring.add(piece)
    for _ in restoring.end():
        pass
    restoring.become()


async def test_a_watcher_gets_each_change_with_the_old_object() -> None:
    """RAF 200."""
    store = memory_store()
    with store.watch() as watcher:
        await store.update(lambda tx: tx.put(build.node("a")))
        await store.update(lambda tx: tx.put(build.node("a", index=3)))
        await store.update(lambda tx: tx.delete(Node, "a"))
        created, updated, removed = await watcher.next()
    assert (created.action, created.old) == ("create", None)
    assert (updated.action, updated.old) == ("update", created.object)
    assert removed.action == "remove"
    assert removed.object == updated.object


async def test_next_waits_for_a_commit() -> None:
    store = memory_store()
    with store.watch() as watcher:
        async with asyncio.TaskGroup() as group:
            waiting = group.create_task(watcher.next())
            await asyncio.sleep(100)
            assert not waiting.done()
            await store.update(lambda tx: tx.put(build.node("a")))
        assert shape(list(waiting.result())) == [("create", "a")]


async def test_watching_from_a_version_replays_what_followed_or_says_it_cannot() -> None:
    """RAF 199."""
    store = Store(LoopClock(), commits_max=3)
    store.lead(MemoryProposer(store))
    for number in range(1, 6):
        await store.update(lambda tx, n=number: tx.put(build.node(f"n{n}")))
    with store.watch(since=3) as watcher:
        assert shape(list(watcher.take())) == [("create", "n4"), ("create", "n5")]
    with store.watch(since=2) as watcher:
        assert len(watcher.take()) == 3
    with store.watch(since=1) as watcher:
        with pytest.raises(Resync):
            await watcher.next()
        await store.update(lambda tx: tx.put(build.node("later")))
        assert shape(list(await watcher.next())) == [("create", "later")]
    with store.watch(since=store.version) as watcher:
        assert watcher.take() == []


async def test_watching_from_within_what_a_snapshot_skipped_is_not_possible() -> None:
    """RAF 199. Found by simulation: the difference to version 1 is not that to version 3."""
    ahead = Store(LoopClock())
    behind = Store(LoopClock())
    ahead.lead(MemoryProposer(ahead))
    await ahead.update(lambda tx: tx.put(build.node("a")))
    restore(behind, ahead.version, ahead.snapshot())
    await ahead.update(lambda tx: tx.put(build.node("b")))
    await ahead.update(lambda tx: tx.put(build.node("c")))
    seen = ahead.version
    await ahead.update(lambda tx: tx.delete(Node, "b"))
    with behind.watch() as watching:
        restore(behind, ahead.version, ahead.snapshot())
        assert shape(list(watching.take())) == [("create", "c")]
    with behind.watch(since=seen) as watcher, pytest.raises(Resync):
        watcher.take()
    with behind.watch(since=ahead.version) as watcher:
        assert watcher.take() == []


async def test_watching_from_a_version_that_is_not_here_yet_is_not_possible() -> None:
    """RAF 199. Found by simulation: what another manager had told already was told again."""
    store = memory_store()
    await store.update(lambda tx: tx.put(build.node("a")))
    with store.watch(since=store.version + 1) as watcher:
        with pytest.raises(Resync):
            watcher.take()
        await store.update(lambda tx: tx.put(build.node("b")))
        assert shape(list(watcher.take())) == [("create", "b")]


@pytest.mark.parametrize(
    "bounds", [{"commits_max": 2}, {"events_max": 5}, {"bytes_max": 1000}], ids=lambda b: min(b)
)
async def test_a_slow_watcher_is_told_and_others_are_not_disturbed(
    bounds: dict[str, int],
) -> None:
    """RAF 201."""
    store = Store(LoopClock(), **bounds)
    store.lead(MemoryProposer(store))
    with store.watch() as slow, store.watch() as quick:
        for number in range(6):
            await store.update(
                lambda tx, n=number: [tx.put(build.node(f"n{n}-{i}")) for i in range(2)]
            )
            assert len(quick.take()) == 2
        with pytest.raises(Resync):
            slow.take()
        assert slow.take() == []


async def test_who_watches_some_kinds_neither_wakes_nor_falls_behind_for_others() -> None:
    store = Store(LoopClock(), commits_max=4)
    store.lead(MemoryProposer(store))
    with store.watch(kinds=frozenset({Service})) as some:
        for number in range(10):
            await store.update(lambda tx, n=number: tx.put(build.node(f"n{n}")))
        assert not await some.wait(0.1)
        await store.update(lambda tx: [tx.put(build.node("x")), tx.put(build.service("a"))])
        await store.update(lambda tx: tx.put(build.node("y")))
        assert await some.wait(0.1)
        assert shape(some.take()) == [("create", "service-a")]
        for number in range(10):
            await store.update(lambda tx, n=number: tx.put(build.service(f"b{n}")))
        with pytest.raises(Resync):
            some.take()
        await store.update(lambda tx: tx.put(build.node("z")))
        assert some.take() == []


async def test_view_and_watch_leave_no_gap() -> None:
    store = memory_store()
    await store.update(lambda tx: tx.put(build.node("a")))
    view, watcher = store.view_and_watch()
    with watcher:
        await store.update(lambda tx: tx.put(build.node("b")))
        assert [node.id for node in view.find(Node)] == ["a"]
        assert shape(list(watcher.take())) == [("create", "b")]


async def test_restoring_emits_exactly_the_difference() -> None:
    """RAF 198."""
    source, target = memory_store(), memory_store()
    for store in (source, target):
        await store.update(lambda tx: [tx.put(build.node(name)) for name in "abc"])
    await source.update(lambda tx: tx.put(build.node("b", index=9)))
    await source.update(lambda tx: tx.delete(Node, "c"))
    await source.update(lambda tx: tx.put(build.service("web")))
    with target.watch() as watcher:
        restore(target, 10, source.snapshot())
        expected = [("remove", "c"), ("update", "b"), ("create", "service-web")]
        assert sorted(shape(list(watcher.take()))) == sorted(expected)
        restore(target, 11, source.snapshot())
        assert watcher.take() == []
    assert target.digest() == source.digest()
    assert target.view().find(Service, name="web")
    assert target.version == 11


async def test_restoring_finds_all_by_every_index() -> None:
    source, target = memory_store(), memory_store()
    for number in range(300):
        await source.update(
            lambda tx, n=number: [
                tx.put(build.node(f"n{n}")),
                tx.put(build.service(f"s{n}")),
                tx.put(build.network(f"net{n}")),
                tx.put(build.task(build.service(f"s{n}"), slot=1 + n % 3, node=f"n{n % 7}")),
            ]
        )
    restore(target, source.version, source.snapshot())
    for kind in KINDS:
        assert target.view().find(kind.type) == source.view().find(kind.type)
        for index, keys in kind.indexes.items():
            for key in {key for object in source.view().find(kind.type) for key in keys(object)}:
                by = {index: key}
                assert target.view().find(kind.type, **by) == source.view().find(kind.type, **by)
    target.lead(MemoryProposer(target))
    await target.update(lambda tx: tx.delete(Service, "service-s7"))
    assert not target.view().find(Service, name="s7")


async def test_what_was_restored_at_the_start_is_no_event() -> None:
    source, target = memory_store(), memory_store()
    await source.update(lambda tx: tx.put(build.node("a")))
    restore(target, 5, source.snapshot())
    with target.watch(since=5) as watcher:
        assert watcher.take() == []
    with target.watch(since=4) as watcher, pytest.raises(Resync):
        watcher.take()


async def test_the_cyclic_collector_does_not_look_at_what_is_stored() -> None:
    """A look at all objects of a large cluster would stop the loop for a second."""
    store = memory_store()
    for number in range(100):
        await store.update(lambda tx, n=number: tx.put(build.service(f"s{n}")))
    stored = store.view().find(Service)
    assert not any(map(gc.is_tracked, stored))
    assert not any(gc.is_tracked(service.spec) for service in stored)


async def test_a_watcher_that_came_while_a_state_was_restored_must_resynchronise() -> None:
    """Nobody watched at the beginning, so the difference was not looked for."""
    source, target = memory_store(), memory_store()
    await source.update(lambda tx: tx.put(build.node("a")))
    restoring = target.restoring(5)
    for piece in source.snapshot():
        restoring.add(piece)
    for _ in restoring.end():
        pass
    with target.watch() as watcher:
        restoring.become()
        with pytest.raises(Resync):
            watcher.take()
        assert watcher.take() == []
    with target.watch(since=4) as watcher, pytest.raises(Resync):
        watcher.take()
    with target.watch(since=5) as watcher:
        assert watcher.take() == []


async def test_a_snapshot_is_of_the_moment_it_was_asked_for() -> None:
    source, target = memory_store(), memory_store()
    await source.update(lambda tx: [tx.put(build.node(f"n{n}")) for n in range(50)])
    before = source.digest()
    pieces = source.snapshot()
    await source.update(lambda tx: tx.delete(Node, "n7"))
    await source.update(lambda tx: tx.put(build.service("web")))
    restore(target, 9, pieces)
    assert target.digest() == before


async def many_objects() -> Store:
    store = memory_store()
    web = build.service("web", networks=["net"])
    tasks = [build.task(web, slot=n % 90, id=f"t{n}") for n in range(700)]
    await store.update(lambda tx: [tx.put(one) for one in (web, build.node("a"), *tasks)])
    return store


async def test_a_state_is_cut_anywhere_and_found_by_all_its_indexes_again() -> None:
    """RAF 187."""
    source = await many_objects()
    pieces = list(source.snapshot())
    assert len(pieces) > 5
    assert max(map(len, pieces)) < 2 * PIECE_BYTES
    whole, rng = b"".join(pieces), random.Random(5)
    for most in (1, 100, len(whole)):
        target = memory_store()
        cut, place = [], 0
        while place < len(whole):
            cut.append(whole[place : place + rng.randint(1, most)])
            place += len(cut[-1])
        restore(target, 100, cut)
        assert target.digest() == source.digest()
        assert b"".join(target.snapshot()) == whole
        for by in ({"service_id": "service-web"}, {}):
            found = [sorted(t.id for t in s.view().find(Task, **by)) for s in (source, target)]
            assert found[0] == found[1] != []
        target.lead(MemoryProposer(target))
        await target.update(lambda tx: [tx.delete(Task, f"t{n}") for n in range(0, 700, 3)])
        assert len(target.view().find(Task)) == 700 - 234


async def test_the_state_of_an_earlier_release_is_read() -> None:
    source, target = await many_objects(), memory_store()
    objects = [("task", task) for task in source.view().find(Task)]
    whole = msgspec.msgpack.encode((1, objects))
    restore(target, 1, [whole[:1], whole[1:2000], whole[2000:]])
    assert target.view().find(Task, service_id="service-web")
    assert len(target.view().find(Task)) == 700
    with pytest.raises(BadEntry, match="format 3"):
        restore(target, 1, [msgspec.msgpack.encode((3, objects))])


async def test_a_state_that_is_not_whole_is_refused() -> None:
    store = memory_store()
    await store.update(lambda tx: [tx.put(build.node(name)) for name in "ab"])
    whole = b"".join(store.snapshot())
    target = memory_store()
    for length in range(len(whole)):
        with pytest.raises(BadEntry):
            restore(target, 1, [whole[:length]])
    record = whole[len(MAGIC) : len(MAGIC) + 4 + int.from_bytes(whole[len(MAGIC) :][:4], "big")]
    twice = MAGIC + record * 2 + bytes(4) + bytes((0, 0, 0, 2))
    for wrong, why in (
        (whole + b"x", "follows its end"),
        (twice, "twice"),
        (MAGIC + record + whole[-8:], "1 of 2"),
        (MAGIC + b"\xff" * 9, "too long"),
        (b"SHOALSTATE 3\n", "does not know"),
    ):
        with pytest.raises(BadEntry, match=why):
            restore(target, 1, [wrong])
    assert target.version == 0


async def test_followers_hold_the_same_as_the_leader() -> None:
    """RAF 180, 188: by the log, or by a snapshot and the rest of the log."""
    leader, follower, late = (Store(LoopClock()) for _ in range(3))
    proposer = MemoryProposer(leader, (follower,), delay_s=0.1)
    leader.lead(proposer)
    web = build.service("web")
    await leader.update(lambda tx: tx.put(web))

    async def churn(number: int) -> None:
        for slot in range(20):
            task = build.task(web, slot=slot, id=f"t{number}-{slot}")
            await leader.update(lambda tx, task=task: tx.put(task))
            if slot == 10 and number == 0:
                restore(late, leader.version, leader.snapshot())
            if slot % 3 == 0:
                await leader.update(lambda tx, task=task: tx.delete(Task, task.id))
            found = leader.view().get(Service, web.id)
            assert found is not None
            spec = replace(found.spec, labels={"n": str(slot)})
            await leader.update(
                lambda tx, found=found, spec=spec: tx.put(replace(found, spec=spec))
            )

    await asyncio.gather(*(churn(number) for number in range(5)))
    for index, data in proposer.entries:
        if index > late.version:
            late.apply(index, data)
    assert leader.digest() == follower.digest() == late.digest()
    assert len(leader.view().find(Task)) == 5 * 13


async def test_damage_is_named() -> None:
    store = memory_store()
    with pytest.raises(BadEntry, match="cannot be read"):
        store.apply(1, b"\x91\x93\x01\xa5thing\x80")
    with pytest.raises(BadEntry, match="cannot be read"):
        restore(store, 1, [b"\x00"])
    with pytest.raises(BadEntry, match="unknown action 7"):
        store.apply(1, b"\x91\x93\x07\xa4node\x80")
    store.apply(1, b"\x90")
    with pytest.raises(ValueError, match="entry 1 after entry 1"):
        store.apply(1, b"\x90")


@given(st.lists(st.tuples(st.booleans(), st.integers(0, 300)), max_size=600))
def test_a_trie_is_a_dict_that_does_not_change(steps: list[tuple[bool, int]]) -> None:
    trie, expected = Trie[int, int](), dict[int, int]()
    history = []
    for number, (put, key) in enumerate(steps):
        trie = trie.put(key, number) if put else trie.without(key)
        expected = expected | {key: number} if put else expected.copy()
        if not put:
            expected.pop(key, None)
        if number % 50 == 0:
            history.append((trie, expected))
        assert len(trie) == len(expected)
    for then, known in [*history, (trie, expected)]:
        assert dict(then.items()) == known
        assert sorted(then.values()) == sorted(known.values())
        assert all(then.get(key) == value for key, value in known.items())
        assert then.get(-1) is None


def grown(items: dict[int, int]) -> Trie[int, int]:
    steps = Trie.growing(items)
    while True:
        try:
            next(steps)
        except StopIteration as done:
            made: Trie[int, int] = done.value
            return made


@given(st.dictionaries(st.integers(0, 5000), st.integers(), max_size=2000))
def test_a_trie_made_at_once_is_as_if_made_step_by_step(items: dict[int, int]) -> None:
    trie = grown(items.copy())
    assert dict(trie.items()) == items
    assert len(trie) == len(items)
    assert all(trie.get(key) == value for key, value in items.items())
    changed = trie.put(-1, 0)
    for key in items:
        changed = changed.without(key)
    assert dict(changed.items()) == {-1: 0}
    assert dict(trie.items()) == items


def test_a_change_copies_a_path_and_nothing_else() -> None:
    """What makes views free and an update's price independent of the table's size."""
    before = Trie[int, int]()
    for number in range(20_000):
        before = before.put(number, number)
    after = before.put(77, 0)
    shared = {id(node) for node in _all_nodes(before._root)}
    assert len([node for node in _all_nodes(after._root) if id(node) not in shared]) <= 4
    assert before.get(77) == 77


def _all_nodes(node: object) -> Iterator[object]:
    yield node
    if isinstance(node, list):
        for child in node:
            yield from _all_nodes(child)


def test_a_trie_whose_keys_come_and_go_does_not_grow() -> None:
    trie = Trie[int, int]()
    for number in range(20_000):
        trie = trie.put(number * 7919, number)
        if number >= 300:
            trie = trie.without((number - 300) * 7919)
    assert len(trie) == 300
    assert _nodes(trie._root) < 3 * _nodes(grown(dict(trie.items()))._root)
    for number in range(20_000 - 300, 20_000):
        trie = trie.without(number * 7919)
    assert trie._root == {}


def _nodes(node: object) -> int:
    return 1 + sum(map(_nodes, filter(None, node))) if isinstance(node, list) else 1


def test_a_trie_holds_keys_whose_hashes_are_alike() -> None:
    keys = [number << 61 for number in range(100)]  # hash() is the number modulo 2**61 - 1
    same = [(2**61 - 1) * number for number in range(100)]
    trie = Trie[int, int]()
    for key in keys + same:
        trie = trie.put(key, key)
    at_once = grown({key: key for key in keys + same})
    for made in (trie, at_once):
        assert all(made.get(key) == key for key in keys + same)
        assert len(made) == len(set(keys + same))
