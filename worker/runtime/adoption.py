"""What a keeper does first: take over what another one left, running or dead."""

import contextlib
import json
import os
import time
from collections.abc import Callable

from worker.runtime import logfile, plan, record, relay
from worker.runtime import syscalls as sc
from worker.runtime.held import Container, Process
from worker.runtime.steps import Plan
from worker.runtime.supervisor import Supervisor


def read_plan(folder: str) -> Plan:
    """Raises OSError, ValueError."""
    with open(f"{folder}/config.json") as file:
        return plan.plan(json.load(file))


def prepare(container: Container, steps: Plan) -> None:
    """What the plan says about its end."""
    container.cgroup = steps.cgroup
    container.own_pids = bool(steps.namespaces & sc.CLONE_NEWPID)


def adopt_all(
    directory: str, supervisor: Supervisor, new_relay: Callable[[str], relay.Relay]
) -> None:
    """All containers below `directory` that have a record."""
    for entry in os.scandir(directory):
        kept = record.load(entry.path) if entry.is_dir(follow_symlinks=False) else None
        if kept is None:
            continue
        container = Container(entry.name, entry.path, new_relay(entry.name))
        container.record = kept
        with contextlib.suppress(OSError, ValueError):
            prepare(container, read_plan(entry.path))
            supervisor.parents.add(os.path.dirname(container.cgroup))
        supervisor.containers[entry.name] = container
        if not (record.lives(kept) and _adopt_living(supervisor, container, kept)):
            _adopt_dead(supervisor, container, kept)


def _adopt_living(supervisor: Supervisor, container: Container, kept: record.Record) -> bool:
    try:
        pidfd = sc.pidfd_open(kept.pid)
        if record.start_time(kept.pid) != kept.start_time:
            os.close(pidfd)
            return False
        steps = read_plan(container.folder)
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
        supervisor.leave_cgroup(container)
