"""Logs of one container, and of a service's tasks on all nodes."""

import contextlib
from collections.abc import Iterable

from aiohttp import web

from common.errors import Invalid
from common.protocol.dispatcher import LogLine
from node.api import body
from node.api.daemon import Daemon
from node.api.streaming import MULTIPLEXED, RAW, closable, frame, start, timestamp
from worker.engine import logoptions
from worker.engine.logs import LogLine as EngineLine
from worker.engine.logs import LogQuery


def tail(request: web.Request) -> int:
    """The `tail` parameter: a number of lines, or -1 for all."""
    text = request.query.get("tail", "all")
    if text in ("", "all"):
        return -1
    count = body.number(request, "tail")
    return -1 if count is None or count < 0 else count


def streams(request: web.Request) -> tuple[bool, bool]:
    """Which of stdout and stderr are asked for. Raises Invalid when neither is."""
    wanted = body.flag(request, "stdout"), body.flag(request, "stderr")
    if wanted == (False, False):
        raise Invalid("you must choose at least one stream: stdout=1 or stderr=1")
    return wanted


async def container_logs(request: web.Request, daemon: Daemon) -> web.StreamResponse:
    """GET /containers/{id}/logs."""
    container = daemon.engine.find(request.match_info["id"])
    stdout, stderr = streams(request)
    query = LogQuery(
        follow=body.flag(request, "follow"),
        stdout=stdout,
        stderr=stderr,
        since_ns=body.time_ns(request, "since"),
        until_ns=body.time_ns(request, "until"),
        tail=tail(request),
    )
    batches = daemon.engine.log_batches(container.id, query)
    times, tty = body.flag(request, "timestamps"), container.config.tty
    details = logoptions.details(container.record) if body.flag(request, "details") else None
    response = await start(request, RAW if tty else MULTIPLEXED)
    async with contextlib.aclosing(batches):
        async for batch in batches:
            await response.write(encoded(batch, times, tty, details))
    await response.write_eof()
    return response


def encoded(
    batch: Iterable[EngineLine], times: bool, tty: bool, details: str | None = None
) -> bytes:
    """What the client gets of these lines; one write for all, since each costs a system call.
    `details` go before each line, with a space after them also if there are none."""
    pieces = []
    attributes = b"" if details is None else f"{details} ".encode()
    for line in batch:
        data = attributes + line.data
        if times:
            data = f"{timestamp(line.time_ns)} ".encode() + data
        pieces.append(data if tty else frame(line.stream, data))
    return b"".join(pieces)


async def cluster_logs(
    request: web.Request,
    daemon: Daemon,
    *,
    tty: bool,
    service_id: str = "",
    task_id: str = "",
) -> web.StreamResponse:
    """GET /services/{id}/logs and /tasks/{id}/logs, on the leader."""
    manager = daemon.manager
    assert manager is not None, "cluster requests are served by managers"
    stdout, stderr = streams(request)
    lines = manager.dispatcher.logs(
        service_id=service_id,
        task_id=task_id,
        follow=body.flag(request, "follow"),
        stdout=stdout,
        stderr=stderr,
        since_ns=body.time_ns(request, "since"),
        until_ns=body.time_ns(request, "until"),
        tail=tail(request),
    )
    times, details = body.flag(request, "timestamps"), body.flag(request, "details")
    response = await start(request, RAW if tty else MULTIPLEXED)
    async with contextlib.aclosing(closable(lines)) as source:
        async for line in source:
            data = _prefix(daemon, line, times, details) + line.data
            await response.write(data if tty else frame(line.stream, data))
    await response.write_eof()
    return response


def _prefix(daemon: Daemon, line: LogLine, times: bool, details: bool) -> bytes:
    """What the docker CLI splits off a line: its time, and where it comes from."""
    parts = [timestamp(line.time_ns)] if times else []
    if details:
        parts.append(_origin(daemon, line.task_id))
    return "".join(f"{part} " for part in parts).encode()


def _origin(daemon: Daemon, task_id: str) -> str:
    manager = daemon.manager
    task = manager.api.tasks.peek(task_id) if manager is not None else None
    node_id, service_id = (task.node_id, task.service_id) if task is not None else ("", "")
    return (
        f"com.docker.swarm.node.id={node_id},com.docker.swarm.service.id={service_id},"
        f"com.docker.swarm.task.id={task_id}"
    )
