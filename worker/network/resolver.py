"""The resolver at 127.0.0.11 in each sandbox, UDP and TCP, on sockets made in the sandbox."""

import asyncio
import logging
import random
import socket
from collections.abc import Coroutine, Sequence
from contextlib import suppress
from typing import Any

from worker.network import dnswire, names
from worker.network.dnswire import Malformed, Query
from worker.network.names import Directory, Scope
from worker.network.upstream import Upstream

_TTL_S = 2  # clients may keep an answer that long; a VIP outlives its backends anyway
_READS_A_WAKE_UP = 32
_BIGGEST_UDP = 4096
_TCP_IDLE_S = 10.0
_MOST_PENDING = 128  # forwarded questions and connections of one sandbox

log = logging.getLogger(__name__)


class Resolver:
    """Serves one sandbox. Owns its two sockets' readers and the tasks they start."""

    def __init__(
        self,
        table: Directory,
        scopes: Sequence[Scope],
        upstream: Upstream,
        servers: Sequence[str],
        rng: random.Random,
    ) -> None:
        self._table = table
        self._scopes = tuple(scopes)
        self._upstream = upstream
        self._servers = tuple(servers)
        self._rng = rng
        self._pending: set[asyncio.Task[None]] = set()
        self._sockets: tuple[socket.socket, socket.socket] | None = None

    def start(self, udp: socket.socket, tcp: socket.socket) -> None:
        loop = asyncio.get_running_loop()
        self._sockets = udp, tcp
        loop.add_reader(udp, self._read_udp, udp)
        loop.add_reader(tcp, self._accept, tcp)

    async def stop(self) -> None:
        """The sockets may be closed afterwards."""
        if self._sockets is not None:
            loop = asyncio.get_running_loop()
            for sock in self._sockets:
                loop.remove_reader(sock)
            self._sockets = None
        for task in self._pending:
            task.cancel()
        await asyncio.gather(*self._pending, return_exceptions=True)

    def _read_udp(self, sock: socket.socket) -> None:
        for _ in range(_READS_A_WAKE_UP):
            try:
                data, asker = sock.recvfrom(_BIGGEST_UDP)
            except (BlockingIOError, InterruptedError):
                return
            except OSError as error:
                log.debug("dns read: %s", error)
                return
            self._serve_datagram(sock, data, asker)

    def _serve_datagram(self, sock: socket.socket, data: bytes, asker: tuple[str, int]) -> None:
        try:
            query = dnswire.parse(data)
        except Malformed as error:
            reply = dnswire.refuse_malformed(error)
        else:
            reply = self._own(query, stream=False)
            if reply is None:
                if len(self._pending) < _MOST_PENDING:
                    self._start(self._forward_datagram(sock, query, data, asker))
                    return
                reply = dnswire.refuse(query, dnswire.SERVFAIL)
        if reply is not None:
            _send(sock, reply, asker)

    async def _forward_datagram(
        self, sock: socket.socket, query: Query, data: bytes, asker: tuple[str, int]
    ) -> None:
        _send(sock, await self._forward(query, data, stream=False), asker)

    def _own(self, query: Query, stream: bool) -> bytes | None:
        if query.edns:
            return dnswire.refuse(query, dnswire.BADVERS)
        found = names.resolve(self._table, self._scopes, query.name, query.kind, self._rng)
        if found is None:
            return None
        if found.code != dnswire.NOERROR:
            return dnswire.refuse(query, found.code)
        # an "any" question is answered with addresses
        asked = query if query.kind != dnswire.ANY else query._replace(kind=dnswire.A)
        return dnswire.answer(asked, found.records, _TTL_S, stream)

    async def _forward(self, query: Query, data: bytes, stream: bool) -> bytes:
        answer = await self._upstream.ask(data, self._servers, stream=stream)
        return answer if answer is not None else dnswire.refuse(query, dnswire.SERVFAIL)

    def _accept(self, listener: socket.socket) -> None:
        try:
            connection, _ = listener.accept()
        except OSError:
            return
        if len(self._pending) >= _MOST_PENDING:
            connection.close()
            return
        connection.setblocking(False)
        self._start(self._serve_stream(connection))

    async def _serve_stream(self, connection: socket.socket) -> None:
        with suppress(OSError, TimeoutError, asyncio.IncompleteReadError):
            reader, writer = await asyncio.open_connection(sock=connection)
            try:
                while await self._serve_one(reader, writer):
                    pass
            finally:
                writer.close()

    async def _serve_one(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> bool:
        async with asyncio.timeout(_TCP_IDLE_S):
            size = int.from_bytes(await reader.readexactly(2), "big")
            data = await reader.readexactly(size)
        try:
            query = dnswire.parse(data)
        except Malformed as error:
            reply = dnswire.refuse_malformed(error)
        else:
            reply = self._own(query, stream=True) or await self._forward(query, data, True)
        if reply is None:
            return False
        writer.write(len(reply).to_bytes(2, "big") + reply)
        async with asyncio.timeout(_TCP_IDLE_S):
            await writer.drain()
        return True

    def _start(self, work: Coroutine[Any, Any, None]) -> None:
        task = asyncio.get_running_loop().create_task(work)
        self._pending.add(task)
        task.add_done_callback(self._pending.discard)


def _send(sock: socket.socket, reply: bytes, asker: tuple[str, int]) -> None:
    try:
        sock.sendto(reply, asker)
    except OSError as error:  # a datagram may be lost; the asker asks again
        log.debug("dns answer: %s", error)
