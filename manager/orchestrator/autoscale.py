"""Scales services by what their tasks use (labels shoal.autoscale…).

As many replicas as bring the average down to the target, up at once and down only when fewer would
have done for a whole cool-down. Replicas that have said nothing count as using nothing when it goes
up, and as using their target when it goes down, so that a lost word never causes a change.
"""

import dataclasses
import datetime as dt
import math
from collections import deque
from collections.abc import Mapping, Sequence
from typing import Protocol

from msgspec.structs import replace

from common.model.service import AutoscaleStatus, ReplicatedService, Service, ServiceMode
from common.model.task import Resources, Task, TaskSpec, TaskState
from manager import wishes
from manager.api import defaults
from manager.dispatcher.usage import Used
from manager.orchestrator.rebalance import is_replicated
from manager.store.store import Event, Tx, View
from manager.store.watch import Kinds
from manager.wishes import Autoscale, Target

PERIOD = dt.timedelta(seconds=10)
FRESH = dt.timedelta(seconds=35)  # older words of a task say nothing
PAUSE_UP = dt.timedelta(seconds=30)  # for what was added to take its share
TOLERANCE = 0.1  # so far from the target nothing is done
NANO = 1_000_000_000


class Usage(Protocol):
    """Where the figures come from (dispatcher/usage.py)."""

    def ask(self, tasks: Mapping[str, str]) -> None: ...
    def of(self, task_id: str) -> Used | None: ...


@dataclasses.dataclass(frozen=True, slots=True)
class Wanted:
    """How many replicas would do, by the measure that asks for the most."""

    up: int  # counting those that said nothing as idle
    down: int  # counting them as at their target
    why: str


def target_of(target: Target, spec: TaskSpec, measure: str) -> float:
    """A target in CPUs or bytes for each replica; 0: it has none to be a share of."""
    if not target.percent:
        return target.amount
    wanted = spec.resources
    for amount in (wanted.limits, wanted.reservations) if wanted is not None else ():
        if amount is not None and (whole := _amount(amount, measure)):
            return whole * target.amount / 100
    return 0.0


def _amount(resources: Resources, measure: str) -> float:
    return resources.nano_cpus / NANO if measure == "cpu" else float(resources.memory_bytes)


def wanted(
    rule: Autoscale, spec: TaskSpec, replicas: int, used: Sequence[Used | None]
) -> Wanted | None:
    """What the figures of the running tasks ask for; None if nobody has said anything."""
    found: list[Wanted] = []
    for measure, target in (("cpu", rule.cpu), ("memory", rule.memory)):
        each = target_of(target, spec, measure) if target is not None else 0.0
        figures = [value for one in used if (value := _figure(one, measure)) is not None]
        if each and figures:
            found.append(_by_one(measure, each, figures, len(used), replicas))
    if not found:
        return None
    most = max(found, key=lambda one: one.up)
    return Wanted(most.up, max(one.down for one in found), most.why)


def _figure(used: Used | None, measure: str) -> float | None:
    if used is None:
        return None
    return used.cpus if measure == "cpu" else float(used.memory)


def _by_one(
    measure: str, each: float, figures: Sequence[float], running: int, replicas: int
) -> Wanted:
    total = sum(figures)
    up, down = total / each, total / each + max(running - len(figures), 0)
    average = total / len(figures)
    why = f"{measure} {_shown(measure, average)} for each replica, target {_shown(measure, each)}"
    return Wanted(
        up=math.ceil(up) if up > replicas * (1 + TOLERANCE) else replicas,
        down=max(math.ceil(down), 1) if down < replicas * (1 - TOLERANCE) else replicas,
        why=why,
    )


def _shown(measure: str, value: float) -> str:
    return f"{value:.2f}" if measure == "cpu" else f"{value / (1 << 20):.0f} MiB"


class Autoscaler:
    """The leader's loop. It asks for figures as often as it looks."""

    kinds: Kinds = frozenset({Service})

    def __init__(self, usage: Usage) -> None:
        self._usage = usage
        self._services: dict[str, None] = {}
        self._seen: dict[str, deque[tuple[dt.datetime, int]]] = {}  # what would have done, when
        self._since: dict[str, dt.datetime] = {}
        self._look_at: dt.datetime | None = None
        self._new = False

    def restore(self, view: View) -> None:
        self._services, self._seen, self._since = {}, {}, {}
        for service in view.find(Service):
            self._note(service)

    def observe(self, event: Event) -> None:
        if isinstance(event.object, Service):
            self._services.pop(event.object.id, None)
            if event.action != "remove":
                self._note(event.object)
            if event.object.id not in self._services:
                self._seen.pop(event.object.id, None)
                self._since.pop(event.object.id, None)

    def _note(self, service: Service) -> None:
        if is_replicated(service) and wishes.of(service.spec).autoscale is not None:
            self._services[service.id] = None
            self._new = self._new or service.id not in self._since

    @property
    def dirty(self) -> bool:
        return self._new

    @property
    def wake_at(self) -> dt.datetime | None:
        return self._look_at if self._services else None

    def reconcile(self, tx: Tx, now: dt.datetime) -> None:
        self._new, self._look_at = False, now + PERIOD
        ask: dict[str, str] = {}
        for id in self._services:
            service = tx.get(Service, id)
            rule = wishes.of(service.spec).autoscale if service is not None else None
            if service is None or rule is None:
                continue
            self._since.setdefault(id, now)
            tasks = [task for task in tx.find(Task, service_id=id) if _counts(task)]
            ask |= {task.id: task.node_id for task in tasks}
            self._scale(tx, service, rule, tasks, now)
        self._usage.ask(ask)

    def _scale(
        self, tx: Tx, service: Service, rule: Autoscale, tasks: Sequence[Task], now: dt.datetime
    ) -> None:
        replicas = defaults.replicas(service.spec)
        goal, why = self._goal(service, rule, replicas, tasks, now)
        if goal != replicas:
            _change(tx, service, goal, why, now)

    def _goal(
        self,
        service: Service,
        rule: Autoscale,
        replicas: int,
        tasks: Sequence[Task],
        now: dt.datetime,
    ) -> tuple[int, str]:
        """How many replicas there should be now, and why."""
        if not rule.least <= replicas <= rule.most:
            return min(max(replicas, rule.least), rule.most), f"{rule.least} to {rule.most} allowed"
        used = [_fresh(self._usage.of(task.id), now) for task in tasks]
        found = wanted(rule, service.spec.task_template, replicas, used)
        if found is None:
            return replicas, ""
        most_down = self._most_lately(service.id, rule, found.down, now)
        if found.up > replicas:
            if _changed_lately(service, now):
                return replicas, ""
            return min(found.up, rule.most, max(2 * replicas, replicas + 4)), found.why
        if most_down is not None and most_down < replicas:
            return max(most_down, rule.least), found.why
        return replicas, ""

    def _most_lately(self, id: str, rule: Autoscale, count: int, now: dt.datetime) -> int | None:
        """The most replicas that were needed in the cool-down; None before it has passed once."""
        seen = self._seen.setdefault(id, deque())
        while seen and seen[0][0] <= now - rule.cooldown:
            seen.popleft()
        seen.append((now, count))
        if now - self._since.get(id, now) < rule.cooldown:
            return None
        return max(each for _, each in seen)


def _counts(task: Task) -> bool:
    return task.status.state is TaskState.RUNNING and task.desired_state is TaskState.RUNNING


def _fresh(used: Used | None, now: dt.datetime) -> Used | None:
    return used if used is not None and now - used.at <= FRESH else None


def _changed_lately(service: Service, now: dt.datetime) -> bool:
    return service.autoscale is not None and now - service.autoscale.at < PAUSE_UP


def _change(tx: Tx, service: Service, goal: int, why: str, now: dt.datetime) -> None:
    status = AutoscaleStatus(
        at=now, replicas_before=defaults.replicas(service.spec), replicas=goal, message=why
    )
    mode = ServiceMode(replicated=ReplicatedService(replicas=goal))
    tx.put(replace(service, spec=replace(service.spec, mode=mode), autoscale=status))
