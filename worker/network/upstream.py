"""Questions that are not about our names, passed on to the machine's resolvers.

Several are asked one after the other: the next as soon as one fails or refuses, or has not
answered for a moment; the first good answer counts. Who let us down lately is asked last, so that a
dead resolver in the machine's list costs a moment once, not at every question.
"""

import asyncio
import random
import socket
from collections.abc import Callable, Sequence
from contextlib import suppress
from ipaddress import IPv4Address
from pathlib import Path

from worker.network import dnswire

_PORT = 53
_ANSWER_S = 2.0  # for one resolver to answer
_NEXT_S = 0.4  # until the next one is asked as well
_DISTRUST_S = 30.0  # how long one that did not answer is asked last
_MOST_AT_ONCE = 512  # of the whole node; more are refused at once
_TRIES = 2
_BIGGEST = 65535
_GOOD = (0, 3)  # NOERROR, NXDOMAIN; the others say only that the resolver cannot tell


class Upstream:
    """Asks resolvers from the machine's own namespace."""

    def __init__(
        self, servers: Callable[[], Sequence[str]], rng: random.Random, *, port: int = _PORT
    ) -> None:
        self._servers = servers
        self._rng = rng
        self._port = port
        self._busy = 0
        self._failed_at: dict[str, float] = {}

    async def ask(
        self, question: bytes, servers: Sequence[str] = (), *, stream: bool = False
    ) -> bytes | None:
        """The first good answer, else any, else None. `servers` replace the machine's."""
        if self._busy >= _MOST_AT_ONCE:
            return None
        self._busy += 1
        try:
            return await self._first(question, self._order(servers or self._servers()), stream)
        finally:
            self._busy -= 1

    def _order(self, servers: Sequence[str]) -> list[str]:
        now = asyncio.get_running_loop().time()
        self._failed_at = {
            server: at for server, at in self._failed_at.items() if now - at < _DISTRUST_S
        }
        return sorted(dict.fromkeys(servers), key=self._failed_at.__contains__) * _TRIES

    async def _first(self, question: bytes, servers: list[str], stream: bool) -> bytes | None:
        loop = asyncio.get_running_loop()
        asking: set[asyncio.Task[bytes | None]] = set()
        poor = None
        try:
            while servers or asking:
                if servers:
                    work = self._ask_one(servers.pop(0), question, stream)
                    asking.add(loop.create_task(work))
                done, asking = await asyncio.wait(
                    asking,
                    timeout=_NEXT_S if servers else None,
                    return_when=asyncio.FIRST_COMPLETED,
                )
                for answer in (task.result() for task in done):
                    if answer is not None and answer[3] & 15 in _GOOD:
                        return answer
                    poor = answer or poor
            return poor
        finally:
            for task in asking:
                task.cancel()
            await asyncio.gather(*asking, return_exceptions=True)

    async def _ask_one(self, server: str, question: bytes, stream: bool) -> bytes | None:
        try:
            async with asyncio.timeout(_ANSWER_S):
                ask = self._over_tcp if stream else self._over_udp
                answer = await ask(server, question)
        except (OSError, TimeoutError, asyncio.IncompleteReadError):
            self._failed_at[server] = asyncio.get_running_loop().time()
            return None
        self._failed_at.pop(server, None)
        return answer

    async def _over_udp(self, server: str, question: bytes) -> bytes:
        """With a number and a port of our own, so that an answer is hard to forge."""
        loop = asyncio.get_running_loop()
        asked = self._rng.getrandbits(16).to_bytes(2, "big") + question[2:]
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM | socket.SOCK_NONBLOCK) as sock:
            sock.connect((server, self._port))
            await loop.sock_sendall(sock, asked)
            while True:
                answer = await loop.sock_recv(sock, _BIGGEST)
                if dnswire.is_answer(answer, asked):
                    return question[:2] + answer[2:]

    async def _over_tcp(self, server: str, question: bytes) -> bytes:
        reader, writer = await asyncio.open_connection(server, self._port)
        try:
            writer.write(len(question).to_bytes(2, "big") + question)
            await writer.drain()
            size = int.from_bytes(await reader.readexactly(2), "big")
            answer = await reader.readexactly(size)
            if not dnswire.is_answer(answer, question):
                raise ConnectionError("not an answer to what was asked")
            return answer
        finally:
            writer.close()
            with suppress(OSError):
                await writer.wait_closed()


class MachineSettings:
    """The machine's resolv.conf, read again when it changes. `override` replaces its servers."""

    def __init__(self, path: Path, override: Sequence[str] = ()) -> None:
        self._path = path
        self._override = tuple(override)
        self._stamp = -1
        self._text = ""

    @property
    def text(self) -> str:
        """As it stands; "" if it cannot be read."""
        try:
            stamp = self._path.stat().st_mtime_ns
            if stamp != self._stamp:
                self._text = self._path.read_text()
                self._stamp = stamp
        except OSError:
            self._text, self._stamp = "", -1
        return self._text

    @property
    def servers(self) -> tuple[str, ...]:
        """Resolvers to ask."""
        return self._override or parse_resolv_conf(self.text)[0]

    @property
    def search(self) -> tuple[str, ...]:
        """Domains in which short names are sought."""
        return parse_resolv_conf(self.text)[1]


def parse_resolv_conf(text: str) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """IPv4 resolvers and search domains."""
    servers: list[str] = []
    search: tuple[str, ...] = ()
    for line in text.splitlines():
        words = line.split()
        if words[:1] == ["nameserver"] and len(words) > 1:
            with suppress(ValueError):  # an IPv6 address, or none at all
                servers.append(str(IPv4Address(words[1])))
        elif words[:1] in (["search"], ["domain"]):
            search = tuple(words[1:])
    return tuple(servers), search
