"""Volumes with options are mounted while somebody needs them: from the first who does to the last.

What is mounted is asked of the kernel, never remembered. A daemon that died leaves mounts behind;
the next one knows who needs them by the containers that run, and unmounts the others (`sweep`).
"""

import asyncio
import errno
import ipaddress
import socket
from pathlib import Path
from weakref import WeakValueDictionary

from common.apart import run_apart
from common.errors import Invalid, ShoalError, Unavailable
from worker.volumes import mounting, options
from worker.volumes.mounting import Failure
from worker.volumes.options import Source

_RESOLVE_S = 5.0
_PASSING = {
    errno.ETIMEDOUT, errno.ECONNREFUSED, errno.EHOSTUNREACH, errno.EHOSTDOWN, errno.ENETUNREACH,
    errno.ENETDOWN, errno.EAGAIN, errno.EBUSY,
}  # fmt: skip


class Holds:
    """By volume, who holds it: ids of containers, or of the work that is done with it."""

    def __init__(self) -> None:
        self._holders: dict[str, set[str]] = {}
        self._complete = False  # all who hold something are known
        self._locks: WeakValueDictionary[str, asyncio.Lock] = WeakValueDictionary()

    def note(self, name: str, holder: str) -> None:
        """A container has it already: it was running before this daemon."""
        self._holders.setdefault(name, set()).add(holder)

    async def take(self, name: str, holder: str, wanted: Source, place: Path) -> None:
        """Returns when `wanted` is mounted at `place`. Raises Invalid; Unavailable for what may be
        better later."""
        async with self._locks.setdefault(name, asyncio.Lock()):
            if not await asyncio.to_thread(mounting.is_mounted, place):
                failure = await _attach(await _found(wanted), str(place))
                if failure is not None:
                    raise _error(name, wanted, failure)
            self.note(name, holder)

    async def give_back(self, name: str, holder: str, place: Path) -> None:
        """Unmounts if that was the last, and not before `sweep`. Safe to repeat. Raises OSError."""
        async with self._locks.setdefault(name, asyncio.Lock()):
            holders = self._holders.get(name, set())
            holders.discard(holder)
            if not holders and self._complete:
                self._holders.pop(name, None)
                await asyncio.to_thread(mounting.detach, place)

    async def sweep(self, places: dict[str, Path]) -> None:
        """All who hold something have been noted: unmount those of `places` that nobody holds.
        Raises OSError."""
        self._complete = True
        for name, place in places.items():
            await self.give_back(name, "", place)


async def _attach(wanted: Source, place: str) -> Failure | None:
    """Who must be waited for is asked in another process: it can be given up."""
    if wanted.quick:
        return await asyncio.to_thread(mounting.attach, wanted, place)
    return await run_apart(mounting.attach, wanted, place)


async def _found(wanted: Source) -> Source:
    """With the address of its host, in numbers."""
    name = wanted.address
    if not name or _is_address(name):
        return wanted
    loop = asyncio.get_running_loop()
    try:
        async with asyncio.timeout(_RESOLVE_S):
            found = await loop.getaddrinfo(name, None, type=socket.SOCK_STREAM)
    except (OSError, TimeoutError) as error:
        raise Unavailable(f"volume option addr={name}: the name is not to be resolved") from error
    return options.addressed(wanted, str(found[0][4][0]))


def _is_address(text: str) -> bool:
    try:
        ipaddress.ip_address(text)
    except ValueError:
        return False
    return True


def _error(name: str, wanted: Source, failure: Failure) -> ShoalError:
    kind = Unavailable if failure.errno in _PASSING else Invalid
    return kind(
        f"failed to mount local volume {name}: {wanted.type} {wanted.device}: {failure.text}; its "
        "options are wrong (see `volume inspect`) or the machine lacks what they name"
    )
