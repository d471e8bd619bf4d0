"""The data keys of one member, in a file of its own, and who may read that file.

    magic · CRC-32 of the rest · [guard, wrapped keys]

The keys are wrapped by a guard: none (the file is for its owner only), or one that needs the
unlock key. A change of guard, a new key or a dropped one replaces the file at once: after a
crash it is as before or as after. The files of the log need not be touched for it.

A key is kept while it is the newest or a file that exists is sealed with it.
"""

import base64
import binascii
import os
import struct
import threading
import zlib
from pathlib import Path
from typing import Protocol

import msgspec

from common.errors import Forbidden, Invalid, Locked
from manager.raft import files
from manager.raft.errors import KeyMissing, LogDamaged
from manager.raft.sealing import KEY_BYTES, SALT_BYTES, DataKey, NotOpened, Sealer, derive, new_key

UNLOCK_PREFIX = "SWMKEY-1-"
_MAGIC = b"SHOALKEYRING 1\n"
_CRC = struct.Struct(">I")
_PLAIN, _LOCKED = "plain", "locked"


class KeyGuard(Protocol):
    """What stands between the keyring's file and the keys in it."""

    @property
    def name(self) -> str:
        """As the file says it."""
        ...

    def wrap(self, secret: bytes) -> bytes: ...

    def unwrap(self, wrapped: bytes) -> bytes:
        """Raises Forbidden if this guard is not the one that wrapped."""
        ...


class PlainGuard:
    """No lock: who can read the file has the keys."""

    name = _PLAIN

    def wrap(self, secret: bytes) -> bytes:
        return secret

    def unwrap(self, wrapped: bytes) -> bytes:
        return wrapped


class LockedGuard:
    """Autolock: the keys can be had only with the unlock key, which no disk holds in the clear."""

    name = _LOCKED

    def __init__(self, unlock_key: str) -> None:
        """Raises Invalid for what cannot be an unlock key."""
        self._secret = parse_unlock_key(unlock_key)

    def wrap(self, secret: bytes) -> bytes:
        salt = os.urandom(SALT_BYTES)
        return salt + self._sealer(salt).seal(secret, _MAGIC)

    def unwrap(self, wrapped: bytes) -> bytes:
        salt, sealed = wrapped[:SALT_BYTES], wrapped[SALT_BYTES:]
        try:
            return self._sealer(salt).open(sealed, _MAGIC)
        except NotOpened as error:
            raise Forbidden("swarm could not be unlocked: invalid key provided") from error

    def _sealer(self, salt: bytes) -> Sealer:
        return Sealer(derive(self._secret, salt, "shoal keyring"))


def new_unlock_key() -> str:
    return format_unlock_key(os.urandom(KEY_BYTES))


def format_unlock_key(secret: bytes) -> str:
    """As docker shows it: base64 without padding."""
    return UNLOCK_PREFIX + base64.b64encode(secret).decode().rstrip("=")


def parse_unlock_key(text: str) -> bytes:
    """The secret in an unlock key. Raises Invalid."""
    if text.startswith(UNLOCK_PREFIX):
        try:
            secret = base64.b64decode(text.removeprefix(UNLOCK_PREFIX) + "=", validate=True)
        except (binascii.Error, ValueError):
            secret = b""
        if len(secret) == KEY_BYTES:
            return secret
    raise Invalid(
        f"the unlock key must be {UNLOCK_PREFIX} and 43 characters of base64; "
        "`swarm unlock-key` on a manager that is not locked shows it"
    )


class _File(msgspec.Struct, frozen=True, array_like=True):
    guard: str
    wrapped: bytes  # _Keys


class _Keys(msgspec.Struct, frozen=True, array_like=True):
    keys: tuple[DataKey, ...]  # the last is the current one


class Keyring:
    """Blocking, for any thread. Nothing is written before the first key is needed."""

    def __init__(self, path: Path, guard: KeyGuard | None = None) -> None:
        self.path = path
        self._guard: KeyGuard = guard or PlainGuard()
        self._keys: tuple[DataKey, ...] = ()
        self._users: dict[str, str] = {}  # ids of keys, by the names of the files sealed with them
        self._lock = threading.RLock()

    @property
    def current_id(self) -> str:
        """Of the key that new files are sealed with; "" before there is one."""
        return self._keys[-1].id if self._keys else ""

    @property
    def key_ids(self) -> tuple[str, ...]:
        return tuple(key.id for key in self._keys)

    @property
    def is_locked(self) -> bool:
        """Whether the file can be read only with an unlock key."""
        return self._guard.name == _LOCKED

    def load(self) -> None:
        """Read the keys, if there is a file.

        Raises Locked if it needs an unlock key and there is none, Forbidden if it needs another,
        LogDamaged if it is not what was written.
        """
        with self._lock:
            found = read(self.path)
            if found is None:
                return
            if found.guard == _PLAIN:
                # Also when we have an unlock key: a crash came before the file was locked.
                self._guard = PlainGuard()
            elif self._guard.name != found.guard:
                raise Locked
            self._keys = _parse(self.path, self._guard.unwrap(found.wrapped))

    def for_new_file(self, name: str) -> DataKey:
        """The current key, which stays for as long as the file is not forgotten."""
        with self._lock:
            if not self._keys:
                self._replace((new_key(),), self._guard)
            key = self._keys[-1]
            self._users[name] = key.id
            return key

    def for_file(self, path: Path, key_id: str) -> DataKey:
        """The key of a file that exists. Raises KeyMissing."""
        with self._lock:
            for key in self._keys:
                if key.id == key_id:
                    self._users[path.name] = key_id
                    return key
        raise KeyMissing(path, key_id, self.path)

    def forget(self, name: str) -> None:
        """The file is gone for good."""
        with self._lock:
            self._users.pop(name, None)

    def rotate(self) -> str:
        """Make another key, for the files made from now on; its id."""
        with self._lock:
            self._replace((*self._keys, new_key()), self._guard)
            return self.current_id

    def drop_unused(self) -> int:
        """Drop the older keys with which no file is sealed any more; how many.

        Only once every file that exists was asked for or made through this keyring.
        """
        with self._lock:
            used = set(self._users.values())
            kept = tuple(key for key in self._keys[:-1] if key.id in used) + self._keys[-1:]
            dropped = len(self._keys) - len(kept)
            if dropped:
                self._replace(kept, self._guard)
            return dropped

    def set_guard(self, guard: KeyGuard) -> None:
        """Lock, unlock, or lock with another unlock key; the one before is of no use then."""
        with self._lock:
            keys = self._keys or (new_key(),)
            self._replace(keys, guard)

    def _replace(self, keys: tuple[DataKey, ...], guard: KeyGuard) -> None:
        """First on disk, then here: a key is never used that could be lost."""
        self.path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        wrapped = guard.wrap(msgspec.msgpack.encode(_Keys(keys)))
        body = msgspec.msgpack.encode(_File(guard.name, wrapped))
        files.create(self.path, (_MAGIC, _CRC.pack(zlib.crc32(body)), body))
        self._keys, self._guard = keys, guard


def read(path: Path) -> _File | None:
    """What is in the file without its keys; None if there is none. Raises LogDamaged."""
    try:
        content = path.read_bytes()
    except FileNotFoundError:
        return None
    begin = len(_MAGIC) + _CRC.size
    if content[: len(_MAGIC)] != _MAGIC or len(content) < begin:
        raise LogDamaged(path, 0, "not a keyring, or of another version")
    [crc] = _CRC.unpack_from(content, len(_MAGIC))
    if zlib.crc32(content[begin:]) != crc:
        raise LogDamaged(path, len(_MAGIC), "the keyring is not what was written")
    try:
        return msgspec.msgpack.decode(content[begin:], type=_File)
    except msgspec.MsgspecError as error:
        raise LogDamaged(path, begin, str(error)) from error


def _parse(path: Path, plain: bytes) -> tuple[DataKey, ...]:
    try:
        keys = msgspec.msgpack.decode(plain, type=_Keys).keys
    except msgspec.MsgspecError as error:
        raise LogDamaged(path, len(_MAGIC), f"the keyring holds no keys: {error}") from error
    if not keys or not all(key.is_sound for key in keys):
        raise LogDamaged(path, len(_MAGIC), "a key in the keyring is not what was made")
    return keys


def is_locked(path: Path) -> bool:
    """Whether the keyring at `path` needs an unlock key. Raises LogDamaged."""
    found = read(path)
    return found is not None and found.guard == _LOCKED
