"""What `bench.consensus` writes, and how it counts: the same for every system measured."""

import asyncio
import json
import os
import statistics
import time
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import cast

import msgspec

_TICKS = os.sysconf("SC_CLK_TCK")


class Load(msgspec.Struct, frozen=True, kw_only=True):
    """So many writers, each writing its own object again as soon as it was acknowledged."""

    writers: int
    size: int  # bytes of one value
    seconds: float

    def payload(self, count: int) -> str:
        """A value of `size` bytes that differs from the one before."""
        return f"{count:08d}".ljust(self.size, "x")


def summary(seconds: list[float], duration_s: float) -> dict[str, float]:
    """Writes, their rate, and p50 and p99 of their latencies in milliseconds."""
    if len(seconds) < 2:
        raise ValueError(f"only {len(seconds)} writes in {duration_s:.1f} s; give it more seconds")
    cuts = statistics.quantiles(seconds, n=100)
    return {
        "writes": len(seconds),
        "rate": len(seconds) / duration_s,
        "p50_ms": cuts[49] * 1000,
        "p99_ms": cuts[98] * 1000,
    }


def cpu_seconds(pids: Iterable[int]) -> float:
    """User and system time that living processes have used so far."""
    ticks = 0
    for pid in pids:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
        ticks += int(fields[11]) + int(fields[12])
    return ticks / _TICKS


def memory_mb(pid: int) -> tuple[float, float]:
    """The resident memory of a process and its highest since `forget_peak`, in MB."""
    lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    sizes = {line.split()[0]: int(line.split()[1]) / 1000 for line in lines if line[:2] == "Vm"}
    return sizes["VmRSS:"], sizes["VmHWM:"]


def forget_peak(pid: int) -> None:
    Path(f"/proc/{pid}/clear_refs").write_text("5")


async def load_over_http(
    port: int, path: str, body: Callable[[str, str], bytes], load: Load
) -> dict[str, float]:
    """Apply `load` by POSTs of `body(key, value)` over kept-open connections to loopback.

    Adds the CPU seconds that this client itself took. Raises OSError for a refused write.
    """
    writers = [
        await _connect(port, _Writer(f"bench-{number}", path, body, load))
        for number in range(load.writers)
    ]
    used, began = time.process_time(), time.monotonic()
    for writer in writers:
        writer.start(began + load.seconds)
    async with asyncio.timeout(load.seconds + 20):
        await asyncio.gather(*(writer.done for writer in writers))
    took = time.monotonic() - began
    result = summary([each for writer in writers for each in writer.seconds], took)
    return result | {"client_cpu_s": time.process_time() - used}


async def _connect(port: int, writer: "_Writer") -> "_Writer":
    await asyncio.get_running_loop().create_connection(lambda: writer, "127.0.0.1", port)
    return writer


class _Writer(asyncio.Protocol):
    """One connection with one request at a time: no more of HTTP/1.1 than that takes."""

    def __init__(self, key: str, path: str, body: Callable[[str, str], bytes], load: Load) -> None:
        self.done: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self.seconds: list[float] = []
        self._key, self._path, self._body, self._load = key, path, body, load
        self._until = 0.0
        self._count = 0
        self._sent = 0.0
        self._buffer = b""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        # uvloop's transports are none of asyncio's classes
        self._transport = cast(asyncio.WriteTransport, transport)

    def start(self, until: float) -> None:
        """Write until that moment of the monotonic clock; then `done` is."""
        self._until = until
        self._next()

    def connection_lost(self, error: Exception | None) -> None:
        if not self.done.done():
            self.done.set_exception(OSError(f"the connection broke: {error or 'closed'}"))

    def data_received(self, data: bytes) -> None:
        self._buffer += data
        head, found, rest = self._buffer.partition(b"\r\n\r\n")
        if not found or len(rest) < _length(head):
            return
        self._buffer = b""
        self.seconds.append(time.monotonic() - self._sent)
        if b" 200 " in head[:16]:
            self._next()
        else:
            self.done.set_exception(OSError(f"a write was refused: {rest[:200]!r}"))
            self._transport.close()

    def _next(self) -> None:
        self._sent = time.monotonic()
        if self._sent >= self._until:
            self.done.set_result(None)
            self._transport.close()
            return
        body = self._body(self._key, self._load.payload(self._count))
        self._count += 1
        head = f"POST {self._path} HTTP/1.1\r\nHost: localhost\r\nContent-Length: {len(body)}"
        self._transport.write(head.encode() + b"\r\n\r\n" + body)


def _length(head: bytes) -> int:
    for line in head.split(b"\r\n")[1:]:
        name, _, value = line.partition(b":")
        if name.lower() == b"content-length":
            return int(value)
    raise OSError(f"an answer without a length: {head[:200]!r}")


def plain_body(key: str, value: str) -> bytes:
    return json.dumps({"key": key, "value": value}).encode()
