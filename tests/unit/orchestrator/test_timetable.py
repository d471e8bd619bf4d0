"""Scheduled jobs: when they run, what overlaps, what is kept."""

import asyncio
import datetime as dt
import random
from collections import Counter
from collections.abc import AsyncIterator
from typing import Any

import pytest
from msgspec.structs import replace

from common.errors import Invalid
from common.ids import Ids
from common.model import labels
from common.model.service import JobStatus, ReplicatedJob, Service, ServiceMode
from common.model.task import RestartPolicy, Task, TaskState
from manager.orchestrator.scene import has_completed
from manager.orchestrator.timetable import Timetable
from tests.support import build
from tests.support.fake_agents import Leader, until
from tests.support.memory_proposer import LoopClock
from tests.unit.orchestrator.conftest import World

MINUTE = 60.0


@pytest.fixture
async def timed(world: World) -> AsyncIterator[World]:
    """With the loop that runs jobs when their time has come; begins with a whole minute."""
    await world.leader.kill()
    world.leader = Leader(world.store, Ids(random.Random(2)), lambda: [Timetable()])
    now = LoopClock().now()
    await asyncio.sleep(MINUTE - now.second - now.microsecond / 1e6 + 0.5)
    world.leader.start()
    yield world
    await world.leader.kill()


async def job(world: World, every: str = "* * * * *", **more: Any) -> Service:
    wants = {labels.SCHEDULE: every}
    for name in ("overlap", "history"):
        if name in more:
            wants[f"{labels.SCHEDULE}.{name}"] = more.pop(name)
    total = more.pop("total", 2)
    spec = build.service("work", labels=wants, **more).spec
    mode = ServiceMode(replicated_job=ReplicatedJob(total_completions=total, max_concurrent=total))
    return await world.services.create(replace(spec, mode=mode))


def status(world: World, service: Service) -> JobStatus:
    found = world.services.get(service.id).job_status
    assert found is not None
    return found


def runs(world: World) -> dict[int, int]:
    """How many tasks of each run completed."""
    done = [task for task in world.tasks() if has_completed(task)]
    return dict(Counter(task.job_iteration.index for task in done if task.job_iteration))


def live(world: World) -> list[Task]:
    return [task for task in world.tasks() if task.status.state <= TaskState.RUNNING]


async def test_runs_when_its_time_comes_and_keeps_the_last_runs(timed: World) -> None:
    service = await job(timed, history="2")
    await asyncio.sleep(30)
    assert timed.tasks() == []  # not before
    first = status(timed, service)
    assert first.last_execution is None
    assert first.next_execution is not None
    assert first.next_execution.second == 0
    await asyncio.sleep(MINUTE)
    assert runs(timed) == {0: 2}
    for _ in range(4):
        await asyncio.sleep(MINUTE)
    assert runs(timed) == {2: 2, 3: 2, 4: 2}
    counts = timed.services.statuses()[service.id]
    assert (counts.running_tasks, counts.completed_tasks) == (0, 2)  # of the last run
    last = status(timed, service)
    assert last.skipped_at is None
    assert last.next_execution is not None
    assert last.next_execution - first.next_execution == dt.timedelta(minutes=5)


async def test_a_run_that_takes_too_long_is_not_joined_by_another(timed: World) -> None:
    timed.agents.works_s = 150
    service = await job(timed)
    await asyncio.sleep(2.5 * MINUTE)
    assert len(live(timed)) == 2
    assert status(timed, service).skipped_at is not None
    await asyncio.sleep(2 * MINUTE)
    assert runs(timed) == {0: 2}
    assert {t.job_iteration.index for t in live(timed) if t.job_iteration} == {1}


async def test_runs_may_overlap(timed: World) -> None:
    """Each run has slots of its own; what fails in the present one is tried again there."""
    timed.agents.works_s = 150
    await job(timed, overlap="allow", restart=RestartPolicy(delay=10**9))
    await asyncio.sleep(2.4 * MINUTE)
    assert Counter(t.job_iteration.index for t in live(timed) if t.job_iteration) == {0: 2, 1: 2}
    victim = next(t for t in live(timed) if t.job_iteration and t.job_iteration.index == 1)
    await timed.put(replace(victim, status=replace(victim.status, state=TaskState.FAILED)))
    await asyncio.sleep(5)
    assert Counter(t.job_iteration.index for t in live(timed) if t.job_iteration) == {0: 2, 1: 2}
    await asyncio.sleep(2 * MINUTE)
    assert runs(timed)[0] == 2


async def test_the_next_run_may_end_the_one_before(timed: World) -> None:
    timed.agents.works_s = 600
    await job(timed, overlap="replace", history="1")
    await asyncio.sleep(3.5 * MINUTE)
    assert Counter(t.job_iteration.index for t in live(timed) if t.job_iteration) == {2: 2}
    assert {t.job_iteration.index for t in timed.tasks() if t.job_iteration} == {1, 2}


async def test_a_leader_makes_up_for_what_was_missed_once(timed: World) -> None:
    service = await job(timed)
    await asyncio.sleep(1.5 * MINUTE)
    await timed.leader.kill()
    await asyncio.sleep(10 * MINUTE)
    timed.leader.start()
    await asyncio.sleep(5)
    assert runs(timed) == {0: 2, 1: 2}
    following = status(timed, service).next_execution
    assert following is not None
    assert following > LoopClock().now()


async def test_a_change_waits_for_the_schedule_and_force_does_not(timed: World) -> None:
    service = await job(timed, every="@yearly")
    await asyncio.sleep(5)
    await timed.update(service, image="web:2")
    await asyncio.sleep(5)
    assert timed.tasks() == []
    await timed.update(service, task={"force_update": 1})
    await until(timed.store, lambda view: len(runs(timed)) == 1, "runs now")
    await asyncio.sleep(5)
    due = status(timed, service).next_execution
    assert due is not None
    assert (due.month, due.day) == (1, 1)
    await timed.update(service, labels={})  # as any job
    await until(timed.store, lambda view: runs(timed) == {1: 2}, "a run, and no history")
    assert status(timed, service).next_execution is None


async def test_what_is_refused(timed: World) -> None:
    for wants, why in (
        ({labels.SCHEDULE: "@daily"}, "is for jobs, and this service is replicated"),
        ({labels.SCHEDULE_OVERLAP: "allow"}, "shoal.schedule is missing"),
        ({labels.SCHEDULE: "soon"}, "schedule 'soon' is not valid"),
        ({labels.SCHEDULE: "@daily", labels.SCHEDULE_OVERLAP: "maybe"}, "use forbid, allow"),
        ({labels.SCHEDULE: "@daily", labels.SCHEDULE_HISTORY: "-1"}, "number from 0 to 100"),
    ):
        with pytest.raises(Invalid, match=why):
            await timed.create(labels=wants)
