"""Autolock on one manager: its keyring is locked as the cluster object says.

The cluster object holds the unlock key, each manager wraps its own keys with it. A manager that
was away while the unlock key changed opens with the one of before, and then follows.
"""

import asyncio
import logging
from collections.abc import Awaitable, Callable

from common.errors import ShoalError
from common.model.cluster import Cluster
from manager.manager import Manager
from manager.raft.keyring import Keyring, guard_of
from manager.store.watch import Resync

log = logging.getLogger(__name__)

RETRY_S = 5.0


async def follow_lock(
    manager: Manager, keyring: Keyring, renew: Callable[[], Awaitable[None]]
) -> None:
    """Lock, unlock or lock anew whenever the cluster says so, until cancelled.

    When it is first locked, all keys that were on disk in the clear get successors: the data
    key, and with `renew` the key of the certificate.
    """
    with manager.store.watch() as watcher:
        while True:
            await _until_followed(manager, keyring, renew)
            found = False
            while not found:
                try:
                    events = await watcher.next()
                except Resync:
                    break
                found = any(isinstance(event.object, Cluster) for event in events)


async def _until_followed(
    manager: Manager, keyring: Keyring, renew: Callable[[], Awaitable[None]]
) -> None:
    while True:
        try:
            if await _follow(manager, keyring):
                await manager.rotate_key()
                await renew()
        except (ShoalError, OSError) as error:
            log.warning("cannot follow the cluster's autolock yet", extra={"reason": str(error)})
            await asyncio.sleep(RETRY_S)
        else:
            return


async def _follow(manager: Manager, keyring: Keyring) -> bool:
    """Whether it is locked now and was not before."""
    cluster = next(iter(manager.store.view().find(Cluster)), None)
    if cluster is None:
        return False
    guard = guard_of(cluster.unlock_key)
    if not keyring.would_change(guard, cluster.version.index):
        return False
    locked = await asyncio.to_thread(keyring.set_guard, guard, cluster.version.index)
    log.info("autolock", extra={"locked": keyring.is_locked})
    return locked
