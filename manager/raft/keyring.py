"""The data keys of one member, in a file of its own, and who may read that file.

    magic · CRC-32 of the rest · [guard, version, wrapped keys]

The file also says which version of the cluster object asked for its guard, so that an older one,
read again from the log, changes nothing.

The keys are wrapped by a guard: none (the file is for its owner only), or one that needs the
unlock key. A change of guard, a new key or a dropped one replaces the file at once: after a
crash it is as before or as after. The files of the log need not be touched for it.

A key is kept while it is the newest or a file that exists is sealed with it.
"""

import base64
import binascii
import os
import random
import struct
import threading
import zlib
from pathlib import Path
from typing import Protocol

import msgspec

from common.errors import Invalid, Locked, Unauthorized
from manager.raft import files
from manager.raft.errors import KeyMissing, LogDamaged, SealBroken
from manager.raft.sealing import (
    KEY_BYTES,
    SALT_BYTES,
    DataKey,
    NotOpened,
    Sealer,
    derive,
    new_key,
    new_salt,
)

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
        """Raises Unauthorized if this guard is not the one that wrapped."""
        ...


class PlainGuard:
    """No lock: who can read the file has the keys."""

    name = _PLAIN

    def __eq__(self, other: object) -> bool:
        return isinstance(other, PlainGuard)

    def __hash__(self) -> int:
        return 0

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
            raise Unauthorized("swarm could not be unlocked: invalid key provided") from error

    def __eq__(self, other: object) -> bool:
        return isinstance(other, LockedGuard) and other._secret == self._secret

    def __hash__(self) -> int:
        return hash(self._secret)

    def _sealer(self, salt: bytes) -> Sealer:
        return Sealer(derive(self._secret, salt, "shoal keyring"))


def new_unlock_key(rng: random.Random) -> str:
    """`rng` must be one that cannot be guessed."""
    return format_unlock_key(rng.randbytes(KEY_BYTES))


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


def guard_of(unlock_key: str) -> KeyGuard:
    """No lock for "". Raises Invalid."""
    return LockedGuard(unlock_key) if unlock_key else PlainGuard()


class _File(msgspec.Struct, frozen=True, array_like=True):
    guard: str
    version: int  # of the cluster object that asked for the guard
    wrapped: bytes  # _Keys


class _Blob(msgspec.Struct, frozen=True, array_like=True):
    """What `Keyring.seal` gives."""

    key_id: str
    salt: bytes
    sealed: bytes


class _Keys(msgspec.Struct, frozen=True, array_like=True):
    keys: tuple[DataKey, ...]  # the last is the current one


class Keyring:
    """Blocking, for any thread. Nothing is written before the first key is needed."""

    def __init__(self, path: Path, guard: KeyGuard | None = None) -> None:
        self.path = path
        self._guard: KeyGuard = guard or PlainGuard()
        self._version = 0
        self._keys: tuple[DataKey, ...] = ()
        self._users: dict[str, str] = {}  # ids of keys, by the names of the files sealed with them
        self._lock = threading.RLock()

    @property
    def current_id(self) -> str:
        """Of the key that new files are sealed with; "" before there is one."""
        return self._keys[-1].id if self._keys else ""

    def is_current(self, name: str) -> bool:
        """Whether the file `name` is sealed with the key that new files are."""
        return self._users.get(name) == self.current_id

    @property
    def key_ids(self) -> tuple[str, ...]:
        return tuple(key.id for key in self._keys)

    @property
    def is_locked(self) -> bool:
        """Whether the file can be read only with an unlock key."""
        return self._guard.name == _LOCKED

    def load(self) -> None:
        """Read the keys, if there is a file.

        Raises Locked if it needs an unlock key and there is none, Unauthorized if it needs another,
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
            self._version = found.version

    def for_new_file(self, name: str) -> DataKey:
        """The current key, which stays for as long as the file is not forgotten."""
        with self._lock:
            if not self._keys:
                self._replace((new_key(),), self._guard, self._version)
            key = self._keys[-1]
            self._users[name] = key.id
            return key

    def for_file(self, path: Path, key_id: str) -> DataKey:
        """The key with which the file at `path` is sealed. Raises KeyMissing."""
        for key in self._keys:
            if key.id == key_id:
                return key
        raise KeyMissing(path, key_id, self.path)

    def found(self, name: str, key_id: str) -> None:
        """At the start there is a file `name`, whose key must stay; "" for none."""
        with self._lock:
            self._users[name] = key_id

    def renamed(self, before: str, after: str) -> None:
        """The file has another name now; what had that name is gone."""
        with self._lock:
            self._users[after] = self._users.pop(before)

    def forget(self, name: str) -> None:
        """The file is gone for good."""
        with self._lock:
            self._users.pop(name, None)

    def rotate(self) -> str:
        """Make another key, for the files made from now on; its id."""
        with self._lock:
            self._replace((*self._keys, new_key()), self._guard, self._version)
            return self.current_id

    def drop_unused(self) -> int:
        """Drop the older keys with which no file is sealed any more; how many.

        Only once every file that exists was made through this keyring, or `found`.
        """
        with self._lock:
            used = set(self._users.values())
            kept = tuple(key for key in self._keys[:-1] if key.id in used) + self._keys[-1:]
            dropped = len(self._keys) - len(kept)
            if dropped:
                self._replace(kept, self._guard, self._version)
            return dropped

    def would_change(self, guard: KeyGuard, version: int) -> bool:
        """Whether `set_guard` would do anything to speak of. Does not block."""
        return version >= self._version and guard != self._guard

    def set_guard(self, guard: KeyGuard, version: int = 0) -> bool:
        """Lock, unlock, or lock with another unlock key; the one before is of no use then.

        Does nothing if what the file says was asked for by a later `version`. Whether it is now
        locked and was not: then there is also a new data key, for those before have lain open. It
        comes with the lock, so that no crash between the two can leave an open key the current one.
        """
        with self._lock:
            if version < self._version:
                return False
            was_locked = self.is_locked
            locked = guard.name == _LOCKED and not was_locked
            keys = (*self._keys, new_key()) if locked or not self._keys else self._keys
            self._replace(keys, guard, version)
            return locked

    def seal(self, name: str, plain: bytes) -> bytes:
        """`plain` for a new version of the small file `name`. Tell `sealed` once that is there."""
        key = self.for_new_file(name + ".new")
        salt = new_salt()
        sealed = Sealer.of(key, salt, f"shoal file {name}").seal(plain, b"")
        return msgspec.msgpack.encode(_Blob(key.id, salt, sealed))

    def sealed(self, name: str) -> None:
        """The file holds what `seal` gave; the key of its version before may go."""
        self.renamed(name + ".new", name)

    def open(self, path: Path, sealed: bytes) -> bytes:
        """What was sealed for the file at `path`. Raises KeyMissing, SealBroken."""
        try:
            blob = msgspec.msgpack.decode(sealed, type=_Blob)
        except msgspec.MsgspecError as error:
            raise LogDamaged(
                path, 0, f"what is sealed in it is not what was written: {error}"
            ) from error
        sealer = Sealer.of(self.for_file(path, blob.key_id), blob.salt, f"shoal file {path.name}")
        try:
            plain = sealer.open(blob.sealed, b"")
        except NotOpened as error:
            raise SealBroken(path, 0, blob.key_id) from error
        self.found(path.name, blob.key_id)
        return plain

    def _replace(self, keys: tuple[DataKey, ...], guard: KeyGuard, version: int) -> None:
        """First on disk, then here: a key is never used that could be lost."""
        self.path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        wrapped = guard.wrap(msgspec.msgpack.encode(_Keys(keys)))
        body = msgspec.msgpack.encode(_File(guard.name, version, wrapped))
        files.create(self.path, (_MAGIC, _CRC.pack(zlib.crc32(body)), body))
        self._keys, self._guard, self._version = keys, guard, version


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
