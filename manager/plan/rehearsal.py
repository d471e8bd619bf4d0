"""Plays on a copy of the store what the leader's loops would do, with nodes on which all goes well.

The loops are the real ones; what they would wait for (a task that starts or stops, a delay) has
happened when they ask. Nothing is written and nobody waits: the copy is a fork of the tables,
and time is a number. It computes for as long as the cluster is large; run it in a thread.
"""

import datetime as dt
import functools
import time
from collections.abc import Callable, Hashable, Iterable

from msgspec.structs import replace

from common.errors import Unavailable
from common.ids import Ids
from common.model.node import Node, NodeState
from common.model.service import Service, UpdateConfig
from common.model.task import Task, TaskState
from manager.allocator.allocator import Allocator
from manager.api import defaults
from manager.control import Loop
from manager.orchestrator.enforcer import Enforcer
from manager.orchestrator.global_services import GlobalOrchestrator
from manager.orchestrator.jobs import GlobalJobOrchestrator, ReplicatedJobOrchestrator
from manager.orchestrator.replicated import ReplicatedOrchestrator
from manager.orchestrator.scene import is_active
from manager.scheduler.scheduler import Scheduler
from manager.store.change import PROVISIONAL, Change, apply_change
from manager.store.view import O, Tx, View

ROUNDS_MAX = 5000
HORIZON = dt.timedelta(days=1)  # what happens later than that is not waited for
DEADLINE_S = 20.0  # of computing
STEPS = 20  # an update is played in about so many
_YIELD_S = 0.0005  # the daemon's own loop goes on meanwhile


class Rehearsal:
    """`write` what is to be tried, `settle`, and look at `view`."""

    def __init__(self, view: View, ids: Ids, now: dt.datetime) -> None:
        self._tables = view.fork()
        self._version = view.version
        self._now = now
        self._until = now + HORIZON
        self._ends = time.monotonic() + DEADLINE_S
        # Those of services hear of changes only: what others are in the midst of is not played.
        self._loops: tuple[Loop, ...] = (
            ReplicatedOrchestrator(ids),
            GlobalOrchestrator(ids),
            ReplicatedJobOrchestrator(ids),
            GlobalJobOrchestrator(ids),
            Enforcer(),
            allocator := Allocator(),
            scheduler := Scheduler(),
        )
        self._tasks: dict[str, None] = {}  # those whose node may have something to do
        self.services: dict[str, None] = {}  # those of which tasks changed
        everything = _InNoOrder(self._tables.fork(), self._version)
        allocator.restore(everything)
        scheduler.restore(everything)

    @property
    def view(self) -> View:
        """The state of this moment."""
        return View(self._tables.fork(), self._version)

    def write(self, change: Callable[[Tx], object]) -> None:
        """Commit what `change` writes, and let the loops know. Raises what it raises."""
        tx = Tx(self._tables.fork(), self._version, self._now, PROVISIONAL + 1)
        change(tx)
        self._version += 1
        for each in tx.changes:
            event = apply_change(self._tables, each, self._version)
            if event is None:
                continue
            if isinstance(event.object, Task):
                self._tasks[event.object.id] = None
                self.services[event.object.service_id] = None
            for loop in self._loops:
                loop.observe(event)

    def attempt(self, change: Callable[[Tx], object]) -> list[Change]:
        """What `change` writes now; it is not kept. Raises what it raises."""
        tx = Tx(self._tables.fork(), self._version, self._now, PROVISIONAL + 1)
        change(tx)
        return tx.changes

    def settle(self) -> None:
        """Until nothing is left to do. Raises Unavailable if that takes too long."""
        for _ in range(ROUNDS_MAX):
            if time.monotonic() > self._ends:
                break
            time.sleep(_YIELD_S)
            wanted = [loop for loop in self._loops if loop.dirty or self._due(loop)]
            for loop in wanted:
                self.write(functools.partial(_reconcile, loop, self._now))
            if not wanted and not self._act() and not self._wait():
                return
        raise Unavailable("the plan is too large to be worked out in time; plan a part of it")

    def hasten(self, ids: Iterable[str]) -> None:
        """Let the updates of these services go in few large steps, without pauses."""

        def change(tx: Tx) -> None:
            for id in ids:
                service = tx.get(Service, id)
                if service is not None and not service.spec.mode.is_job:
                    tasks = tx.find(Task, service_id=id)
                    tx.put(_hastened(service, sum(map(is_active, tasks))))

        self.write(change)

    def _due(self, loop: Loop) -> bool:
        return loop.wake_at is not None and loop.wake_at <= self._now

    def _act(self) -> bool:
        """Let all nodes do what they were told; whether there was anything."""
        tasks, self._tasks = self._tasks, {}

        def report(tx: Tx) -> None:
            for id in tasks:
                task = tx.get(Task, id)
                if task is None or (state := _next(tx, task)) is task.status.state:
                    continue
                tx.put(replace(task, status=replace(task.status, state=state, timestamp=self._now)))

        before = len(self._tasks)
        self.write(report)
        return len(self._tasks) > before

    def _wait(self) -> bool:
        """Let time pass until a loop wants to look again; False if none does."""
        moments = [loop.wake_at for loop in self._loops if loop.wake_at is not None]
        moment = min(moments, default=None)
        if moment is None or moment > self._until:
            return False
        self._now = max(moment, self._now)
        return True


class _InNoOrder(View):
    """Sorting all tasks of a large cluster would hold up the daemon's other threads."""

    def find(self, kind: type[O], **by: Hashable) -> list[O]:
        return super().find(kind, **by) if by else list(self.all(kind))


def _reconcile(loop: Loop, now: dt.datetime, tx: Tx) -> None:
    loop.reconcile(tx, now)


def _next(view: View, task: Task) -> TaskState:
    """The state that `task` gets to where all goes well."""
    state, desired = task.status.state, task.desired_state
    if not TaskState.ASSIGNED <= state <= TaskState.RUNNING:
        return state
    node = view.get(Node, task.node_id)
    if node is None or node.status.state is NodeState.DOWN:
        return state
    return TaskState.SHUTDOWN if desired > TaskState.COMPLETE else max(state, desired)


def _hastened(service: Service, tasks: int) -> Service:
    return replace(
        service,
        spec=replace(
            service.spec,
            update_config=_hasty(service.spec.update_config, tasks),
            rollback_config=_hasty(service.spec.rollback_config, tasks),
        ),
    )


def _hasty(config: UpdateConfig | None, tasks: int) -> UpdateConfig:
    at_once = defaults.update_rules(config).parallelism
    wide = max(at_once, -(-tasks // STEPS)) if at_once else 0
    return replace(config or UpdateConfig(), parallelism=wide, delay=0, monitor=0)
