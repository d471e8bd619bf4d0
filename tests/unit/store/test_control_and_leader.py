"""The runner of the leader's loops."""

import asyncio
import contextlib
import datetime as dt

import pytest

from common.errors import NotLeader
from common.model.node import Node
from manager import control
from manager.leader import lead
from manager.store.store import Event, Store, Tx, View
from tests.support import build
from tests.support.memory_proposer import START, LoopClock, MemoryProposer, memory_store


class Labeller:
    """Gives every node an index; counts what it is asked."""

    def __init__(self, wake_at: dt.datetime | None = None) -> None:
        self.nodes: dict[str, None] = {}
        self.restored = 0
        self.passes: list[dt.datetime] = []
        self.wake_at = wake_at

    def restore(self, view: View) -> None:
        self.restored += 1
        self.nodes = {node.id: None for node in view.find(Node) if not node.index}

    def observe(self, event: Event) -> None:
        if isinstance(event.object, Node) and not event.object.index:
            self.nodes[event.object.id] = None

    @property
    def dirty(self) -> bool:
        return bool(self.nodes)

    def reconcile(self, tx: Tx, now: dt.datetime) -> None:
        self.passes.append(now)
        if self.wake_at is not None and self.wake_at <= now:
            self.wake_at = None
        for id in list(self.nodes)[:10]:
            del self.nodes[id]
            tx.put(build.node(id, index=7))


@contextlib.asynccontextmanager
async def running(store: Store, *loops: control.Loop):  # type: ignore[no-untyped-def]
    async with asyncio.TaskGroup() as group:
        task = group.create_task(lead(store, loops, LoopClock()))
        yield
        task.cancel()


def unlabelled(store: Store) -> list[Node]:
    return [node for node in store.view().find(Node) if not node.index]


async def test_a_loop_repairs_what_it_finds_and_what_comes() -> None:
    store, loop = memory_store(), Labeller()
    await store.update(lambda tx: [tx.put(build.node(f"old{n}")) for n in range(25)])
    async with running(store, loop):
        await asyncio.sleep(1)
        assert not unlabelled(store)
        await store.update(lambda tx: tx.put(build.node("new")))
        await asyncio.sleep(control.QUIET_S * 2)
        assert not unlabelled(store)


async def test_a_burst_of_commits_is_one_pass_but_patience_ends() -> None:
    store, loop = memory_store(), Labeller()
    async with running(store, loop):
        await asyncio.sleep(1)
        for number in range(9):
            await store.update(lambda tx, n=number: tx.put(build.node(f"n{n}")))
            await asyncio.sleep(control.QUIET_S / 2)
        await asyncio.sleep(1)
        assert len(loop.passes) == 1
        for number in range(100):
            await store.update(lambda tx, n=number: tx.put(build.node(f"m{n}")))
            await asyncio.sleep(control.QUIET_S / 2)
        assert 2 <= len(loop.passes) <= 30
        assert loop.passes[1] - loop.passes[0] < dt.timedelta(seconds=2)


async def test_a_loop_is_woken_at_its_moment() -> None:
    store = memory_store()
    when = START + dt.timedelta(seconds=30)
    loop = Labeller(wake_at=when)
    async with running(store, loop):
        await asyncio.sleep(29)
        assert loop.passes == []
        await asyncio.sleep(2)
        assert loop.passes == [when]


async def test_a_loop_that_wants_to_run_for_nothing_does_not_starve_the_others() -> None:
    class Stubborn(Labeller):
        def reconcile(self, tx: Tx, now: dt.datetime) -> None:
            self.passes.append(now)

    store, stubborn, loop = memory_store(), Stubborn(wake_at=START), Labeller()
    async with running(store, stubborn, loop):
        await store.update(lambda tx: tx.put(build.node("a")))
        await asyncio.sleep(1)
        assert not unlabelled(store)
        assert len(stubborn.passes) <= 1.1 / control.PAUSE_S


async def test_a_loop_that_fell_behind_learns_everything_again() -> None:
    store = Store(LoopClock(), commits_max=2)
    store.lead(MemoryProposer(store))
    loop = Labeller()
    async with running(store, loop):
        await asyncio.sleep(1)
        for number in range(20):
            await store.update(lambda tx, n=number: tx.put(build.node(f"n{n}")))
        await asyncio.sleep(1)
        assert loop.restored > 1
        assert not unlabelled(store)


async def test_one_loop_that_fails_ends_the_term_for_all() -> None:
    class Broken(Labeller):
        def reconcile(self, tx: Tx, now: dt.datetime) -> None:
            raise RuntimeError("broken")

    store, loop = memory_store(), Labeller()
    await store.update(lambda tx: tx.put(build.node("a")))
    with pytest.raises(ExceptionGroup) as failed:
        await lead(store, [loop, Broken()], LoopClock())
    assert failed.group_contains(RuntimeError, match="broken")


async def test_a_write_that_fails_ends_the_term() -> None:
    store = Store(LoopClock())
    proposer = MemoryProposer(store)
    store.lead(proposer)
    await store.update(lambda tx: tx.put(build.node("a")))
    proposer.refuse()
    with pytest.raises(ExceptionGroup) as failed:
        await lead(store, [Labeller()], LoopClock())
    assert failed.group_contains(NotLeader)
