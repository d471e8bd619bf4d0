"""Processes in the containers of a service's tasks, on whichever node they are.

Created and asked about as Docker's /exec is, on the leader, which talks to the task's agent. Not
Docker's. Bytes come to a client of another manager through a WebSocket between the two, that has

    from the client     0 and bytes: for stdin; 1: there is no more
    to the client       1 (stdout) or 2 (stderr), and bytes
"""

import asyncio

from aiohttp import web

from common import rpc
from common.errors import Invalid, NotImplementedHere, NotLeader
from common.protocol.execs import ExecRequest
from common.streams import Stream, StreamClosed
from manager.dispatcher.execs import RemoteExec
from manager.manager import Manager
from node.api import body
from node.api.containers import size
from node.api.daemon import Daemon
from node.api.exec import ExecStart
from node.api.hijack import Duplex, attach_stream
from node.api.leader import WRITE_WAIT_S, require_manager
from node.api.routes import Route, json_response
from node.api.services import manager
from worker.engine.exec import ExecConfig

_INPUT, _INPUT_END = b"\x00", b"\x01"


class ServiceExecRoutes:
    def __init__(self, daemon: Daemon) -> None:
        self._daemon = daemon

    def routes(self) -> list[Route]:
        return [
            Route("POST", "/services/{id}/exec", self.create, on_leader=True),
            Route("POST", "/shoal/exec/{id}/start", self.start),
            Route("GET", "/shoal/exec/{id}/stream", self.stream),
            Route("POST", "/shoal/exec/{id}/resize", self.resize, on_leader=True),
            Route("GET", "/shoal/exec/{id}/json", self.inspect, on_leader=True),
        ]

    async def create(self, request: web.Request) -> web.StreamResponse:
        """`slot` or `node` choose the task; without them it is the first that runs."""
        config = await body.read(request, ExecConfig)
        if not config.cmd:
            raise Invalid("Cmd is missing: No exec command specified")
        if config.detach_keys:
            raise NotImplementedHere(
                "DetachKeys cannot be chosen for processes of services: they are ctrl-p,ctrl-q"
            )
        found = manager(self._daemon)
        task = found.api.tasks.running_of(
            request.match_info["id"], body.number(request, "slot"), request.query.get("node", "")
        )
        entry: RemoteExec = found.dispatcher.execs.create(
            task.node_id,
            ExecRequest(
                request_id="",
                task_id=task.id,
                command=config.cmd,
                env=config.env or (),
                user=config.user,
                workdir=config.working_dir,
                tty=config.tty,
                stdin=config.attach_stdin,
                detach=config.detach,
                privileged=config.privileged,
                size=config.console_size,
            ),
        )
        answer = {"Id": entry.request.request_id, "TaskID": task.id, "NodeID": task.node_id}
        return json_response(answer | {"Slot": task.slot}, status=201)

    async def start(self, request: web.Request) -> web.StreamResponse:
        options = await body.read(request, ExecStart)
        id = request.match_info["id"]
        found = require_manager(self._daemon)
        await found.wait_leader(found.patience_s(WRITE_WAIT_S))
        duplex: Duplex
        if found.is_leader:
            entry: RemoteExec = found.dispatcher.execs.find(id)
            entry.start()
            if options.console_size:
                entry.resize(*options.console_size)
            if entry.request.detach:
                await entry.wait()
                return web.Response(status=200)
            duplex = entry
        else:
            rows, columns = options.console_size or (0, 0)
            path = f"/shoal/exec/{id}/stream?h={rows}&w={columns}"
            duplex = _Relayed(await self._daemon.stream_to_leader(path))
        return await attach_stream(request, duplex, tty=options.tty)

    async def stream(self, request: web.Request) -> web.StreamResponse:
        """The WebSocket, on the leader."""
        entry = self._leading().dispatcher.execs.find(request.match_info["id"])
        rows, columns = body.number(request, "h", 0) or 0, body.number(request, "w", 0) or 0
        entry.start()
        if rows > 0 and columns > 0:
            entry.resize(rows, columns)
        stream = await rpc.accept_stream(request)
        try:
            async with asyncio.TaskGroup() as group:
                reader = group.create_task(_take_input(stream, entry), name="exec input")
                while (piece := await entry.read()) is not None:
                    await stream.send(bytes((piece[0],)) + piece[1])
                reader.cancel()
        except* StreamClosed:
            pass  # the client has gone
        finally:
            await entry.close()
            await stream.close()
        return web.Response()

    async def resize(self, request: web.Request) -> web.StreamResponse:
        height, width = size(request)
        self._find(request).resize(height, width)
        return web.Response(status=200)

    async def inspect(self, request: web.Request) -> web.StreamResponse:
        entry = self._find(request)
        return json_response(
            {
                "ID": entry.request.request_id,
                "Running": entry.started and not entry.ended.is_set(),
                "ExitCode": entry.exit_code,
                "Error": entry.error,
                "TaskID": entry.request.task_id,
                "NodeID": entry.node_id,
            }
        )

    def _find(self, request: web.Request) -> RemoteExec:
        entry: RemoteExec = manager(self._daemon).dispatcher.execs.find(request.match_info["id"])
        return entry

    def _leading(self) -> Manager:
        found = manager(self._daemon)
        if not found.is_leader:
            raise NotLeader("this manager does not lead", found.leader_address)
        return found


class _Relayed:
    """The stdio of a process whose bytes the leader sends: a Duplex."""

    def __init__(self, stream: Stream) -> None:
        self._stream = stream
        self._sending = asyncio.Lock()

    async def read(self) -> tuple[int, bytes] | None:
        try:
            data = await self._stream.receive()
        except StreamClosed:
            return None
        return (data[0], data[1:]) if data else None

    async def write(self, data: bytes) -> None:
        await self._send(_INPUT + data)

    async def close_stdin(self) -> None:
        await self._send(_INPUT_END)

    async def close(self) -> None:
        await self._stream.close()

    async def _send(self, data: bytes) -> None:
        try:
            async with self._sending:
                await self._stream.send(data)
        except StreamClosed:
            return  # the end is seen where its output is read


async def _take_input(stream: Stream, entry: RemoteExec) -> None:
    """Raises StreamClosed when the client has gone."""
    while True:
        data = await stream.receive()
        if data[:1] == _INPUT:
            await entry.write(data[1:])
        else:
            await entry.close_stdin()
