"""Transactions, their pipeline and what is left when a proposal fails."""

import asyncio
from collections.abc import Callable, Coroutine
from typing import Any

import pytest
from msgspec.structs import replace

from common.errors import Conflict, Invalid, NotLeader, ProposalUncertain, Unavailable
from common.model.base import Version
from common.model.node import Node
from common.model.service import Service
from common.model.task import Task, TaskState
from manager.store import pipeline
from manager.store.change import PROVISIONAL, decode_entry
from manager.store.store import Store, Tx, View
from manager.store.tables import Table
from tests.support import build
from tests.support.memory_proposer import LoopClock, MemoryProposer, memory_store


def leading(delay_s: float = 0) -> tuple[Store, MemoryProposer]:
    store = Store(LoopClock())
    proposer = MemoryProposer(store, delay_s=delay_s)
    store.lead(proposer)
    return store, proposer


async def test_what_is_put_is_found_by_id_and_by_index() -> None:
    store = memory_store()
    web = build.service("web")
    tasks = [build.task(web, slot=slot, node="n1" if slot < 3 else "n2") for slot in (1, 2, 3)]

    def write(tx: Tx) -> None:
        tx.put(web)
        for task in tasks:
            tx.put(task)

    await store.update(write)
    view = store.view()
    assert view.get(Service, web.id) == view.find(Service, name="WEB")[0]
    assert [task.slot for task in view.find(Task, service_id=web.id)] == [1, 2, 3]
    assert [task.slot for task in view.find(Task, node_id="n1")] == [1, 2]
    assert view.find(Task, service_id="other") == []
    with pytest.raises(TypeError, match="no index 'colour'"):
        view.find(Task, colour="red")


async def test_finding_by_an_index_looks_at_nothing_else(monkeypatch: pytest.MonkeyPatch) -> None:
    store, _ = leading()
    await store.update(lambda tx: tx.put(build.service("web")))

    def walk(table: Table) -> None:
        raise AssertionError("walked the whole table")

    monkeypatch.setattr(Table, "all", walk)
    assert [service.id for service in store.view().find(Service, name="web")] == ["service-web"]
    assert store.view().find(Service, name="other") == []


async def test_an_entry_has_a_bounded_number_of_changes(monkeypatch: pytest.MonkeyPatch) -> None:
    """An entry is applied at one go; a transaction is never split."""
    monkeypatch.setattr(pipeline, "ENTRY_CHANGES_MAX", 10)
    store, proposer = leading()
    proposer.hold()

    def put(first: int, last: int) -> Coroutine[Any, Any, object]:
        return store.update(
            lambda tx: [tx.put(build.node(f"n{number}")) for number in range(first, last)]
        )

    async with asyncio.TaskGroup() as group:
        for first in range(0, 24, 4):
            group.create_task(put(first, first + 4))
        group.create_task(put(100, 150))
        await asyncio.sleep(1)
        proposer.release()
    assert [len(decode_entry(data)) for _, data in proposer.entries] == [8, 8, 8, 50]


async def test_an_index_follows_its_object() -> None:
    store = memory_store()
    task = build.task(build.service(), node="n1")
    await store.update(lambda tx: tx.put(task))
    await store.update(lambda tx: tx.put(replace(task, node_id="n2")))
    assert store.view().find(Task, node_id="n1") == []
    assert len(store.view().find(Task, node_id="n2")) == 1
    await store.update(lambda tx: tx.delete(Task, task.id))
    assert store.view().find(Task, node_id="n2") == []
    assert store.view().find(Task) == []


async def test_version_is_the_index_of_the_entry() -> None:
    """RAF 195: the version says whether an object changed since it was read."""
    store = memory_store()
    first = await store.update(lambda tx: tx.put(build.node("a")))
    assert first.version.index > PROVISIONAL
    await store.update(lambda tx: tx.put(build.node("b")))
    versions = [node.version.index for node in store.view().find(Node)]
    assert versions == [1, 2]
    assert store.view().version == 2


async def test_times_are_those_of_proposing() -> None:
    store, _ = leading(delay_s=3)
    await store.update(lambda tx: tx.put(build.node("a")))
    await store.update(lambda tx: tx.put(replace(build.node("a"), index=7)))
    node = store.view().find(Node)[0]
    assert (node.updated_at - node.created_at).total_seconds() == 3


async def test_a_transaction_that_raises_leaves_no_trace() -> None:
    """RAF 194."""
    store, proposer = leading()

    def broken(tx: Tx) -> None:
        tx.put(build.node("a"))
        raise Invalid("no")

    with store.watch() as watcher:
        with pytest.raises(Invalid):
            await store.update(broken)
        assert watcher.take() == []
    assert store.view().find(Node) == []
    assert proposer.entries == []


async def test_a_transaction_that_changes_nothing_writes_nothing() -> None:
    store, proposer = leading()
    await store.update(lambda tx: tx.put(build.node("a")))
    node = store.view().find(Node)[0]
    await store.update(lambda tx: tx.put(node))
    await store.update(lambda tx: tx.delete(Node, "not there"))
    assert len(proposer.entries) == 1


async def test_a_view_never_changes() -> None:
    """RAF 196."""
    store = memory_store()
    await store.update(lambda tx: [tx.put(build.node(f"n{i}")) for i in range(100)])
    before = store.view()
    await store.update(lambda tx: [tx.delete(Node, f"n{i}") for i in range(50)])
    await store.update(lambda tx: tx.put(build.node("new")))
    assert len(before.find(Node)) == 100
    assert len(store.view().find(Node)) == 51


async def test_names_are_unique_in_their_kind() -> None:
    """RAF 202."""
    store = memory_store()
    await store.update(lambda tx: tx.put(build.service("web")))
    with pytest.raises(Conflict, match="service 'web' already exists"):
        await store.update(lambda tx: tx.put(build.service("Web", id="other")))
    await store.update(lambda tx: tx.put(build.network("web")))
    leaving = replace(store.view().find(Service)[0], pending_delete=True)
    await store.update(lambda tx: tx.put(leaving))
    await store.update(lambda tx: tx.put(build.service("web", id="other")))
    assert [found.id for found in store.view().find(Service, name="web")] == ["other"]
    with pytest.raises(Conflict, match="service 'web' already exists"):
        await store.update(lambda tx: tx.put(replace(leaving, pending_delete=False)))
    await store.update(lambda tx: tx.put(build.service("db")))
    with pytest.raises(Conflict, match="service 'web' already exists"):
        await store.update(lambda tx: tx.put(build.service("web", id=_only(tx, "db").id)))
    again = _only(store.view(), "db")
    renamed = replace(again, spec=replace(again.spec, name="DB", labels={"kept": "yes"}))
    await store.update(lambda tx: tx.put(renamed))
    assert _only(store.view(), "db").spec.labels == {"kept": "yes"}


def _only(view: View, name: str) -> Service:
    (found,) = view.find(Service, name=name)
    return found


async def test_transactions_see_what_is_on_its_way_and_share_entries() -> None:
    store, proposer = leading(delay_s=1)
    seen: list[int] = []

    def add(tx: Tx) -> None:
        seen.append(len(tx.find(Node)))
        tx.put(build.node(f"n{len(seen)}"))

    await asyncio.gather(*(store.update(add) for _ in range(50)))
    assert seen == list(range(50))
    assert len(proposer.entries) == 1
    assert len(store.view().find(Node)) == 50


async def test_entries_are_bounded_and_keep_the_order(monkeypatch: pytest.MonkeyPatch) -> None:
    """RAF 197: what is too much for an entry is cut between transactions."""
    monkeypatch.setattr(pipeline, "ENTRY_BYTES_MAX", 4000)
    store, proposer = leading(delay_s=1)
    with store.watch() as watcher:
        await asyncio.gather(
            *(store.update(lambda tx, n=n: tx.put(build.node(f"n{n}"))) for n in range(100))
        )
        order = [event.object.id for event in watcher.take()]
    assert order == [f"n{n}" for n in range(100)]
    assert len(proposer.entries) > pipeline.IN_FLIGHT_MAX
    assert all(len(data) <= 4500 for _, data in proposer.entries)


async def test_a_write_on_its_way_has_another_version_than_the_one_read() -> None:
    """Else two clients that read version 1 could both replace it."""
    store, proposer = leading()
    await store.update(lambda tx: tx.put(build.service("web")))
    proposer.hold()

    def scale(tx: Tx) -> None:
        found = tx.find(Service)[0]
        if found.version.index != 1:
            raise Conflict("out of sequence")
        tx.put(replace(found, update_status=None, pending_delete=True))

    async with asyncio.TaskGroup() as group:
        first = group.create_task(store.update(scale))
        second = group.create_task(_refused(store, scale))
        await asyncio.sleep(0.1)
        assert not second.done(), "the write that it lost against may still fail"
        proposer.release()
        await second
        assert first.done()


async def _refused(store: Store, write: Callable[[Tx], object]) -> None:
    with pytest.raises(Conflict, match="out of sequence"):
        await store.update(write)


@pytest.mark.parametrize("written", [False, True])
async def test_nobody_is_refused_for_a_write_that_may_never_have_happened(written: bool) -> None:
    """Found by simulation: a client read the old value after it had been refused for a new one."""
    store, proposer = leading()
    proposer.lose(written=written)

    def create(tx: Tx) -> None:
        if tx.find(Service, name="web"):
            raise Conflict("it exists")
        tx.put(build.service("web"))

    def look(tx: Tx) -> int:
        return len(tx.find(Service))

    first, *others = await asyncio.gather(
        store.update(create), store.update(create), store.update(look), return_exceptions=True
    )
    assert isinstance(first, ProposalUncertain)
    assert [type(other) for other in others] == [NotLeader, NotLeader]


async def test_the_overlay_gets_the_versions_of_the_log() -> None:
    """However long writes keep coming, what has committed has its real version in a Tx."""
    store, proposer = leading(delay_s=1)

    async def churn() -> None:
        for i in range(20):
            await store.update(lambda tx, i=i: tx.put(build.node("busy", index=i + 1)))

    async with asyncio.TaskGroup() as group:
        group.create_task(churn())
        await asyncio.sleep(0.5)
        group.create_task(churn())
        await store.update(lambda tx: tx.put(build.service("web")))
        version = store.view().find(Service)[0].version
        for _ in range(10):
            await asyncio.sleep(0.3)
            found = await store.update(lambda tx: tx.find(Service)[0])
            assert found.version == version
    assert proposer.entries


async def test_spec_version_moves_only_with_the_spec() -> None:
    store = memory_store()
    web = build.service("web", replicas=2)
    await store.update(lambda tx: tx.put(web))
    first = store.view().find(Service)[0]
    assert first.spec_version == Version(index=1)
    await store.update(lambda tx: tx.put(replace(first, pending_delete=False, update_status=None)))
    await store.update(lambda tx: tx.put(replace(first, pending_delete=True)))
    await store.update(
        lambda tx: tx.put(replace(first, spec=replace(first.spec, labels={"a": "b"})))
    )
    last = store.view().find(Service)[0]
    assert last.version == last.spec_version == Version(index=3)
    assert last.previous_spec_version == Version(index=1)


async def test_a_task_made_on_the_overlay_gets_its_services_real_spec_version() -> None:
    store, proposer = leading()
    proposer.hold()

    def make_task(tx: Tx) -> None:
        tx.put(build.task(tx.find(Service)[0], slot=1))

    def change(tx: Tx) -> None:
        found = tx.find(Service)[0]
        tx.put(replace(found, spec=replace(found.spec, labels={"v": "2"})))

    def place(tx: Tx) -> None:
        found = tx.find(Task)[0]
        assert found.spec_version is not None
        assert found.spec_version.index > PROVISIONAL
        tx.put(replace(found, node_id="n1", desired_state=TaskState.SHUTDOWN))

    async with asyncio.TaskGroup() as group:
        for step in (lambda tx: tx.put(build.service("web")), make_task, change, place):
            group.create_task(store.update(step))
            await asyncio.sleep(0.1)
        proposer.release()
    assert len(proposer.entries) == 4
    task = store.view().find(Task)[0]
    assert task.spec_version == Version(index=1)
    assert task.node_id == "n1"
    assert store.view().find(Service)[0].spec_version == Version(index=3)


async def test_without_a_leader_writing_is_refused() -> None:
    """RAF 177."""
    store = Store(LoopClock())
    with pytest.raises(NotLeader):
        await store.update(lambda tx: tx.put(build.node()))


async def test_when_one_proposal_fails_all_that_built_on_it_fail() -> None:
    store, proposer = leading()
    await store.update(lambda tx: tx.put(build.node("a")))
    proposer.hold()
    calls = [
        asyncio.ensure_future(store.update(lambda tx, n=n: tx.put(build.node(n))))  # noqa: TID251
        for n in ("b", "c", "d")
    ]
    await asyncio.sleep(0.1)
    proposer.refuse()
    proposer.release()
    outcomes = await asyncio.gather(*calls, return_exceptions=True)
    assert all(isinstance(outcome, NotLeader) for outcome in outcomes)
    with pytest.raises(NotLeader):
        await store.update(lambda tx: tx.put(build.node("e")))
    assert [node.id for node in store.view().find(Node)] == ["a"]
    store.lead(MemoryProposer(store))
    await store.update(lambda tx: tx.put(build.node("f")))
    assert {node.id for node in store.view().find(Node)} == {"a", "f"}


@pytest.mark.parametrize("written", [True, False])
async def test_an_uncertain_write_says_so(written: bool) -> None:
    store, proposer = leading()
    proposer.lose(written=written)
    with pytest.raises(ProposalUncertain):
        await store.update(lambda tx: tx.put(build.node("a")))
    assert len(store.view().find(Node)) == written


async def test_following_refuses_what_waits_and_lets_the_proposer_answer_the_rest() -> None:
    store, proposer = leading()
    proposer.hold()
    flying = asyncio.ensure_future(store.update(lambda tx: tx.put(build.node("a"))))  # noqa: TID251
    await asyncio.sleep(0.1)
    late = asyncio.ensure_future(store.update(lambda tx: tx.put(build.node("b"))))  # noqa: TID251
    await asyncio.sleep(0)
    store.follow()
    proposer.release()
    await flying
    outcome = (await asyncio.gather(late, return_exceptions=True))[0]
    assert isinstance(outcome, NotLeader) or [n.id for n in store.view().find(Node)] == ["a", "b"]


async def test_a_caller_that_gives_up_does_not_take_the_others_along() -> None:
    store, proposer = leading()
    proposer.hold()
    first = asyncio.ensure_future(store.update(lambda tx: tx.put(build.node("a"))))  # noqa: TID251
    other = asyncio.ensure_future(store.update(lambda tx: tx.put(build.node("b"))))  # noqa: TID251
    await asyncio.sleep(0.1)
    first.cancel()
    await asyncio.sleep(0.1)
    proposer.release()
    await other
    assert len(store.view().find(Node)) == 2


async def test_close_ends_what_is_under_way() -> None:
    store, proposer = leading()
    proposer.hold()
    call = asyncio.ensure_future(store.update(lambda tx: tx.put(build.node("a"))))  # noqa: TID251
    await asyncio.sleep(0.1)
    await store.close()
    assert isinstance((await asyncio.gather(call, return_exceptions=True))[0], ProposalUncertain)


async def test_a_transaction_that_is_too_big_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pipeline, "TRANSACTION_BYTES_MAX", 1000)
    store = memory_store()
    with pytest.raises(Invalid, match="the most is 1000"):
        await store.update(lambda tx: [tx.put(build.node(f"n{i}")) for i in range(10)])
    await store.update(lambda tx: tx.put(build.node("a")))
    assert len(store.view().find(Node)) == 1


async def test_no_entry_gets_in_after_one_that_was_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    """The second transaction was built upon the first."""
    monkeypatch.setattr(pipeline, "ENTRY_BYTES_MAX", 1)

    class Choosy:
        calls = 0

        async def propose(self, data: bytes) -> int:
            self.calls += 1
            if self.calls == 1:
                raise Unavailable("the log is full")
            return self.calls

        async def confirm(self) -> None:
            """It leads for ever."""

    store, choosy = Store(LoopClock()), Choosy()
    store.lead(choosy)
    outcomes = await asyncio.gather(
        *(store.update(lambda tx, n=n: tx.put(build.node(n))) for n in "abc"),
        return_exceptions=True,
    )
    assert [type(outcome) for outcome in outcomes] == [Unavailable, NotLeader, NotLeader]
    assert choosy.calls == 1
