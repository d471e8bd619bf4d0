"""The plans as pure functions: tables for scale down, properties for the whole plan."""

import datetime as dt
import itertools
import random
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from msgspec.structs import replace

from common.ids import Ids
from common.model.base import Version
from common.model.node import Availability, NodeState
from common.model.service import Service, UpdateConfig, UpdateStatus
from common.model.task import SECOND, RestartPolicy, Task, TaskState
from manager.orchestrator.loop import plan
from manager.orchestrator.reaper import expired
from manager.orchestrator.replicated import ReplicatedOrchestrator, surplus
from manager.orchestrator.scene import Draft, Scene, Slot
from manager.store.store import View
from manager.store.tables import Tables
from tests.support import build

NOW = dt.datetime(2024, 1, 1, tzinfo=dt.UTC)
EMPTY = View(Tables(), 0)
NODES = {
    node.id: node
    for node in (
        build.node("n1"),
        build.node("n2"),
        build.node("n3"),
        build.node("drained", availability=Availability.DRAIN),
        build.node("down", state=NodeState.DOWN),
    )
}
OLD = build.task_spec("old")
NEW = build.task_spec("new")


def planned(
    service: Service, tasks: list[Task], now: dt.datetime = NOW
) -> tuple[Service, list[Task], Draft]:
    """The service and all of its tasks after one pass."""
    count = itertools.count()
    scene = Scene(service=service, node=NODES.get, now=now, new_id=lambda: f"new-{next(count):03}")
    draft = Draft(tasks)
    mode = ReplicatedOrchestrator(Ids(random.Random(0)))
    after = plan(mode, scene, draft, EMPTY, lambda service: service)
    return after, draft.tasks(), draft


def running_slot(number: int, node: str, **more: Any) -> Slot:
    task = build.task(build.service(), slot=number, node=node, state=TaskState.RUNNING, **more)
    return Slot(number, (task,))


@pytest.mark.parametrize(
    ("slots", "replicas", "removed"),
    [
        pytest.param([(1, "a"), (2, "a"), (3, "b")], 2, {2}, id="from the fullest node"),
        pytest.param([(1, "a"), (2, "b"), (3, "c")], 2, {3}, id="the highest where all are equal"),
        pytest.param([(1, "a"), (2, "a"), (3, "a"), (4, "b")], 2, {3, 2}, id="until it is even"),
        pytest.param([(1, "a"), (2, ""), (3, "c")], 2, {2}, id="unassigned first"),
        pytest.param([(1, ""), (2, ""), (3, "c")], 2, {2}, id="the highest unassigned"),
        pytest.param([(1, "a")], 0, {1}, id="down to none"),
        pytest.param([(1, "a")], 3, set(), id="nothing to remove"),
    ],
)
def test_scale_down_order(slots: list[tuple[int, str]], replicas: int, removed: set[int]) -> None:
    """REP 63."""
    made = [
        running_slot(number, node)
        if node
        else Slot(number, (build.task(build.service(), slot=number),))
        for number, node in slots
    ]
    assert {slot.key for slot in surplus(made, replicas)} == removed


@pytest.mark.parametrize(
    ("states", "limit", "attempts", "left"),
    [
        pytest.param("ddddR", 5, 0, 5, id="at the limit"),
        pytest.param("ddddddR", 5, 0, 5, id="over the limit the oldest go"),
        pytest.param("ddddddR", -1, 0, 7, id="negative keeps all"),
        pytest.param("ddddddR", 2, 5, 6, id="what attempts are counted from is kept"),
        pytest.param("dddR", 0, 0, 1, id="no history"),
        pytest.param("dddP", 0, 0, 2, id="while the new one starts the last one stays"),
        pytest.param("ddd", 0, 0, 1, id="a dead slot keeps its last task"),
    ],
)
def test_history(states: str, limit: int, attempts: int, left: int) -> None:
    """REA 117, REP 75."""
    service = build.service()
    kinds = {
        "d": (TaskState.FAILED, TaskState.SHUTDOWN),
        "R": (TaskState.RUNNING, TaskState.RUNNING),
        "P": (TaskState.PENDING, TaskState.RUNNING),
    }
    tasks = tuple(
        build.task(service, id=f"t{i}", state=kinds[kind][0], desired=kinds[kind][1])
        for i, kind in enumerate(states)
    )
    gone = expired(Slot(1, tasks), limit, attempts)
    assert gone == list(tasks[: len(tasks) - left])


# Properties

configs = st.builds(
    UpdateConfig,
    parallelism=st.sampled_from([None, 0, 1, 2]),
    delay=st.sampled_from([0, SECOND]),
    monitor=st.sampled_from([0, 5 * SECOND]),
    failure_action=st.sampled_from(["pause", "continue", "rollback"]),
    max_failure_ratio=st.sampled_from([0.0, 0.5, 1.0]),
    order=st.sampled_from(["stop-first", "start-first"]),
)
policies = st.builds(
    RestartPolicy,
    condition=st.sampled_from(["any", "none", "on-failure"]),
    delay=st.sampled_from([0, 5 * SECOND]),
    max_attempts=st.sampled_from([0, 1, 2]),
)


@st.composite
def services(draw: st.DrawFn) -> Service:
    service = build.service(
        replicas=draw(st.integers(0, 5)), update=draw(configs), task=NEW, spec_version=2
    )
    policy = draw(policies)
    spec = replace(service.spec, task_template=replace(NEW, restart_policy=policy))
    old = replace(spec, task_template=replace(OLD, restart_policy=policy))
    state = draw(st.sampled_from(["", "updating", "paused", "completed", "rollback_started"]))
    status = UpdateStatus(state=state, started_at=NOW - dt.timedelta(seconds=30))
    return replace(service, spec=spec, previous_spec=old, update_status=status if state else None)


@st.composite
def tasks_of(draw: st.DrawFn, service: Service, nodes: list[str]) -> list[Task]:
    previous = service.previous_spec
    assert previous is not None
    tasks = []
    for number in range(draw(st.integers(0, 10))):
        new = draw(st.booleans())
        state = draw(st.sampled_from(list(TaskState)))
        state = TaskState.ORPHANED if state is TaskState.REMOVE else state
        desired = [TaskState.READY, TaskState.RUNNING, TaskState.SHUTDOWN, TaskState.REMOVE]
        age = dt.timedelta(seconds=draw(st.integers(0, 60)))
        tasks.append(
            build.task(
                service,
                id=f"t{number:02}",
                slot=draw(st.integers(1, 6)),
                node="" if state < TaskState.ASSIGNED else draw(st.sampled_from(nodes)),
                state=state,
                desired=draw(st.sampled_from(desired)),
                spec=(service.spec if new else previous).task_template,
                spec_version=Version(index=2 if new else 1),
                created_at=NOW - age,
                updated_at=NOW - age / 2,
                start_after=draw(st.sampled_from([None, NOW, NOW + dt.timedelta(seconds=3)])),
            )
        )
    return tasks


cases = services().flatmap(
    lambda service: st.tuples(
        st.just(service), tasks_of(service, ["n1", "n2", "n3", "drained", "down", "gone"])
    )
)
QUICK = settings(max_examples=300, deadline=None)


@QUICK
@given(cases)
def test_plans_settle(case: tuple[Service, list[Task]]) -> None:
    """Planning again at the same moment changes nothing any more."""
    service, tasks = case
    for _ in range(4):
        service, tasks, draft = planned(service, tasks)
    before = service
    service, tasks, draft = planned(service, tasks)
    assert not draft.changed
    assert service == before
    assert draft.wake_at is None or draft.wake_at > NOW


@QUICK
@given(cases, st.randoms(use_true_random=False))
def test_the_order_of_tasks_does_not_matter(
    case: tuple[Service, list[Task]], rng: random.Random
) -> None:
    service, tasks = case
    shuffled = rng.sample(tasks, len(tasks))
    first, second = planned(service, tasks), planned(service, shuffled)
    assert first[0] == second[0]
    assert first[2].changed == second[2].changed


@QUICK
@given(cases)
def test_desired_states_only_move_forward(case: tuple[Service, list[Task]]) -> None:
    service, tasks = case
    before = {task.id: task for task in tasks}
    for task in planned(service, tasks)[1]:
        old = before.get(task.id)
        if old is not None:
            assert task.desired_state >= old.desired_state
            assert replace(task, desired_state=old.desired_state) == old


@QUICK
@given(cases)
def test_never_more_slots_than_replicas(case: tuple[Service, list[Task]]) -> None:
    service, tasks = case
    service, tasks, draft = planned(service, tasks)
    replicas = service.spec.mode.replicated
    assert replicas is not None
    assert replicas.replicas is not None
    filled = [slot for slot in draft.slots().values() if slot.active]
    assert len(filled) <= replicas.replicas
    assert all(len(slot.active) <= 6 for slot in filled)


def _up(slots: dict[Any, Slot]) -> set[Any]:
    return {
        key
        for key, slot in slots.items()
        if any(task.status.state is TaskState.RUNNING for task in slot.active)
    }


@QUICK
@given(
    services(),
    st.lists(
        st.tuples(st.booleans(), st.sampled_from([TaskState.RUNNING, TaskState.STARTING])),
        min_size=5,
        max_size=5,
    ),
)
def test_an_update_takes_down_no_more_than_its_parallelism(
    service: Service, kinds: list[tuple[bool, TaskState]]
) -> None:
    """UPD 76: counted with what is down already; for all times, statuses and configurations."""
    previous = service.previous_spec
    assert previous is not None
    spec = build.service(replicas=5).spec
    service = replace(service, spec=replace(service.spec, mode=spec.mode))
    tasks = [
        build.task(
            service,
            id=f"t{slot}",
            slot=slot,
            node="n1",
            state=state,
            spec=(service.spec if new else previous).task_template,
            spec_version=Version(index=2 if new else 1),
            created_at=NOW - dt.timedelta(seconds=5),
            updated_at=NOW - dt.timedelta(seconds=5),
        )
        for slot, (new, state) in enumerate(kinds, start=1)
    ]
    before = _up(Draft(tasks).slots())
    after = _up(planned(service, tasks)[2].slots())
    assert service.spec.update_config is not None
    parallelism = service.spec.update_config.parallelism
    if service.update_status is not None and "rollback" in service.update_status.state:
        parallelism = 1  # the rollback's own configuration: the default
    limit = 1 if parallelism is None else parallelism
    if limit:
        assert len(before - after) <= limit
        busy = sum(new and state is TaskState.STARTING for new, state in kinds)
        assert len(before - after) <= max(limit - busy, 0)


def test_start_first_keeps_what_runs() -> None:
    service = build.service(
        replicas=1, task=NEW, update=UpdateConfig(order="start-first"), spec_version=2
    )
    old = build.task(
        service, node="n1", state=TaskState.RUNNING, spec=OLD, spec_version=Version(index=1)
    )
    _, tasks, _ = planned(service, [old])
    assert [task.desired_state for task in tasks] == [TaskState.RUNNING, TaskState.RUNNING]
