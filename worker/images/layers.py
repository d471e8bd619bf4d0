"""Unpacked layers: each made once, complete or not there at all."""

import asyncio
import os
import shutil
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from common.errors import Invalid, Unavailable
from worker.images.flights import Flights, Report
from worker.images.store import Store, full_disk, sync_folder
from worker.images.unpack import Unpacked, unpack

# An own process costs 0.1 s and keeps the daemon's loop free of the interpreter's lock.
_THREAD_LIMIT = 4 * 1024 * 1024  # bytes of an archive that a thread unpacks
_AT_ONCE = 2
_MIN_LIMIT = 2 * 1024**3  # bytes; a layer may always unpack to so much
_RATIO = 100  # more than that is no content but a bomb


class Layers:
    """Unpacks blobs of the store into its layers."""

    def __init__(self, store: Store) -> None:
        self._store = store
        self._flights: Flights[None] = Flights()
        self._slots = asyncio.Semaphore(_AT_ONCE)

    async def ensure(self, blob: Path, diff_id: str, report: Report) -> None:
        """Unpack a blob unless it has been. Raises Invalid if it isn't what `diff_id` says."""

        async def work(tell: Report) -> None:
            if self._store.has_layer(diff_id):
                return
            tell({"status": "Extracting"})
            found = await self.unpack(blob, diff_id)
            assert found.diff_id == diff_id

        if not self._store.has_layer(diff_id):
            await self._flights.run(diff_id, work, report)

    async def unpack(self, blob: Path, expected: str = "") -> Unpacked:
        """Unpack a blob into the layer of its diff id. Raises Invalid, Unavailable."""
        temporary = self._store.temporary("layers")
        files = temporary / "fs"
        try:
            async with self._slots:
                await asyncio.to_thread(_fresh, files)
                done = await self._run(blob, files)
            if expected and done.diff_id != expected:
                raise Invalid(
                    f"a layer unpacks to {done.diff_id}, but the image's configuration says "
                    f"{expected}: the image is damaged or forged"
                )
            await asyncio.to_thread(self._settle, temporary, done)
        finally:
            await asyncio.shield(asyncio.to_thread(shutil.rmtree, temporary, True))
        return done

    async def close(self) -> None:
        await self._flights.close()

    def _settle(self, temporary: Path, done: Unpacked) -> None:
        with full_disk(self._store.folder), (temporary / "size").open("w") as out:
            out.write(str(done.size))
            out.flush()
            os.fsync(out.fileno())
        sync_folder(temporary)
        target = self._store.layer(done.diff_id)
        if not target.exists():
            temporary.rename(target)
            sync_folder(target.parent)

    async def _run(self, blob: Path, files: Path) -> Unpacked:
        size = (await asyncio.to_thread(blob.stat)).st_size
        limit = max(_MIN_LIMIT, size * _RATIO)
        if size > _THREAD_LIMIT:
            return await self._run_program(blob, files, limit)
        with full_disk(self._store.folder):
            return await _to_the_end(unpack, blob, files, limit)

    async def _run_program(self, blob: Path, files: Path, limit: int) -> Unpacked:
        argv = [sys.executable, "-m", "worker.images.unpack", str(blob), str(files), str(limit)]
        program = await asyncio.create_subprocess_exec(
            *argv,
            stdin=asyncio.subprocess.DEVNULL,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.PIPE,
            cwd=Path(__file__).parents[2],
        )
        try:
            out, complaint = await program.communicate()
        except asyncio.CancelledError:
            program.kill()
            await program.wait()
            raise
        return self._outcome(program.returncode, out.decode(), complaint.decode(errors="replace"))

    def _outcome(self, code: int | None, out: str, complaint: str) -> Unpacked:
        last = complaint.strip().splitlines()[-1] if complaint.strip() else f"exit code {code}"
        if code == 0:
            diff_id, size = out.split()
            return Unpacked(diff_id, int(size))
        if code == 3:
            raise Invalid(last)
        number, _, text = last.partition(" ")
        with full_disk(self._store.folder):
            if code == 4 and number.isdigit():
                raise OSError(int(number), text)
        raise Unavailable(f"a layer could not be unpacked: {last}")


async def _to_the_end(work: Callable[[Path, Path, int], Unpacked], *arguments: Any) -> Unpacked:
    """In a thread, which cannot be cancelled: its folder is only removed when it has ended."""
    running = asyncio.get_running_loop().run_in_executor(None, work, *arguments)
    try:
        return await asyncio.shield(running)
    except asyncio.CancelledError:
        await asyncio.gather(running, return_exceptions=True)
        raise


def _fresh(files: Path) -> None:
    shutil.rmtree(files.parent, ignore_errors=True)
    files.mkdir(parents=True, mode=0o755)
    files.chmod(0o755)
