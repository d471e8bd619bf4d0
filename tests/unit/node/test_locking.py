"""Autolock followed by one manager (SEC 216, 217; RAF 189)."""

import asyncio
import random
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from common.errors import Unavailable
from manager.raft.keyring import Keyring, guard_of, new_unlock_key
from node import locking
from node.identity import CREDENTIALS
from node.locking import LockFollower


class Watcher:
    def __enter__(self) -> "Watcher":
        return self

    def __exit__(self, *_: object) -> None: ...

    async def next(self) -> list[Any]:
        await asyncio.Event().wait()
        raise AssertionError


class FakeManager:
    """A cluster object, and what is asked of the log."""

    def __init__(self, keyring: Keyring, unlock_key: str) -> None:
        cluster = SimpleNamespace(unlock_key=unlock_key, version=SimpleNamespace(index=7))
        view = SimpleNamespace(find=lambda _: iter([cluster]))
        self.store = SimpleNamespace(view=lambda: view, watch=Watcher)
        self.dropped = asyncio.Event()
        self._keyring = keyring

    def drop_old_keys(self) -> None:
        assert self._keyring.is_current(CREDENTIALS), "the certificate's key comes first"
        self._keyring.drop_unused()
        self.dropped.set()


@pytest.mark.parametrize("crash", [False, True])
async def test_keys_that_lay_open_are_replaced_though_the_first_try_fails(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, crash: bool
) -> None:
    """The certificate's key too; after an error, and after a crash behind the lock."""
    monkeypatch.setattr(locking, "RETRY_S", 0)
    unlock_key = new_unlock_key(random.Random(1))
    keyring = Keyring(tmp_path / "keyring")
    keyring.seal(CREDENTIALS, b"the key of the certificate")
    keyring.sealed(CREDENTIALS)
    opened = keyring.current_id
    if crash:
        keyring.set_guard(guard_of(unlock_key), 7)
    tries = 0

    async def renew() -> None:
        nonlocal tries
        tries += 1
        if tries == 1:
            raise Unavailable("no leader")
        keyring.seal(CREDENTIALS, b"its successor")
        keyring.sealed(CREDENTIALS)

    manager: Any = FakeManager(keyring, unlock_key)
    async with asyncio.timeout(5), asyncio.TaskGroup() as group:
        following = group.create_task(LockFollower().run(manager, keyring, renew))
        await manager.dropped.wait()
        following.cancel()
    assert tries == 2
    assert keyring.is_locked
    assert opened not in keyring.key_ids
