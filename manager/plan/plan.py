"""What a change would do to the tasks of the cluster, without doing it (docs/services.md)."""

import asyncio
import random
from collections import Counter
from collections.abc import Callable, Iterable, Mapping

import msgspec

from common.clock import Clock
from common.ids import Ids
from common.model.base import Model
from common.model.node import Node
from common.model.service import Service
from common.model.task import Task, TaskState
from manager.orchestrator.scene import Key, age, is_active, key_of
from manager.plan.rehearsal import Rehearsal
from manager.store.change import Change, Put
from manager.store.store import Store, Tx, View

ACTIONS = ("create", "replace", "move", "stop", "wait")


class Step(Model, frozen=True, kw_only=True):
    """One slot that would change.

    `action`: create (a task for a slot that has none), replace (on the same node), move (to
    another), stop, or wait: the slot would have a task which no node can take, `reason` says why.
    `from_node` and `to_node` are hostnames, or ids where there is none; "" where there is no node.
    """

    action: str
    service: str
    slot: int = msgspec.field(default_factory=int)  # 0: of a global service
    from_node: str = msgspec.field(default_factory=str)
    to_node: str = msgspec.field(default_factory=str)
    reason: str = ""


class Plan(Model, frozen=True, kw_only=True):
    """`counts` has how many steps there are of each action."""

    steps: tuple[Step, ...] = msgspec.field(default_factory=tuple)
    counts: dict[str, int] = msgspec.field(default_factory=dict)


class Planner:
    """Works out plans, one at a time."""

    def __init__(self, store: Store, clock: Clock) -> None:
        self._store = store
        self._clock = clock
        self._alone = asyncio.Lock()

    async def plan(self, change: Callable[[Tx], object]) -> Plan:
        """What `change`, a transaction, would bring about if all that starts runs well.

        Raises what `change` raises, and Unavailable if the cluster is too large for it.
        """
        async with self._alone:
            return await asyncio.to_thread(self._work_out, self._store.view(), change)

    def _work_out(self, view: View, change: Callable[[Tx], object]) -> Plan:
        rehearsal = Rehearsal(view, Ids(random.Random(view.version)), self._clock.now())
        written = rehearsal.attempt(change)
        rehearsal.settle()  # what is under way is not this change's doing
        before = rehearsal.view
        rehearsal.services.clear()
        rehearsal.write(lambda tx: _repeat(tx, written))
        rehearsal.hasten(_changed(before, rehearsal.view))
        rehearsal.settle()
        return compare(before, rehearsal.view, rehearsal.services)


def compare(before: View, after: View, service_ids: Iterable[str]) -> Plan:
    """The steps from one state to the other, for the tasks of these services."""
    steps: list[Step] = []
    for id in service_ids:
        old, new = _filled(before, id), _filled(after, id)
        made = (_step(before, after, old.get(key), new.get(key)) for key in {**old, **new})
        steps += [step for step in made if step is not None]
    steps.sort(key=lambda step: (step.service, step.slot, step.to_node, step.from_node))
    counts = Counter(step.action for step in steps)
    return Plan(steps=tuple(steps), counts={name: counts[name] for name in ACTIONS})


def _changed(before: View, after: View) -> list[str]:
    return [
        service.id
        for service in after.find(Service)
        if (old := before.get(Service, service.id)) is None or old.spec != service.spec
    ]


def _repeat(tx: Tx, changes: Iterable[Change]) -> None:
    """Write what was written to an earlier state: what that did not know the loops add again."""
    for change in changes:
        if isinstance(change, Put):
            tx.put(change.object)
        else:
            tx.delete(change.kind, change.id)


def _filled(view: View, service_id: str) -> Mapping[Key, Task]:
    """The newest task that should run, or has done its job, of each slot."""
    tasks = sorted(view.find(Task, service_id=service_id), key=age)
    return {key_of(task): task for task in tasks if is_active(task)}


def _step(before: View, after: View, old: Task | None, new: Task | None) -> Step | None:
    if new is None:
        if old is None or old.status.state > TaskState.RUNNING:
            return None  # what has ended is not stopped
        return _made("stop", old, _host(before, old), "")
    placed = new.status.state >= TaskState.ASSIGNED
    runs = old is not None and TaskState.ASSIGNED <= old.status.state <= TaskState.RUNNING
    if old is not None and old.id == new.id and (runs or not placed or _ended(old)):
        return None
    here, there = _host(before, old) if old is not None and runs else "", _host(after, new)
    if not placed:
        return _made("wait", new, here, "", new.status.err or "it is not placed")
    if old is None or not runs:
        return _made("create", new, "", there)
    return _made("replace" if old.node_id == new.node_id else "move", new, here, there)


def _ended(task: Task) -> bool:
    return task.status.state > TaskState.RUNNING


def _made(action: str, task: Task, here: str, there: str, reason: str = "") -> Step:
    return Step(
        action=action,
        service=task.service_annotations.name,
        slot=task.slot,
        from_node=here,
        to_node=there,
        reason=reason,
    )


def _host(view: View, task: Task) -> str:
    node = view.get(Node, task.node_id) if task.node_id else None
    return (node.description.hostname if node is not None else "") or task.node_id
