"""What tasks use, as their nodes say when they are asked: the newest word of each task."""

import dataclasses
import datetime as dt
from collections.abc import Callable, Iterable, Mapping

from common.protocol.usage import TASKS_MAX, TaskUsage, UsageReport, UsageRequest

Send = Callable[[str, UsageRequest], bool]
CPU_NS = 1_000_000_000


@dataclasses.dataclass(frozen=True, slots=True)
class Used:
    """`cpus`: on average since the word before; None after the first. `at`: when it was heard."""

    cpus: float | None
    memory: int
    at: dt.datetime


@dataclasses.dataclass(frozen=True, slots=True)
class _Sample:
    at_ns: int
    cpu_ns: int


class UsageBook:
    """Lives in the leader's memory; knows only tasks that were asked for last time."""

    def __init__(self, send: Send, now: Callable[[], dt.datetime]) -> None:
        """`send` hands a message to a node's agent; False if it is not connected."""
        self._send = send
        self._now = now
        self._nodes: dict[str, str] = {}  # task id -> node id, of those that are asked for
        self._samples: dict[str, _Sample] = {}
        self._used: dict[str, Used] = {}

    def ask(self, tasks: Mapping[str, str]) -> None:
        """Ask for these tasks, given with their nodes' ids, and forget all others."""
        self._nodes = dict(tasks)
        for memory in (self._samples, self._used):
            for id in [id for id in memory if id not in self._nodes]:
                del memory[id]
        by_node: dict[str, list[str]] = {}
        for id, node_id in tasks.items():
            by_node.setdefault(node_id, []).append(id)
        for node_id, ids in by_node.items():
            self._send(node_id, UsageRequest(task_ids=tuple(ids[:TASKS_MAX])))

    def of(self, task_id: str) -> Used | None:
        return self._used.get(task_id)

    def take(self, node_id: str, report: UsageReport) -> None:
        """What a node says of its own tasks; of others it is not believed."""
        for usage in self._own(node_id, report.tasks):
            before = self._samples.get(usage.task_id)
            self._samples[usage.task_id] = _Sample(report.at_ns, usage.cpu_ns)
            cpus = None if before is None else _rate(before, report.at_ns, usage.cpu_ns)
            self._used[usage.task_id] = Used(cpus, max(usage.memory, 0), self._now())

    def _own(self, node_id: str, tasks: Iterable[TaskUsage]) -> Iterable[TaskUsage]:
        return [each for each in tasks if self._nodes.get(each.task_id) == node_id]


def _rate(before: _Sample, at_ns: int, cpu_ns: int) -> float | None:
    """CPUs used between two samples; None where the clock or the counter began anew."""
    time, used = at_ns - before.at_ns, cpu_ns - before.cpu_ns
    return used / time if time > 0 and used >= 0 else None
