"""AES-256-GCM through Python's own libcrypto: known answers, another implementation, threads."""

import ctypes
import gc
import os
import subprocess
import sys
import threading
from typing import Any

import pytest

from manager.raft import aead
from manager.raft.aead import TAG_BYTES, Aead, CryptoFailed, Evp, Libcrypto, Packaged, aes_256_gcm

_KEY = bytes.fromhex("feffe9928665731c6d6a8f9467308308" * 2)
_NONCE = bytes.fromhex("cafebabefacedbaddecaf888")
_PLAIN = bytes.fromhex(
    "d9313225f88406e5a55909c5aff5269a86a7a9531534f7da2e4c303d8a318a72"
    "1c3c0c95956809532fcf0e2449a6b525b16aedf5aa0de657ba637b391aafd255"
)
_SEALED = bytes.fromhex(
    "522dc1f099567d07f47f37a32a84427d643a8cdcbfe5c0c97598a2bd2555d1aa"
    "8cb08e48590dbb3da7b08b1056828838c5f61e6393ba7a0abcc9f662898015ad"
)
_CONTEXT = bytes.fromhex("feedfacedeadbeeffeedfacedeadbeefabaddad2")

# Test cases 13 to 16 of McGrew and Viega, The Galois/Counter Mode of Operation
KNOWN = [
    (bytes(32), bytes(12), b"", b"", b"", "530f8afbc74536b9a963b4f1c4cb738b"),
    (
        bytes(32), bytes(12), bytes(16), b"",
        bytes.fromhex("cea7403d4d606b6e074ec5d3baf39d18"), "d0d1c8a799996bf0265b98b5d48ab919",
    ),
    (_KEY, _NONCE, _PLAIN, b"", _SEALED, "b094dac5d93471bdec1a502270e3cc6c"),
    (_KEY, _NONCE, _PLAIN[:60], _CONTEXT, _SEALED[:60], "76fc6ece0f4e1768cddf8853bb2d551b"),
]  # fmt: skip


def _library() -> Libcrypto:
    found = aead.find_libcrypto()
    if found is None:
        pytest.skip("this Python's libcrypto cannot be reached by ctypes")
    return found


def _evp(key: bytes) -> Evp:
    return Evp(_library(), key)


@pytest.mark.parametrize("make", [_evp, Packaged])
@pytest.mark.parametrize(("key", "nonce", "plain", "context", "sealed", "tag"), KNOWN)
def test_known_answers(
    make: Any, key: bytes, nonce: bytes, plain: bytes, context: bytes, sealed: bytes, tag: str
) -> None:
    gcm: Aead = make(key)
    whole = sealed + bytes.fromhex(tag)
    assert gcm.encrypt(nonce, plain, context) == whole
    assert gcm.decrypt(nonce, whole, context) == plain


def test_each_opens_what_the_other_sealed() -> None:
    key = os.urandom(32)
    ours, theirs = _evp(key), Packaged(key)
    for size in (0, 1, 15, 16, 17, 255, 4096, 70_001):
        for context in (b"", b"kind and place", bytes(300)):
            nonce, plain = os.urandom(12), os.urandom(size)
            sealed = ours.encrypt(nonce, plain, context)
            assert sealed == theirs.encrypt(nonce, plain, context)
            assert theirs.decrypt(nonce, sealed, context) == plain
            assert ours.decrypt(nonce, sealed, context) == plain


@pytest.mark.parametrize("make", [_evp, Packaged])
def test_nothing_changed_or_cut_off_is_opened(make: Any) -> None:
    gcm: Aead = make(os.urandom(32))
    nonce = os.urandom(12)
    sealed = gcm.encrypt(nonce, b"secret", b"here")
    for position in range(len(sealed)):
        changed = bytearray(sealed)
        changed[position] ^= 0x80
        assert gcm.decrypt(nonce, bytes(changed), b"here") is None
        assert gcm.decrypt(nonce, sealed[:position], b"here") is None
    assert gcm.decrypt(os.urandom(12), sealed, b"here") is None
    assert gcm.decrypt(nonce, sealed, b"there") is None
    # and a failure leaves nothing behind that the next call, or `ssl`, would stumble over
    assert gcm.decrypt(nonce, sealed, b"here") == b"secret"
    assert _library().forget_errors() == "no reason given"


def test_what_c_would_misread_is_refused() -> None:
    gcm = _evp(bytes(32))
    with pytest.raises(ValueError, match="32 bytes, not 16"):
        _evp(bytes(16))
    for nonce in (bytes(11), bytes(13)):
        with pytest.raises(ValueError, match="a nonce has 12 bytes"):
            gcm.encrypt(nonce, b"", b"")
        with pytest.raises(ValueError, match="a nonce has 12 bytes"):
            gcm.decrypt(nonce, bytes(TAG_BYTES), b"")

    class Huge(bytes):
        def __len__(self) -> int:
            return 1 << 31

    with pytest.raises(OverflowError):
        gcm.encrypt(bytes(12), Huge(), b"")
    with pytest.raises(OverflowError):
        gcm.encrypt(bytes(12), b"", Huge())
    with pytest.raises(OverflowError):
        gcm.decrypt(bytes(12), Huge(), b"")


def test_threads_share_one_key() -> None:
    key = os.urandom(32)
    gcm, other = _evp(key), Packaged(key)
    wrong: list[int] = []
    began = threading.Barrier(4)

    def work(number: int) -> None:
        began.wait()
        plain, context = bytes([number]) * (300 + number), bytes([number])
        for turn in range(300):
            nonce = bytes([number]) * 8 + turn.to_bytes(4, "big")
            sealed = gcm.encrypt(nonce, plain, context)
            if other.decrypt(nonce, sealed, context) != plain:
                wrong.append(turn)
            if gcm.decrypt(nonce, sealed, context) != plain:
                wrong.append(turn)

    threads = [threading.Thread(target=work, args=(number,)) for number in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert wrong == []


class _Spied:
    """The library, with what is made and freed counted, and one call that can fail."""

    def __init__(self, library: Libcrypto, failing: bool = False) -> None:
        self._library = library
        self.live: set[int] = set()
        self.encrypt = library.encrypt
        self.decrypt = library.decrypt
        if failing:
            self.encrypt = (library.encrypt[0], lambda *arguments: 0, library.encrypt[2])

    def __getattr__(self, name: str) -> Any:
        return getattr(self._library, name)

    def new(self) -> int:
        context: int = self._library.new()
        self.live.add(context)
        return context

    def free(self, context: int) -> None:
        self.live.remove(context)
        self._library.free(context)


def test_contexts_with_their_keys_are_freed() -> None:
    spied = _Spied(_library())
    gcm = Evp(spied, bytes(32))  # type: ignore[arg-type]
    assert gcm.encrypt(bytes(12), b"x", b"")
    assert len(spied.live) == 2
    del gcm
    gc.collect()
    assert spied.live == set()


def test_a_refused_call_is_an_error_and_never_plain_text() -> None:
    gcm = Evp(_Spied(_library(), failing=True), bytes(32))  # type: ignore[arg-type]
    with pytest.raises(CryptoFailed):
        gcm.encrypt(bytes(12), b"secret", b"")


def test_without_a_libcrypto_the_package_does_it(monkeypatch: pytest.MonkeyPatch) -> None:
    nothing = ctypes.PyDLL(None)

    def elsewhere(name: str | None) -> ctypes.PyDLL:
        if name is None:
            raise OSError("no such library")
        return nothing

    sealed = aes_256_gcm(_KEY).encrypt(_NONCE, _PLAIN, b"")
    monkeypatch.setattr(ctypes, "PyDLL", elsewhere)
    monkeypatch.setattr("_hashlib.__file__", None)
    aead.find_libcrypto.cache_clear()
    try:
        gcm = aes_256_gcm(_KEY)
    finally:
        aead.find_libcrypto.cache_clear()
    assert isinstance(gcm, Packaged)
    assert gcm.encrypt(_NONCE, _PLAIN, b"") == sealed


def test_sealing_does_not_load_the_package() -> None:
    """Its 9 MB are what all this is for."""
    _library()
    code = (
        "import sys; from manager.raft.sealing import Sealer; "
        "assert Sealer(bytes(32)).open(Sealer(bytes(32)).seal(b'x', b''), b'') == b'x'; "
        "assert not [name for name in sys.modules if name.startswith('cryptography')]"
    )
    subprocess.run([sys.executable, "-c", code], check=True, timeout=60)
