"""The keyring: keys come back, only to whom may have them, whatever step a crash ends."""

import random
import stat
from pathlib import Path

import pytest

from common.errors import Invalid, Locked, Unauthorized
from manager.raft.keyring import (
    Keyring,
    LockedGuard,
    PlainGuard,
    format_unlock_key,
    is_locked,
    new_unlock_key,
    parse_unlock_key,
)
from tests.support.raft_files import entries, opened, reopened

RNG = random.SystemRandom()


def loaded(path: Path, guard: PlainGuard | LockedGuard | None = None) -> Keyring:
    keyring = Keyring(path, guard)
    keyring.load()
    return keyring


def test_the_file_is_for_its_owner_only_and_gives_the_keys_back(tmp_path: Path) -> None:
    keyring = Keyring(tmp_path / "keyring")
    key = keyring.for_new_file("a")
    assert stat.S_IMODE(keyring.path.stat().st_mode) == 0o600
    assert loaded(keyring.path).for_file(tmp_path / "a", key.id) == key
    assert key.secret.hex() not in repr(key)


def test_a_locked_keyring_opens_with_its_unlock_key_only(tmp_path: Path) -> None:
    path = tmp_path / "keyring"
    unlock_key = new_unlock_key(RNG)
    keyring = Keyring(path)
    secret = keyring.for_new_file("a").secret
    assert secret in path.read_bytes()
    keyring.set_guard(LockedGuard(unlock_key))
    assert secret not in path.read_bytes()
    assert is_locked(path)
    with pytest.raises(Locked, match="Swarm is encrypted and needs to be unlocked"):
        loaded(path)
    with pytest.raises(Unauthorized, match="invalid key provided"):
        loaded(path, LockedGuard(new_unlock_key(RNG)))
    opened = loaded(path, LockedGuard(unlock_key))
    assert opened.key_ids == keyring.key_ids
    assert opened.is_locked


def test_an_old_unlock_key_stops_working(tmp_path: Path) -> None:
    old, new = new_unlock_key(RNG), new_unlock_key(RNG)
    keyring = Keyring(tmp_path / "keyring")
    keyring.set_guard(LockedGuard(old))
    keyring.set_guard(LockedGuard(new))
    keyring.rotate()  # a later change keeps the lock
    with pytest.raises(Unauthorized):
        loaded(keyring.path, LockedGuard(old))
    assert loaded(keyring.path, LockedGuard(new)).key_ids == keyring.key_ids
    keyring.set_guard(PlainGuard())
    assert not is_locked(keyring.path)
    assert loaded(keyring.path).key_ids == keyring.key_ids


def test_an_unlock_key_for_a_keyring_that_is_not_locked_yet_does_no_harm(tmp_path: Path) -> None:
    keyring = Keyring(tmp_path / "keyring")
    keyring.rotate()
    assert not loaded(keyring.path, LockedGuard(new_unlock_key(RNG))).is_locked


@pytest.mark.parametrize("step", ["open", "write", "fsync", "rename"])
def test_a_change_that_fails_at_any_step_leaves_keys_and_lock_as_they_were(
    tmp_path: Path, step: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    keyring = Keyring(tmp_path / "keyring")
    keyring.rotate()
    before = keyring.key_ids

    def fails(*_: object, **__: object) -> None:
        raise OSError(28, "No space left on device")

    changes = (keyring.rotate, lambda: keyring.set_guard(LockedGuard(new_unlock_key(RNG))))
    for change in changes:
        with monkeypatch.context() as patch:
            patch.setattr("pathlib.Path.rename" if step == "rename" else f"os.{step}", fails)
            with pytest.raises(OSError, match="No space"):
                change()
        assert keyring.key_ids == before
        assert loaded(keyring.path).key_ids == before


def test_keys_are_dropped_when_no_file_is_left_for_them(tmp_path: Path) -> None:
    keyring = Keyring(tmp_path / "keyring")
    first = keyring.for_new_file("one").id
    second = keyring.rotate()
    keyring.for_new_file("two")
    third = keyring.rotate()
    assert keyring.drop_unused() == 0
    keyring.forget("one")
    assert keyring.drop_unused() == 1
    assert keyring.key_ids == (second, third)
    keyring.forget("two")
    keyring.drop_unused()
    assert loaded(keyring.path).key_ids == (third,)
    assert first not in loaded(keyring.path).key_ids


@pytest.mark.parametrize(
    "text",
    ["", "SWMKEY-1-", "SWMKEY-1-short", "SWMKEY-2-" + "A" * 43, "SWMKEY-1-" + "!" * 43,
     "SWMKEY-1-" + "A" * 44],
)  # fmt: skip
def test_what_cannot_be_an_unlock_key_is_said_so(text: str) -> None:
    with pytest.raises(Invalid, match="SWMKEY-1- and 43 characters"):
        LockedGuard(text)


def test_an_unlock_key_looks_as_docker_shows_it() -> None:
    text = format_unlock_key(bytes(range(32)))
    assert text == "SWMKEY-1-AAECAwQFBgcICQoLDA0ODxAREhMUFRYXGBkaGxwdHh8"
    assert parse_unlock_key(text) == bytes(range(32))


async def test_a_locked_log_needs_the_key_and_has_all(tmp_path: Path) -> None:
    guard = LockedGuard(new_unlock_key(RNG))
    async with opened(tmp_path) as (disk, _):
        await disk.write(None, entries(1, 3))
        disk.keyring.set_guard(guard)
        await disk.write(None, entries(4, 5))
    with pytest.raises(Locked):
        await reopened(tmp_path)
    stored = await reopened(tmp_path, Keyring(tmp_path / "keyring", guard))
    assert stored.entries == tuple(entries(1, 5))
