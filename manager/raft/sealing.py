"""Encryption at rest: AES-256-GCM with a key of its own for each file.

A file's key is derived (HKDF-SHA-256, RFC 5869) from the member's data key, a random salt that
the file's header holds, and what the file is. So a sealed piece opens only in the file it was
sealed for, and nonces need to differ only within one file.

Nonces are random, 96 bits. They are not counters or offsets on purpose: a write that a power
failure tore is cut off at the next start and another record is written at the same offset, under
the same file key; a nonce made from the offset would come twice with different contents, which
gives GCM's secrets away. Within a file of 2^17 pieces two random nonces are alike with
probability 2^-63; a segment holds fewer.
"""

import hashlib
import hmac
import os

import msgspec

from manager.raft.aead import TAG_BYTES, aes_256_gcm

KEY_BYTES = 32
SALT_BYTES = 32
NONCE_BYTES = 12
OVERHEAD = NONCE_BYTES + TAG_BYTES  # bytes by which sealing makes a piece longer


class NotOpened(Exception):
    """Another key, another context, or other bytes than those that were sealed."""


class DataKey(msgspec.Struct, frozen=True, array_like=True):
    """What a member's files are sealed with."""

    id: str  # follows from the secret, so no keyring can hold a wrong secret under a right id
    secret: bytes

    def __repr__(self) -> str:
        return f"DataKey({self.id})"

    @property
    def is_sound(self) -> bool:
        return len(self.secret) == KEY_BYTES and self.id == _id_of(self.secret)


def new_key() -> DataKey:
    secret = os.urandom(KEY_BYTES)
    return DataKey(_id_of(secret), secret)


def new_salt() -> bytes:
    return os.urandom(SALT_BYTES)


def derive(secret: bytes, salt: bytes, purpose: str) -> bytes:
    """A key for one purpose (HKDF-SHA-256: extract, then the first block of expand)."""
    extracted = hmac.digest(salt, secret, "sha256")
    return hmac.digest(extracted, purpose.encode() + b"\x01", "sha256")


class Sealer:
    """Seals and opens the pieces of one file."""

    def __init__(self, key: bytes) -> None:
        self._aead = aes_256_gcm(key)

    @classmethod
    def of(cls, key: DataKey, salt: bytes, purpose: str) -> "Sealer":
        """`purpose` names the kind of file and which one it is."""
        return cls(derive(key.secret, salt, purpose))

    def seal(self, plain: bytes, context: bytes) -> bytes:
        """`plain` as it may be stored; opens only with the same `context`."""
        nonce = os.urandom(NONCE_BYTES)
        return nonce + self._aead.encrypt(nonce, plain, context)

    def open(self, sealed: bytes, context: bytes) -> bytes:
        """What was sealed. Raises NotOpened."""
        if len(sealed) < OVERHEAD:
            raise NotOpened
        plain = self._aead.decrypt(sealed[:NONCE_BYTES], sealed[NONCE_BYTES:], context)
        if plain is None:
            raise NotOpened
        return plain


def _id_of(secret: bytes) -> str:
    return hashlib.sha256(b"shoal data key" + secret).hexdigest()[:16]
