"""Autolock on one manager: its keyring is locked as the cluster object says.

The cluster object holds the unlock key, each manager wraps its own keys with it. A manager that
was away while the unlock key changed opens with the one of before, and then follows.
"""

import asyncio
import contextlib
import logging
from collections.abc import Awaitable, Callable

from common.errors import ShoalError
from common.model.cluster import Cluster
from manager.manager import Manager
from manager.raft.keyring import Keyring, guard_of
from manager.store.watch import Resync
from node.identity import CREDENTIALS

log = logging.getLogger(__name__)

RETRY_S = 5.0
PATIENCE_S = 5.0


class LockFollower:
    """Locks, unlocks or locks anew the keyring of this node's manager."""

    def __init__(self) -> None:
        self._followed = 0  # the version of the cluster object that the keyring is locked as
        self._news = asyncio.Event()  # replaced with each version

    async def wait(self, version: int) -> None:
        """Until that version of the cluster object is followed here, or for `PATIENCE_S`.

        So that who has rotated the unlock key may restart this manager at once.
        """
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(PATIENCE_S):
                while self._followed < version:
                    await self._news.wait()

    async def run(
        self, manager: Manager, keyring: Keyring, renew: Callable[[], Awaitable[None]]
    ) -> None:
        """Follow the cluster object of `manager` until cancelled.

        When the keyring is first locked, all keys that were on disk in the clear get successors:
        the data key together with the lock, and with `renew` the key of the certificate. Then what
        is sealed with the old data key goes. As the keyring tells how far that has come, an error
        or a crash in between only delays it.
        """
        with manager.store.watch() as watcher:
            while True:
                await self._follow_surely(manager, keyring, renew)
                found = False
                while not found:
                    try:
                        events = await watcher.next()
                    except Resync:
                        break
                    found = any(isinstance(event.object, Cluster) for event in events)

    async def _follow_surely(
        self, manager: Manager, keyring: Keyring, renew: Callable[[], Awaitable[None]]
    ) -> None:
        while True:
            try:
                await self._follow(manager, keyring)
                if len(keyring.key_ids) > 1:
                    if not keyring.is_current(CREDENTIALS):
                        await renew()
                    manager.drop_old_keys()
            except (ShoalError, OSError) as error:
                reason = str(error)
                log.warning("cannot follow the cluster's autolock yet", extra={"reason": reason})
                await asyncio.sleep(RETRY_S)
            else:
                return

    async def _follow(self, manager: Manager, keyring: Keyring) -> None:
        cluster = next(iter(manager.store.view().find(Cluster)), None)
        if cluster is None:
            return
        guard, version = guard_of(cluster.unlock_key), cluster.version.index
        if keyring.would_change(guard, version):
            await asyncio.to_thread(keyring.set_guard, guard, version)
            log.info("autolock", extra={"locked": keyring.is_locked})
        self._followed = version
        news, self._news = self._news, asyncio.Event()
        news.set()
