"""AES-256-GCM by the libcrypto that Python's own `hashlib` and `ssl` have loaded.

`cryptography` brings a second OpenSSL, which takes 9 MB of a manager for this alone; it is used
where that libcrypto cannot be found (an interpreter that hides it in itself). A call through ctypes
costs 0.3 µs, so that sealing takes 3.4 µs instead of 0.7 for a record of 256 bytes and 4.3 instead
of 1.2 for 4 KiB; 256 KiB take 0.21 ms instead of 0.16.

`PyDLL` keeps the interpreter's lock during a call, as `cryptography` does: giving it up for some
microseconds costs more than that.
"""

import contextlib
import ctypes
import functools
import threading
from ctypes import c_char_p, c_int, c_ulong, c_void_p
from typing import Any, Protocol

TAG_BYTES = 16
MAX_BYTES = 2**31 - 1 - TAG_BYTES  # EVP takes lengths as int

_KEPT_BYTES = 512 << 10  # of room for output, once there was a piece that needed it

# openssl/evp.h, the same since 1.0.1
_SET_TAG, _GET_TAG = 0x11, 0x10


class Aead(Protocol):
    """One key. For any thread."""

    def encrypt(self, nonce: bytes, plain: bytes, context: bytes) -> bytes:
        """Ciphertext and tag."""
        ...

    def decrypt(self, nonce: bytes, sealed: bytes, context: bytes) -> bytes | None:
        """The plain text; None if the tag does not fit key, nonce, `sealed` and context."""
        ...


def aes_256_gcm(key: bytes) -> Aead:
    """With nonces of 12 bytes, tags of 16."""
    library = find_libcrypto()
    return Packaged(key) if library is None else Evp(library, key)


class CryptoFailed(Exception):
    """libcrypto refused a call that cannot be wrong; says what it says."""


class Libcrypto:
    """The functions of OpenSSL 1.1 or later that are needed. Raises OSError, AttributeError."""

    def __init__(self, library: ctypes.CDLL) -> None:
        def function(name: str, result: Any, *arguments: Any) -> Any:
            found = getattr(library, name)
            found.restype, found.argtypes = result, arguments
            return found

        initial = (c_void_p, c_void_p, c_void_p, c_char_p, c_char_p)
        update = (c_void_p, c_void_p, c_void_p, c_char_p, c_int)
        self.cipher = function("EVP_aes_256_gcm", c_void_p)()
        self.new = function("EVP_CIPHER_CTX_new", c_void_p)
        self.free = function("EVP_CIPHER_CTX_free", None, c_void_p)
        self.control = function("EVP_CIPHER_CTX_ctrl", c_int, c_void_p, c_int, c_int, c_void_p)
        self.encrypt = (
            function("EVP_EncryptInit_ex", c_int, *initial),
            function("EVP_EncryptUpdate", c_int, *update),
            function("EVP_EncryptFinal_ex", c_int, c_void_p, c_void_p, c_void_p),
        )
        self.decrypt = (
            function("EVP_DecryptInit_ex", c_int, *initial),
            function("EVP_DecryptUpdate", c_int, *update),
            function("EVP_DecryptFinal_ex", c_int, c_void_p, c_void_p, c_void_p),
        )
        self._get_error = function("ERR_get_error", c_ulong)
        self._error_text = function("ERR_error_string_n", None, c_ulong, c_char_p, ctypes.c_size_t)

    def forget_errors(self) -> str:
        """Empty this thread's queue of errors, which `ssl` reads too; the first one."""
        first = self._get_error()
        while self._get_error():
            pass
        text = ctypes.create_string_buffer(256)
        self._error_text(first, text, len(text))
        return text.value.decode(errors="replace") if first else "no reason given"


@functools.cache
def find_libcrypto() -> Libcrypto | None:
    """Looked up through `_hashlib`, so it is the one in use, whatever its name or version."""
    import _hashlib

    # Without a file the module is part of the interpreter, and libcrypto perhaps with it.
    with contextlib.suppress(OSError, AttributeError):
        return Libcrypto(ctypes.PyDLL(getattr(_hashlib, "__file__", None)))
    return None


class Evp:
    """Holds the expanded key in contexts of libcrypto, which wipes them when they are freed."""

    def __init__(self, library: Libcrypto, key: bytes) -> None:
        self._contexts: list[int] = []
        self._library = library
        if len(key) != 32:
            raise ValueError(f"a key of AES-256 has 32 bytes, not {len(key)}")
        self._encrypting = self._context(library.encrypt[0], key)
        self._decrypting = self._context(library.decrypt[0], key)
        # A context holds one message at a time, and ctypes lets other threads in between calls.
        self._lock = threading.Lock()
        self._count = c_int()
        self._at_count = ctypes.addressof(self._count)
        self._out = ctypes.create_string_buffer(4096)

    def __del__(self) -> None:
        for context in self._contexts:
            self._library.free(context)

    def encrypt(self, nonce: bytes, plain: bytes, context: bytes) -> bytes:
        """Ciphertext and tag. Raises CryptoFailed, OverflowError for more than 2 GiB."""
        size = _checked(nonce, plain, context)
        begin, update, end = self._library.encrypt
        state = self._encrypting
        with self._lock:
            room = self._room(size + TAG_BYTES)
            at = ctypes.addressof(room)
            if not (
                begin(state, None, None, None, nonce) == 1
                and update(state, None, self._at_count, context, len(context)) == 1
                and update(state, at, self._at_count, plain, size) == 1
                and end(state, at + size, self._at_count) == 1
                and self._library.control(state, _GET_TAG, TAG_BYTES, at + size) == 1
            ):
                raise CryptoFailed(self._library.forget_errors())
            return ctypes.string_at(at, size + TAG_BYTES)

    def decrypt(self, nonce: bytes, sealed: bytes, context: bytes) -> bytes | None:
        """The plain text, or None. Raises CryptoFailed, OverflowError."""
        size = _checked(nonce, sealed, context) - TAG_BYTES
        if size < 0:
            return None
        begin, update, end = self._library.decrypt
        tag = ctypes.create_string_buffer(sealed[size:], TAG_BYTES)
        state = self._decrypting
        with self._lock:
            room = self._room(size)
            at = ctypes.addressof(room)
            if not (
                begin(state, None, None, None, nonce) == 1
                and update(state, None, self._at_count, context, len(context)) == 1
                and update(state, at, self._at_count, sealed, size) == 1
                and self._library.control(state, _SET_TAG, TAG_BYTES, ctypes.addressof(tag)) == 1
            ):
                raise CryptoFailed(self._library.forget_errors())
            if end(state, at + size, self._at_count) != 1:
                self._library.forget_errors()
                return None
            return ctypes.string_at(at, size)

    def _room(self, size: int) -> "ctypes.Array[ctypes.c_char]":
        """As many bytes or more. Fresh memory for each piece costs more than sealing it."""
        if size <= len(self._out):
            return self._out
        room = ctypes.create_string_buffer(size)
        if size <= _KEPT_BYTES:
            self._out = room
        return room

    def _context(self, begin: Any, key: bytes) -> int:
        context: int | None = self._library.new()
        if not context:
            raise MemoryError
        self._contexts.append(context)
        if begin(context, self._library.cipher, None, key, None) != 1:
            raise CryptoFailed(self._library.forget_errors())
        return context


class Packaged:
    """The same by `cryptography`."""

    def __init__(self, key: bytes) -> None:
        from cryptography.hazmat.primitives.ciphers.aead import AESGCM

        self._aead = AESGCM(key)

    def encrypt(self, nonce: bytes, plain: bytes, context: bytes) -> bytes:
        """Ciphertext and tag."""
        return self._aead.encrypt(nonce, plain, context)

    def decrypt(self, nonce: bytes, sealed: bytes, context: bytes) -> bytes | None:
        """The plain text, or None."""
        from cryptography.exceptions import InvalidTag

        try:
            return self._aead.decrypt(nonce, sealed, context)
        except InvalidTag:
            return None


def _checked(nonce: bytes, data: bytes, context: bytes) -> int:
    """The length of `data`. What C would read past, or cut off, is refused here."""
    if len(nonce) != 12:
        raise ValueError(f"a nonce has 12 bytes, not {len(nonce)}")
    if max(len(data), len(context)) > MAX_BYTES:
        raise OverflowError("more than 2 GiB cannot be sealed in one piece")
    return len(data)
