"""What a keeper does first: take over what another one left, running or dead."""

import contextlib
import json
import os
import signal
import time
from collections.abc import Callable
from typing import TYPE_CHECKING

from worker.runtime import logfile, plan, record, relay
from worker.runtime import syscalls as sc
from worker.runtime.held import Container, Process
from worker.runtime.steps import Plan
from worker.runtime.supervisor import Supervisor

if TYPE_CHECKING:
    from worker.runtime.foreign import Foreign


def read_plan(folder: str) -> Plan:
    """Raises OSError, ValueError."""
    with open(f"{folder}/config.json") as file:
        return plan.plan(json.load(file))


def prepare(container: Container, steps: Plan) -> None:
    """What the plan says about its end."""
    container.cgroup = steps.cgroup
    container.own_pids = bool(steps.namespaces & sc.CLONE_NEWPID)


def adopt_all(
    directory: str,
    supervisor: Supervisor,
    new_relay: Callable[[str], relay.Relay],
    others: "Callable[[], Foreign]",
) -> None:
    """All containers below `directory` that have a record. `others` follows those that another
    runtime started."""
    for entry in os.scandir(directory):
        if not entry.is_dir(follow_symlinks=False):
            continue
        container = Container(entry.name, entry.path, new_relay(entry.name))
        steps = None
        with contextlib.suppress(OSError, ValueError):
            steps = read_plan(entry.path)
            prepare(container, steps)
            supervisor.parents.add(os.path.dirname(container.cgroup))
        kept = container.record = record.load(entry.path)
        if kept is None:
            _discard_begun(supervisor, container, steps, others)
            continue
        supervisor.containers[entry.name] = container
        if steps is not None and steps.runtime and not kept.finished_ns:
            kept = _adopt_foreign(supervisor, container, kept, steps, others())
        living = steps is not None and record.lives(kept)
        if not (living and _adopt_living(supervisor, container, kept, steps)):
            _adopt_dead(supervisor, container, kept)


def _discard_begun(
    supervisor: Supervisor,
    container: Container,
    steps: Plan | None,
    others: "Callable[[], Foreign]",
) -> None:
    """Its keeper died before it wrote whom it had started."""
    if steps is None or not container.cgroup:
        return
    if steps.runtime:
        others().discard(container.id, steps)
    supervisor.kill_all(container)
    supervisor.leave_cgroup(container)


def _adopt_foreign(
    supervisor: Supervisor,
    container: Container,
    kept: record.Record,
    steps: Plan,
    others: "Foreign",
) -> record.Record:
    """Its record may still name the runtime that was to start it."""
    from worker.runtime.foreign import find_left

    if not supervisor.contains(container, kept.pid):
        with contextlib.suppress(ProcessLookupError, OSError):
            if record.lives(kept):
                os.kill(kept.pid, signal.SIGKILL)
        kept = find_left(container, supervisor.pids(container)) or kept
        container.record = kept
    if supervisor.contains(container, kept.pid):
        record.save(container.folder, kept)
        others.adopt(container, steps)
    else:
        others.discard(container.id, steps)
    return kept


def _adopt_living(
    supervisor: Supervisor, container: Container, kept: record.Record, steps: Plan | None
) -> bool:
    if steps is None:
        return False
    try:
        pidfd = sc.pidfd_open(kept.pid)
        if record.start_time(kept.pid) != kept.start_time:
            os.close(pidfd)
            return False
    except (OSError, ValueError):
        return False
    process = Process(kept.pid, pidfd)
    process.mine = False
    container.process = process
    path = f"{container.folder}/{logfile.NAME}"
    logfile.repair(path)
    log = None if steps.log is None else logfile.Writer(path, *steps.log)
    container.relay.log_to(log)
    if not steps.process.tty:
        container.relay.connect(relay.open_fifos(container.folder))
    with contextlib.suppress(OSError):
        supervisor.watch_oom(container, steps)
    supervisor.follow(container, process)
    return True


def _adopt_dead(supervisor: Supervisor, container: Container, kept: record.Record) -> None:
    """It ended while no keeper looked. What its pipes still hold is gone with their readers."""
    logfile.repair(f"{container.folder}/{logfile.NAME}")
    if not kept.finished_ns:
        oom = supervisor.oom_kills(container) > 0
        container.record = kept._replace(finished_ns=time.time_ns(), oom_killed=oom)
        record.save(container.folder, container.record)
    if container.cgroup:
        supervisor.kill_all(container)  # what a runtime had begun, what shared others' pids
        supervisor.leave_cgroup(container)
