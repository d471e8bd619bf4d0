"""What the agent does next for a task."""

import pytest
from msgspec.structs import replace

from common.model.task import ContainerStatus, TaskState, TaskStatus
from worker.agent.steps import Seen, Step, ending, moved, next_step

KILLED = "out of memory: process web (pid 7) was killed"
S = TaskState


def seen(state: str, **more: object) -> Seen:
    return Seen(id="c", state=state, **more)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("state", "desired", "container", "expect"),
    [
        pytest.param(S.ASSIGNED, S.RUNNING, None, Step.ACCEPT, id="new"),
        pytest.param(S.ACCEPTED, S.RUNNING, None, Step.PREPARE, id="accepted"),
        pytest.param(S.PREPARING, S.RUNNING, None, Step.PREPARE, id="crashed while preparing"),
        pytest.param(S.PREPARING, S.RUNNING, seen("created"), Step.SAY_READY, id="made"),
        pytest.param(S.ACCEPTED, S.RUNNING, seen("created"), Step.SAY_READY, id="made before"),
        pytest.param(S.READY, S.READY, seen("created"), Step.REST, id="its start is delayed"),
        pytest.param(S.READY, S.RUNNING, seen("created"), Step.START, id="its start is due"),
        pytest.param(S.READY, S.COMPLETE, seen("created"), Step.START, id="a job starts too"),
        pytest.param(S.STARTING, S.RUNNING, seen("created"), Step.START, id="crashed at start"),
        pytest.param(S.STARTING, S.RUNNING, seen("running"), Step.SAY_RUNNING, id="started"),
        pytest.param(
            S.STARTING, S.RUNNING, seen("running", health="starting"), Step.WATCH, id="not healthy"
        ),
        pytest.param(
            S.STARTING,
            S.RUNNING,
            seen("running", health="healthy"),
            Step.SAY_RUNNING,
            id="healthy",
        ),
        pytest.param(
            S.RUNNING, S.RUNNING, seen("running", health="unhealthy"), Step.STOP_SICK, id="sick"
        ),
        pytest.param(S.RUNNING, S.RUNNING, seen("paused"), Step.WATCH, id="paused is live"),
        pytest.param(S.RUNNING, S.RUNNING, seen("running"), Step.WATCH, id="runs"),
        pytest.param(S.RUNNING, S.COMPLETE, seen("running"), Step.WATCH, id="a job runs"),
        pytest.param(S.RUNNING, S.RUNNING, seen("exited"), Step.SAY_EXITED, id="ended"),
        pytest.param(S.RUNNING, S.RUNNING, None, Step.SAY_GONE, id="removed by somebody"),
        pytest.param(S.RUNNING, S.SHUTDOWN, seen("running"), Step.STOP, id="to be stopped"),
        pytest.param(S.RUNNING, S.SHUTDOWN, seen("exited"), Step.SAY_SHUTDOWN, id="stopped"),
        pytest.param(S.ASSIGNED, S.SHUTDOWN, None, Step.SAY_SHUTDOWN, id="never begun"),
        pytest.param(S.SHUTDOWN, S.SHUTDOWN, seen("exited"), Step.REST, id="its log remains"),
        pytest.param(S.SHUTDOWN, S.REMOVE, seen("exited"), Step.CLEAR, id="nothing remains"),
        pytest.param(S.FAILED, S.REMOVE, None, Step.REST, id="over (AGT 235)"),
        pytest.param(S.COMPLETE, S.RUNNING, seen("exited"), Step.REST, id="never restarted"),
    ],
)
def test_next_step(
    state: TaskState, desired: TaskState, container: Seen | None, expect: Step
) -> None:
    assert next_step(state, desired, container) is expect


def test_what_runs_elsewhere_than_was_said_is_said_again() -> None:
    said = TaskStatus(
        state=S.RUNNING,
        container_status=ContainerStatus(container_id="c", pid=7),
        node_address="10.0.0.2",
    )
    same = seen("running", pid=7, node_address="10.0.0.2")
    assert not moved(said, same)
    assert not moved(said, None)
    assert not moved(said, seen("exited"))
    for other in (replace(same, pid=8), replace(same, node_address="10.0.0.3")):
        assert moved(said, other)
        assert next_step(S.RUNNING, S.RUNNING, other, moved=True) is Step.SAY_RUNNING
        assert next_step(S.RUNNING, S.SHUTDOWN, other, moved=True) is Step.STOP
    sick = replace(same, pid=8, health="starting")
    assert next_step(S.STARTING, S.RUNNING, sick, moved=True) is Step.WATCH


def test_after_a_reboot_what_should_run_starts_again() -> None:
    ended = seen("exited", exit_code=137)
    assert next_step(S.RUNNING, S.RUNNING, ended, revive=True) is Step.START
    assert next_step(S.RUNNING, S.SHUTDOWN, ended, revive=True) is Step.SAY_SHUTDOWN
    assert next_step(S.FAILED, S.RUNNING, ended, revive=True) is Step.REST


@pytest.mark.parametrize(
    ("container", "state", "words"),
    [
        pytest.param(seen("exited"), S.COMPLETE, "", id="0"),
        pytest.param(seen("exited", exit_code=2), S.FAILED, "non-zero exit (2)", id="2"),
        pytest.param(
            seen("exited", exit_code=137, oom_killed=True),
            S.FAILED,
            "task: non-zero exit (137): out of memory",
            id="oom",
        ),
        pytest.param(
            seen("exited", exit_code=137, oom_killed=True, error=KILLED),
            S.FAILED,
            f"task: non-zero exit (137): {KILLED}",
            id="oom of whom",
        ),
        pytest.param(seen("exited", error="no such file"), S.FAILED, "no such file", id="error"),
    ],
)
def test_how_a_task_ended(container: Seen, state: TaskState, words: str) -> None:
    """AGT 233."""
    found, reason = ending(container)
    assert found is state
    assert reason.endswith(words)
