"""Reading what the keeper wrote down of a container's output."""

import asyncio
import contextlib
import os
from collections import deque
from collections.abc import AsyncGenerator, Awaitable, Callable, Iterator
from pathlib import Path

import msgspec

from common.clock import Clock
from worker.engine.container import Container
from worker.runtime import logfile

_BATCH = 1 << 18  # bytes read in one go, in a thread; few enough not to hold up the loop
_LONGEST = 1 << 20  # a line without an end is cut there
_FILES = 1001


class LogLine(msgspec.Struct, frozen=True):
    """One line with its end of line, if it has one."""

    stream: int  # 1 stdout, 2 stderr
    time_ns: int
    data: bytes


class LogQuery(msgspec.Struct, frozen=True, kw_only=True):
    """What of a log is wanted. Times are nanoseconds since 1970, 0: no bound; `tail`: only the last
    lines, -1: all; `follow`: also what is yet to come, until the container has ended."""

    follow: bool = False
    stdout: bool = True
    stderr: bool = True
    since_ns: int = 0
    until_ns: int = 0
    tail: int = -1

    def passes(self, line: LogLine) -> bool:
        """Whether it is wanted, but for its place and the end of time."""
        wanted = self.stdout if line.stream == logfile.STDOUT else self.stderr
        return wanted and line.time_ns >= self.since_ns

    def over(self, time_ns: int) -> bool:
        """Whether that is behind the end."""
        return 0 < self.until_ns < time_ns


ALL = LogQuery()


class Lines:
    """Makes lines of frames. A line's time is that of its first byte. Pure."""

    def __init__(self) -> None:
        self._partial: dict[int, tuple[int, bytes]] = {}

    def feed(self, frame: logfile.Frame) -> Iterator[LogLine]:
        time_ns, data = self._partial.pop(frame.stream, (frame.time_ns, b""))
        lines = (data + frame.data).split(b"\n")
        for line in lines[:-1]:
            yield LogLine(frame.stream, time_ns, line + b"\n")
            time_ns = frame.time_ns
        rest = lines[-1]
        if len(rest) >= _LONGEST:
            yield LogLine(frame.stream, time_ns, rest)
        elif rest:
            self._partial[frame.stream] = (time_ns, rest)

    def flush(self) -> Iterator[LogLine]:
        """What has no end of line, at the end of all."""
        waiting = sorted(
            (time_ns, stream, data) for stream, (time_ns, data) in self._partial.items()
        )
        self._partial = {}
        for time_ns, stream, data in waiting:
            yield LogLine(stream, time_ns, data)


class Reader:
    """Goes through a log's files from the oldest to the newest, across rotations. Blocking."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._fd = -1
        self._offset = 0

    def batch(self) -> list[logfile.Frame]:
        """The next frames; empty at the present end."""
        found: list[logfile.Frame] = []
        size = 0
        while size < _BATCH:
            if self._fd < 0 and not self._open_oldest():
                break
            frame = logfile.read_frame(self._fd, self._offset)
            if frame is not None:
                self._offset = frame.end
                found.append(frame)
                size += len(frame.data)
            elif not self._open_next():
                break
        return found

    def _files(self) -> list[Path]:
        """Oldest first."""
        numbered = [self._path.with_name(f"{self._path.name}.{n}") for n in range(1, _FILES)]
        older = []
        for path in numbered:
            if not path.exists():
                break
            older.append(path)
        return [*reversed(older), self._path]

    def _open_oldest(self) -> bool:
        return any(self._open(path) for path in self._files())

    def _open(self, path: Path) -> bool:
        try:
            fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
        except FileNotFoundError:
            return False
        self.close()
        self._fd, self._offset = fd, 0
        return True

    def _open_next(self) -> bool:
        """The file after the one at hand; it may have been renamed meanwhile."""
        own, files = os.fstat(self._fd), self._files()
        for index, path in enumerate(files):
            with contextlib.suppress(FileNotFoundError):
                if os.path.samestat(path.stat(), own):
                    if index + 1 == len(files):
                        return False
                    # The writer may have added to it before it was renamed.
                    if logfile.read_frame(self._fd, self._offset) is not None:
                        return True
                    return self._open(files[index + 1])
        return own.st_nlink == 0 and self._open_oldest()

    def close(self) -> None:
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1


Batches = AsyncGenerator[list[LogLine], None]


async def each(batches: Batches) -> AsyncGenerator[LogLine, None]:
    """The lines of `batches` one by one."""
    async with contextlib.aclosing(batches):
        async for batch in batches:
            for line in batch:
                yield line


class Logs:
    """`follow(container, on)` asks the keeper to tell when a log grows."""

    def __init__(
        self,
        folder: Callable[[str], Path],
        clock: Clock,
        follow: Callable[[Container, bool], Awaitable[None]],
    ) -> None:
        self._folder = folder
        self._clock = clock
        self._follow = follow
        self._followers: dict[str, set[asyncio.Event]] = {}

    def grown(self, container_id: str) -> None:
        for event in self._followers.get(container_id, ()):
            event.set()

    def followed(self) -> set[str]:
        return set(self._followers)

    async def batches(self, container: Container, query: LogQuery = ALL) -> Batches:
        """Lines in the order of their writing, as many at once as there are, but never none."""
        reader = Reader(self._folder(container.id) / logfile.NAME)
        lines, grown = Lines(), asyncio.Event()

        try:
            if query.follow:
                await self._register(container, grown)
            if query.tail >= 0:
                last = await asyncio.to_thread(_last, reader, lines, query)
                if last:
                    yield last
            while True:
                grown.clear()
                live = container.live or container.state == "restarting"
                frames = await asyncio.to_thread(reader.batch)
                before = [frame for frame in frames if not query.over(frame.time_ns)]
                if found := [line for f in before for line in lines.feed(f) if query.passes(line)]:
                    yield found
                if len(before) < len(frames):
                    return
                if not frames:
                    if not (query.follow and live):
                        break
                    if not await self._wait(grown, query.until_ns):
                        break
            if found := [line for line in lines.flush() if query.passes(line)]:
                yield found
        finally:
            reader.close()
            if query.follow:
                await self._unregister(container, grown)

    async def _wait(self, grown: asyncio.Event, until_ns: int) -> bool:
        seconds = until_ns / 1e9 - self._clock.now().timestamp() if until_ns else None
        try:
            async with asyncio.timeout(seconds):
                await grown.wait()
        except TimeoutError:
            return False
        return True

    async def _register(self, container: Container, grown: asyncio.Event) -> None:
        followers = self._followers.setdefault(container.id, set())
        followers.add(grown)
        await self._follow(container, True)

    async def _unregister(self, container: Container, grown: asyncio.Event) -> None:
        followers = self._followers.get(container.id, set())
        followers.discard(grown)
        if not followers:
            self._followers.pop(container.id, None)
            await self._follow(container, False)


def _last(reader: Reader, lines: Lines, query: LogQuery) -> list[LogLine]:
    """The last lines that are there now; with one that has no end, unless that may yet come."""
    kept: deque[LogLine] = deque(maxlen=query.tail)
    while frames := reader.batch():
        for frame in frames:
            if not query.over(frame.time_ns):
                kept.extend(line for line in lines.feed(frame) if query.passes(line))
    if not query.follow:
        kept.extend(line for line in lines.flush() if query.passes(line))
    return list(kept)
