"""Managers that lock themselves, SEC 216: real TLS, logs, keyrings, on loopback, without root."""

import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from msgspec.structs import replace

from common.errors import Conflict, Invalid, Locked, Unauthorized, Unavailable
from common.model.cluster import Cluster, EncryptionConfig
from common.model.node import Role
from manager.raft.keyring import Keyring, LockedGuard, is_locked, new_unlock_key
from node.locking import LockFollower
from tests.support.formation import Machine, machines, until

RNG = random.SystemRandom()


def cluster(machine: Machine) -> Cluster:
    return machine.store.view().find(Cluster)[0]


def keyring(machine: Machine) -> Keyring:
    return machine.swarm._around.files.keyring


def locked_on_disk(machine: Machine) -> bool:
    return is_locked(keyring(machine).path)


def node_pem(machine: Machine) -> bytes:
    return (keyring(machine).path.parent / "node.pem").read_bytes()


async def set_lock(leader: Machine, unlock_key: str) -> None:
    def change(tx: Any) -> None:
        [found] = tx.find(Cluster)
        encryption = EncryptionConfig(auto_lock_managers=bool(unlock_key))
        spec = replace(found.spec, encryption_config=encryption)
        tx.put(replace(found, spec=spec, unlock_key=unlock_key))

    await leader.store.update(change)


async def opens_with(machine: Machine, unlock_key: str) -> None:
    """Restart it: locked, and nothing but the key opens it."""
    await machine.restart()
    assert machine.swarm.state == "locked"
    with pytest.raises(Unauthorized, match="invalid key provided"):
        await machine.swarm.unlock(new_unlock_key(RNG))
    assert machine.swarm.state == "locked"
    await machine.swarm.unlock(unlock_key)
    assert machine.swarm.state == "active"


def all_are(made: list[Machine], what: Callable[[Machine], bool]) -> Callable[[], bool]:
    return lambda: all(what(machine) for machine in made)


async def test_a_cluster_made_with_autolock_starts_locked(tmp_path: Path) -> None:
    async with machines(tmp_path, 1) as [machine]:
        node_id = await machine.init(autolock=True)
        unlock_key = cluster(machine).unlock_key
        assert cluster(machine).spec.encryption_config.auto_lock_managers
        await machine.restart()
        swarm = machine.swarm
        assert (swarm.state, swarm.is_manager, swarm.error) == ("locked", False, "")
        with pytest.raises(Locked, match="Swarm is encrypted and needs to be unlocked"):
            swarm.check_unlocked()
        with pytest.raises(Locked):
            await machine.init()
        with pytest.raises(Invalid, match="SWMKEY-1-"):
            await swarm.unlock("nonsense")
        await opens_with(machine, unlock_key)
        await until("it leads", lambda: machine.leads)
        assert swarm.node_id == ""
        assert machine.swarm.node_id == node_id
        with pytest.raises(Conflict, match="swarm is not locked"):
            await machine.swarm.unlock(unlock_key)


async def test_no_key_is_on_disk_in_the_clear(tmp_path: Path) -> None:
    async with machines(tmp_path, 1) as [machine]:
        await machine.init(autolock=True)
        trust = machine.swarm.member
        assert trust is not None
        secret = trust.trust._credentials.key.splitlines()[1]
        await machine.swarm.close()
        for path in sorted(machine.folder.rglob("*")):
            if path.is_file():
                assert secret not in path.read_bytes(), path
        assert b"BEGIN SEALED PRIVATE KEY" in node_pem(machine)


async def test_lock_rotate_and_unlock_reach_every_manager(tmp_path: Path) -> None:
    """Also one that was down meanwhile: it opens with the key of before, and then follows."""
    async with machines(tmp_path, 3) as made:
        first, second, third = made
        await first.init()
        token = cluster(first).root_ca.join_token_manager
        for machine in (second, third):
            await machine.join(token, first)
        await until("they have the cluster", all_are(made, lambda one: bool(one.store.version)))
        assert not any(map(locked_on_disk, made))
        before = [node_pem(machine) for machine in made]
        data_keys = [keyring(machine).current_id for machine in made]

        one, two = new_unlock_key(RNG), new_unlock_key(RNG)
        await set_lock(first, one)
        await until("all are locked", all_are(made, locked_on_disk))
        await until(
            "keys that lay open have successors",
            lambda: all(
                node_pem(machine) != old and keyring(machine).current_id != data_key
                for machine, old, data_key in zip(made, before, data_keys, strict=True)
            ),
        )
        await until(
            "the old data keys are gone",
            lambda: all(len(keyring(machine).key_ids) == 1 for machine in made),
        )
        await third.swarm.close()
        await set_lock(first, two)
        await until("they follow", lambda: not would_open(second, one) and would_open(second, two))
        await opens_with(second, two)
        await opens_with(third, one)
        await until("it follows", lambda: would_open(third, two))
        await until("somebody leads", lambda: any(machine.leads for machine in made))
        await set_lock(next(machine for machine in made if machine.leads), "")
        await until("all are open", all_are(made, lambda one: not locked_on_disk(one)))
        await second.restart()
        assert second.swarm.state == "active"


async def test_a_joining_manager_locks_before_it_has_read_the_log(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def blind(*_: object) -> None:
        """Does not look at the cluster object."""

    async with machines(tmp_path, 2) as (first, second):
        await first.init(autolock=True)
        monkeypatch.setattr(LockFollower, "_follow", blind)
        await second.join(cluster(first).root_ca.join_token_manager, first)
        await until("it is locked", lambda: locked_on_disk(second))


def would_open(machine: Machine, unlock_key: str) -> bool:
    found = Keyring(keyring(machine).path, LockedGuard(unlock_key))
    try:
        found.load()
    except Unauthorized:
        return False
    return True


async def test_a_manager_that_becomes_a_worker_needs_no_key(tmp_path: Path) -> None:
    async with machines(tmp_path, 2) as (first, second):
        await first.init(autolock=True)
        await second.join(cluster(first).root_ca.join_token_manager, first)
        await until("it is locked", lambda: locked_on_disk(second))
        await first.set_role(second.swarm.node_id, Role.WORKER)
        await until("it has no keyring", lambda: not keyring(second).path.exists())
        await second.restart()
        assert second.swarm.state == "active"
        await first.set_role(second.swarm.node_id, Role.MANAGER)
        await until("it is locked again", lambda: locked_on_disk(second))


async def test_a_locked_manager_leaves_by_force_only(tmp_path: Path) -> None:
    async with machines(tmp_path, 1) as [machine]:
        await machine.init(autolock=True)
        await machine.restart()
        with pytest.raises(Unavailable, match="Please unlock it first or use `--force`"):
            await machine.swarm.leave(force=False)
        assert machine.swarm.state == "locked"
        await machine.swarm.leave(force=True)
        assert machine.swarm.state == "inactive"
        await machine.init()
