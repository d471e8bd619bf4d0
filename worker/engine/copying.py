"""The files of containers: copied in and out, compared with the image, exported, made a layer."""

import asyncio
import contextlib
import os
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Iterator
from pathlib import Path
from typing import IO

from common.errors import Conflict, Invalid, NotFound
from worker.engine import layerdiff, packing, rootfs, unpacking
from worker.engine.container import Container, volumes_of
from worker.engine.disk import Disk
from worker.engine.layerdiff import Change
from worker.engine.packing import PathStat
from worker.engine.seams import Images
from worker.engine.transfer import apart, consumed, produced
from worker.volumes.measure import folder_size
from worker.volumes.store import Volumes

_AT_ONCE = 16  # transfers; more wait
_END_S = 5.0  # for the news of an end to come

Root = Callable[[], int]


class Files:
    """While files of a container that does not run are copied, it cannot be started or removed."""

    def __init__(
        self, find: Callable[[str], Container], disk: Disk, images: Images, volumes: Volumes
    ) -> None:
        self._find = find
        self._disk = disk
        self._images = images
        self._volumes = volumes
        self._slots = asyncio.Semaphore(_AT_ONCE)

    async def stat(self, ref: str, path: str) -> PathStat:
        """Of a path in the container; a link at its end is not followed. Raises NotFound."""

        def work(root: Root) -> PathStat:
            with _closing(root()) as fd:
                return packing.describe(fd, path)

        async with self._root(self._find(ref)) as root:
            return await apart(lambda: work(root))

    async def read(self, ref: str, path: str) -> AsyncGenerator[bytes, None]:
        """`path` and all below it as a tar. Raises NotFound, Invalid."""
        container = self._find(ref)
        volumes = frozenset(
            point.destination for point in container.record.mounts if point.type != "tmpfs"
        )

        def work(root: Root, out: IO[bytes]) -> None:
            with _closing(root()) as fd:
                packing.pack(fd, path, out, volumes)

        async with contextlib.AsyncExitStack() as stack:
            await stack.enter_async_context(self._slots)
            root = await stack.enter_async_context(self._root(container))
            made = produced(lambda out: work(root, out))
            chunks = await stack.enter_async_context(contextlib.aclosing(made))
            async for chunk in chunks:
                yield chunk

    async def write(
        self,
        ref: str,
        path: str,
        chunks: AsyncIterator[bytes],
        *,
        keep_kinds: bool = False,
        to_user: bool = False,
    ) -> None:
        """Unpack a tar into the folder `path`. `keep_kinds`: a folder is never replaced by a file,
        nor a file by a folder. `to_user`: all is given to the container's user.

        Raises NotFound, Invalid.
        """
        container = self._find(ref)
        if container.host_config.readonly_rootfs and not _in_volume(container, path):
            raise Invalid("container rootfs is marked read-only")

        def work(root: Root, source: IO[bytes]) -> None:
            fd = root()
            owner = None
            if to_user and container.config.user:
                owner = unpacking.owner_of(fd, container.config.user)
            unpacking.unpack(fd, packing.plain(path), source, keep_kinds, owner)

        async with self._slots, self._root(container) as root:
            await consumed(chunks, lambda source: work(root, source))

    @contextlib.asynccontextmanager
    async def _root(self, container: Container) -> AsyncIterator[Root]:
        """How to open the container's root, in a thread of its own."""
        if container.live:
            try:
                fd = rootfs.running(container.pid, container.id)
            except ProcessLookupError:  # it has just ended
                with contextlib.suppress(TimeoutError):
                    async with asyncio.timeout(_END_S):
                        await container.until(lambda c: not c.live or c.removed)
            else:
                try:
                    yield lambda: os.dup(fd)
                finally:
                    os.close(fd)
                return
        async with container.lock:
            self._check_at_rest(container)
            folder, record = self._disk.folder(container.id), container.record
            lower = self._images.lower_dirs(container.image_id)
            read_only = container.host_config.readonly_rootfs
            async with self._volumes.held(volumes_of(record.mounts), f"files of {record.id}"):
                yield lambda: rootfs.stopped(folder, lower, record.mounts, read_only)

    def _check_at_rest(self, container: Container) -> None:
        if container.removed:
            raise NotFound(f"No such container: {container.id}")
        if container.live:
            raise Conflict(f"container {container.name} is being started; try again")

    # --- what it changed

    async def changes(self, ref: str) -> list[Change]:
        """What the container's own files are over its image's, by path."""
        container = self._find(ref)
        upper, lower, points = self._layers(container)
        return await apart(lambda: layerdiff.changes(upper, lower, points))

    async def export(self, ref: str) -> AsyncGenerator[bytes, None]:
        """All its files as a tar, without those of volumes."""
        container = self._find(ref)
        folder = self._disk.folder(container.id)
        lower = self._images.lower_dirs(container.image_id)

        def work(out: IO[bytes]) -> None:
            with _closing(rootfs.image_and_changes(folder, lower)) as fd:
                packing.pack_root(fd, out)

        async with self._slots, contextlib.aclosing(produced(work)) as chunks:
            async for chunk in chunks:
                yield chunk

    async def layer(self, ref: str) -> AsyncGenerator[bytes, None]:
        """What it changed, as a layer of an image."""
        upper, lower, points = self._layers(self._find(ref))

        def work(out: IO[bytes]) -> None:
            layerdiff.write_layer(upper, layerdiff.changes(upper, lower, points), out)

        async with self._slots, contextlib.aclosing(produced(work)) as chunks:
            async for chunk in chunks:
                yield chunk

    async def size(self, ref: str) -> int:
        """Bytes of the files that it wrote."""
        upper = self._disk.folder(self._find(ref).id) / "upper"
        return await asyncio.to_thread(folder_size, upper)

    def _layers(self, container: Container) -> tuple[Path, tuple[Path, ...], frozenset[str]]:
        upper = self._disk.folder(container.id) / "upper"
        points = frozenset(point.destination for point in container.record.mounts)
        return upper, self._images.lower_dirs(container.image_id), points


def _in_volume(container: Container, path: str) -> bool:
    """A rough answer; the kernel has the last word."""
    inner = packing.plain(path)
    return any(f"{inner}/".startswith(f"{point.destination}/") for point in container.record.mounts)


@contextlib.contextmanager
def _closing(fd: int) -> Iterator[int]:
    try:
        yield fd
    finally:
        os.close(fd)
