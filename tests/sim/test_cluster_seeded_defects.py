"""Each defect here is one that the simulation of a whole cluster finds."""

import dataclasses
import datetime as dt
from collections.abc import Callable
from pathlib import Path

import pytest
from msgspec.structs import replace

from common.model.node import Node
from common.model.service import ReplicatedJob, ServiceMode
from common.model.task import Task, TaskState
from manager.allocator import allocator, books
from manager.allocator.rotation import Rotation
from manager.orchestrator import jobs, loop, update
from manager.orchestrator.focus import Focus
from manager.orchestrator.reaper import Reaper
from manager.orchestrator.scene import Draft, Scene
from manager.scheduler import demand
from manager.scheduler.scheduler import Scheduler
from manager.store.store import Tx
from tests.support.cluster_chaos import run

Patch = pytest.MonkeyPatch
SEEDS = 12  # most are found by the first or second


def updates_take_all_at_once(patch: Patch) -> None:
    patch.setattr(update, "_is_busy", lambda *_: False)


def jobs_run_all_at_once(patch: Patch) -> None:
    right = jobs.plan

    def wrong(scene: Scene, draft: Draft) -> None:
        job = scene.service.spec.mode.replicated_job or ReplicatedJob()
        all_at_once = replace(job, max_concurrent=job.total_completions)
        spec = replace(scene.service.spec, mode=ServiceMode(replicated_job=all_at_once))
        right(dataclasses.replace(scene, service=replace(scene.service, spec=spec)), draft)

    patch.setattr(jobs, "plan", wrong)


def addresses_are_free_when_a_task_is_told_to_stop(patch: Patch) -> None:
    def wrong(task: Task) -> bool:
        return max(task.status.state, task.desired_state) <= TaskState.RUNNING

    take = Rotation.take

    def lowest(self: Rotation) -> int | None:
        self._next = self._first
        return take(self)

    patch.setattr(allocator, "holds_addresses", wrong)
    patch.setattr(books, "holds_addresses", wrong)
    patch.setattr(Rotation, "take", lowest)


def host_ports_are_not_counted(patch: Patch) -> None:
    patch.setattr(demand, "_host_ports", lambda ports: ())


def old_tasks_are_never_deleted(patch: Patch) -> None:
    patch.setattr(Reaper, "_observe_task", lambda *_: None)


def changes_in_large_services_are_missed(patch: Patch) -> None:
    patch.setattr(loop, "LARGE", 0)
    patch.setattr(Focus, "note", lambda *_: None)


def a_loop_writes_without_end(patch: Patch) -> None:
    right, due = Scheduler.reconcile, dict[int, dt.datetime]()

    def wrong(self: Scheduler, tx: Tx, now: dt.datetime) -> None:
        right(self, tx, now)
        due[id(self)] = now + dt.timedelta(seconds=1)
        node = tx.find(Node)[0]
        tx.put(replace(node, spec=replace(node.spec, labels={"seen": now.isoformat()})))

    patch.setattr(Scheduler, "reconcile", wrong)
    patch.setattr(Scheduler, "wake_at", property(lambda self: due.get(id(self))))


@pytest.mark.parametrize(
    ("defect", "words"),
    [
        (updates_take_all_at_once, "updated at once"),
        (jobs_run_all_at_once, "at once"),
        (addresses_are_free_when_a_task_is_told_to_stop, "belongs to"),
        (host_ports_are_not_counted, "belongs to"),
        (old_tasks_are_never_deleted, "still being removed"),
        (changes_in_large_services_are_missed, "wanted"),
        (a_loop_writes_without_end, "still writing"),
    ],
)
async def test_is_found(
    tmp_path: Path, monkeypatch: Patch, defect: Callable[[Patch], None], words: str
) -> None:
    defect(monkeypatch)
    for seed in range(SEEDS):
        (folder := tmp_path / str(seed)).mkdir()
        if any(words in what for what in await run(folder, seed, steps=40)):
            return
    pytest.fail(f"not found in {SEEDS} runs")
