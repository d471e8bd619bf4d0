"""Statuses that agents report, on their way into the store.

While one write is under way the next is collected, so that a burst costs few entries and a lone
status waits for nothing. Only the newest status of a task is kept: memory is bounded by the
number of tasks.
"""

import asyncio
from collections.abc import Callable, Iterable, Mapping

import msgspec

from common.model.task import Task, TaskState, TaskStatus
from common.protocol.dispatcher import StatusReport
from manager.store.store import Store, Tx

STATUSES_MAX = 500  # of one transaction
TEXT_MAX = 4096  # bytes of a message: an agent must not fill the log


def newer(old: TaskStatus, new: TaskStatus) -> bool:
    """Whether `new` may take the place of `old`: states only move forward, and end once."""
    if old.state > TaskState.RUNNING or new.state < old.state:
        return False
    return new != old


def from_agent(status: TaskStatus) -> bool:
    """Whether an agent may say this at all; the other states are the manager's."""
    return TaskState.ACCEPTED <= status.state <= TaskState.REJECTED


def write(tx: Tx, statuses: Mapping[str, TaskStatus], node_of: Mapping[str, str]) -> list[str]:
    """Store those statuses whose task is there, on the node that reported, and not further.

    Returns the tasks for which there was no more room."""
    for count, (id, status) in enumerate(statuses.items()):
        if tx.is_full:
            return list(statuses)[count:]
        task = tx.get(Task, id)
        if task is not None and task.node_id == node_of[id] and newer(task.status, status):
            tx.put(msgspec.structs.replace(task, status=_bounded(status)))
    return []


class StatusIntake:
    """Collects reports and writes them; tells each node how far its reports are stored."""

    def __init__(
        self,
        store: Store,
        node_of: Callable[[str], str],
        stored: Callable[[str, str, int], None],
    ) -> None:
        """`node_of`: the node of a task. `stored(node_id, session_id, number)` is called after
        the commit of all reports of that session up to `number`."""
        self._store = store
        self._node_of = node_of
        self._stored = stored
        self._pending: dict[str, TaskStatus] = {}
        self._nodes: dict[str, str] = {}  # of the pending
        self._numbers: dict[tuple[str, str], int] = {}
        self._news = asyncio.Event()

    def take(self, node_id: str, session_id: str, report: StatusReport) -> list[str]:
        """Note a report. Returns the tasks that the node may not speak of: they are left out."""
        refused = []
        for update in report.updates:
            id, status = update.task_id, update.status
            owner = self._node_of(id)
            if (owner and owner != node_id) or not from_agent(status):
                refused.append(id)
            elif owner:  # nobody's: the task was deleted meanwhile, which settles it
                pending = self._pending.get(id)
                if pending is None or newer(pending, status):
                    self._pending[id] = status
                    self._nodes[id] = node_id
        at = node_id, session_id
        self._numbers[at] = max(report.number, self._numbers.get(at, 0))
        self._news.set()
        return refused

    async def run(self) -> None:
        """Write until cancelled. NotLeader and ProposalUncertain end it: so ends the term."""
        while True:
            await self._news.wait()
            self._news.clear()
            while self._pending or self._numbers:
                await self._write_once()

    async def _write_once(self) -> None:
        statuses = _taken(self._pending)
        nodes = {id: self._nodes.pop(id) for id in statuses}
        numbers, more = dict(self._numbers), bool(self._pending)
        if statuses:
            for id in await self._store.update(lambda tx: write(tx, statuses, nodes)):
                more = True
                if id not in self._pending or not newer(statuses[id], self._pending[id]):
                    self._pending[id], self._nodes[id] = statuses[id], nodes[id]
        if more:  # some reports are only partly written
            return
        self._numbers = {
            at: last for at, last in self._numbers.items() if last > numbers.get(at, 0)
        }
        for (node_id, session_id), number in numbers.items():
            self._stored(node_id, session_id, number)


def _taken(pending: dict[str, TaskStatus]) -> dict[str, TaskStatus]:
    taken = {id: pending[id] for id in _first(pending, STATUSES_MAX)}
    for id in taken:
        del pending[id]
    return taken


def _first(ids: Iterable[str], count: int) -> list[str]:
    return [id for _, id in zip(range(count), ids, strict=False)]


def _bounded(status: TaskStatus) -> TaskStatus:
    if len(status.message) <= TEXT_MAX and len(status.err) <= TEXT_MAX:
        return status
    return msgspec.structs.replace(
        status, message=status.message[:TEXT_MAX], err=status.err[:TEXT_MAX]
    )
