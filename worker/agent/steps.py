"""What to do next for a task. Pure: from what was observed and what is wanted to one step.

ACCEPTED → PREPARING → READY → STARTING → RUNNING → COMPLETE | FAILED | SHUTDOWN
└─────── REJECTED ◄───────┘
"""

import enum

import msgspec

from common.model.task import PortStatus, TaskState, TaskStatus
from worker.engine.oom import OUT_OF_MEMORY


class Seen(msgspec.Struct, frozen=True, kw_only=True):
    """A task's container as it is now."""

    id: str
    state: str  # as the engine's: created, running, paused, restarting, exited, dead …
    pid: int = 0
    exit_code: int = 0
    oom_killed: bool = False
    error: str = ""
    health: str = ""  # "" (no health check), starting, healthy, unhealthy
    node_address: str = ""
    ports: PortStatus = PortStatus()

    @property
    def live(self) -> bool:
        return self.state in ("running", "paused", "restarting")


class Step(enum.Enum):
    """One thing to do; each leads to a new observation."""

    ACCEPT = "say that the task is accepted"
    PREPARE = "get the image, make the container"
    SAY_READY = "say that the container is made"
    START = "start the container"
    SAY_RUNNING = "say that it runs"
    WATCH = "wait until the container or the wish changes"
    STOP = "stop the container, as wanted"
    STOP_SICK = "stop the container, as it is unhealthy"
    SAY_SHUTDOWN = "say that it is stopped, as wanted"
    SAY_EXITED = "say how it ended"
    SAY_GONE = "say that the container has vanished"
    CLEAR = "remove the container and its log"
    REST = "wait until the wish changes"


def next_step(
    state: TaskState,
    desired: TaskState,
    seen: Seen | None,
    *,
    revive: bool = False,
    moved: bool = False,
) -> Step:
    """`state` is what was last said. `revive`: the machine has rebooted since then, so that the
    container ended without a fault of its own and should run again. `moved`: it runs, but with
    another process or address, or since another boot, than was last said."""
    if state > TaskState.RUNNING:
        return Step.CLEAR if desired is TaskState.REMOVE and seen is not None else Step.REST
    if desired >= TaskState.SHUTDOWN:
        return Step.STOP if seen is not None and seen.live else Step.SAY_SHUTDOWN
    if state < TaskState.ACCEPTED:
        return Step.ACCEPT
    if state < TaskState.READY:
        return Step.PREPARE if seen is None else Step.SAY_READY
    if seen is None:
        return Step.SAY_GONE
    if state is TaskState.READY:
        return Step.START if desired >= TaskState.RUNNING else Step.REST
    return _after_start(state, seen, revive, moved)


def _after_start(state: TaskState, seen: Seen, revive: bool, moved: bool) -> Step:
    if not seen.live:
        return Step.START if seen.state == "created" or revive else Step.SAY_EXITED
    if seen.health == "unhealthy":
        return Step.STOP_SICK
    if state is TaskState.RUNNING and moved:
        return Step.SAY_RUNNING  # at once: requests go to where it was
    if state is TaskState.STARTING and seen.health in ("", "healthy"):
        return Step.SAY_RUNNING
    return Step.WATCH


def moved(said: TaskStatus, seen: Seen | None, boot_id: str = "") -> bool:
    """Whether the container runs otherwise than `said`: it was started again after a reboot."""
    if seen is None or seen.state != "running":
        return False
    if said.boot_id != boot_id:
        return seen.health in ("", "healthy")  # nobody asks it until then, so there is time
    known = said.container_status
    return known is None or (known.pid, said.node_address) != (seen.pid, seen.node_address)


def ending(seen: Seen) -> tuple[TaskState, str]:
    """The state in which an ended container leaves its task, and why."""
    if seen.exit_code == 0 and not seen.oom_killed and not seen.error:
        return TaskState.COMPLETE, ""
    reasons = [f"non-zero exit ({seen.exit_code})" if seen.exit_code else "container failed"]
    if seen.oom_killed and OUT_OF_MEMORY not in seen.error:
        reasons.append(OUT_OF_MEMORY)
    if seen.error:
        reasons.append(seen.error)
    return TaskState.FAILED, "task: " + ": ".join(reasons)
