"""Questions that are not about our names, passed on to the machine's resolvers."""

import asyncio
import random
import socket
from collections.abc import Callable, Sequence
from pathlib import Path

_PORT = 53
_ANSWER_S = 2.0
_MOST_AT_ONCE = 512  # of the whole node; more are refused at once
_TRIES = 2
_BIGGEST = 65535


class Upstream:
    """Asks resolvers from the machine's own namespace."""

    def __init__(self, servers: Callable[[], Sequence[str]], rng: random.Random) -> None:
        self._servers = servers
        self._rng = rng
        self._busy = 0

    async def ask(
        self, question: bytes, servers: Sequence[str] = (), *, stream: bool = False
    ) -> bytes | None:
        """The first resolver's answer that comes in time, or None. `servers` replace our own."""
        if self._busy >= _MOST_AT_ONCE:
            return None
        self._busy += 1
        try:
            for server in (*(servers or self._servers()),) * _TRIES:
                answer = await self._ask_one(server, question, stream)
                if answer is not None:
                    return answer
            return None
        finally:
            self._busy -= 1

    async def _ask_one(self, server: str, question: bytes, stream: bool) -> bytes | None:
        try:
            async with asyncio.timeout(_ANSWER_S):
                if stream:
                    return await _over_tcp(server, question)
                return await self._over_udp(server, question)
        except (OSError, TimeoutError, asyncio.IncompleteReadError):
            return None

    async def _over_udp(self, server: str, question: bytes) -> bytes:
        """With a number and a port of our own, so that an answer is hard to forge."""
        loop = asyncio.get_running_loop()
        identity = self._rng.getrandbits(16).to_bytes(2, "big")
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM | socket.SOCK_NONBLOCK) as sock:
            sock.connect((server, _PORT))
            await loop.sock_sendall(sock, identity + question[2:])
            while True:
                answer = await loop.sock_recv(sock, _BIGGEST)
                if answer[:2] == identity and len(answer) >= 12:
                    return question[:2] + answer[2:]


async def _over_tcp(server: str, question: bytes) -> bytes:
    reader, writer = await asyncio.open_connection(server, _PORT)
    try:
        writer.write(len(question).to_bytes(2, "big") + question)
        await writer.drain()
        size = int.from_bytes(await reader.readexactly(2), "big")
        return await reader.readexactly(size)
    finally:
        writer.close()


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
        if words[:1] == ["nameserver"] and len(words) > 1 and ":" not in words[1]:
            servers.append(words[1])
        elif words[:1] in (["search"], ["domain"]):
            search = tuple(words[1:])
    return tuple(servers), search
