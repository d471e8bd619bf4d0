"""A registry's repository: manifests and blobs, checked as they arrive.

OCI distribution specification 1.1, pull.
"""

import asyncio
import hashlib
from pathlib import Path
from typing import IO, Any

import aiohttp
import msgspec

from common.errors import Forbidden, Invalid, NotFound, ShoalError, Unavailable
from common.model.image import RegistryAuth
from common.references import Reference
from worker.images import manifest as manifests
from worker.images.connection import Connection
from worker.images.flights import Report
from worker.images.manifest import Descriptor
from worker.images.store import full_disk

_WRITE = 1024 * 1024  # bytes given to a thread at once
_TRIES = 5
_PAUSE_S = 0.25
_REPORT_EVERY = 512 * 1024


class Repository:
    """One repository of a registry."""

    def __init__(
        self,
        session: aiohttp.ClientSession,
        reference: Reference,
        auth: RegistryAuth | None,
        insecure: tuple[str, ...],
    ) -> None:
        self._reference = reference
        self._path = f"/v2/{reference.path}"
        scope = f"repository:{reference.path}:pull"
        self._connection = Connection(session, reference.host, scope, auth, insecure)

    async def manifest(self, target: str) -> tuple[str, bytes]:
        """Digest and bytes of a manifest or index, by tag or digest. Raises NotFound, …"""
        path = f"{self._path}/manifests/{target}"
        headers = {"Accept": ", ".join(manifests.ACCEPTED)}
        async with self._connection.get(path, headers) as response:
            await self._check(response, f"manifest for {self._reference.familiar}")
            data = await _bounded(response, manifests.MAX_MANIFEST, "a manifest")
        digest = f"sha256:{hashlib.sha256(data).hexdigest()}"
        if target.startswith("sha256:") and digest != target:
            raise Invalid(f"registry {self._reference.host} gave {digest} when asked for {target}")
        return digest, data

    async def small_blob(self, descriptor: Descriptor) -> bytes:
        """A blob that fits in memory, checked. Raises Invalid, NotFound, …"""
        if descriptor.size > manifests.MAX_CONFIG:
            raise Invalid(
                f"the configuration of {self._reference.familiar} is {descriptor.size} bytes; at "
                f"most {manifests.MAX_CONFIG} can be"
            )
        async with self._connection.get(f"{self._path}/blobs/{descriptor.digest}") as response:
            await self._check(response, f"blob {descriptor.digest}")
            data = await _bounded(response, descriptor.size, f"blob {descriptor.digest}")
        found = f"sha256:{hashlib.sha256(data).hexdigest()}"
        if found != descriptor.digest:
            raise self._wrong(descriptor, found)
        return data

    async def download(self, descriptor: Descriptor, path: Path, report: Report) -> None:
        """A blob into a file, going on where an earlier attempt ended. Raises Invalid, …"""
        for left in range(_TRIES - 1, -1, -1):
            try:
                await self._attempt(descriptor, path, report)
            except (aiohttp.ClientError, TimeoutError, ConnectionError) as error:
                if left == 0:
                    raise Unavailable(
                        f"the download from registry {self._reference.host} broke off: "
                        f"{error or type(error).__name__}"
                    ) from error
                await asyncio.sleep(_PAUSE_S * 2 ** (_TRIES - left))
            else:
                return

    async def _attempt(self, descriptor: Descriptor, path: Path, report: Report) -> None:
        growing = await asyncio.to_thread(_Growing, path, descriptor)
        try:
            if growing.size < descriptor.size:
                await self._rest(growing, descriptor, report)
            report({"status": "Verifying Checksum"})
            found = growing.digest
            if found != descriptor.digest:
                await asyncio.to_thread(path.unlink)
                raise self._wrong(descriptor, found)
        finally:
            await asyncio.to_thread(growing.close)

    async def _rest(self, growing: "_Growing", descriptor: Descriptor, report: Report) -> None:
        headers = {"Accept-Encoding": "identity"}
        if growing.size:
            headers["Range"] = f"bytes={growing.size}-"
        path = f"{self._path}/blobs/{descriptor.digest}"
        async with self._connection.get(path, headers) as response:
            await self._check(response, f"blob {descriptor.digest}")
            if growing.size and not _continues(response, growing.size):
                await asyncio.to_thread(growing.restart)
            await self._receive(growing, descriptor, response, report)

    async def _receive(
        self,
        growing: "_Growing",
        descriptor: Descriptor,
        response: aiohttp.ClientResponse,
        report: Report,
    ) -> None:
        pending, told = bytearray(), growing.size
        try:
            async for chunk in response.content.iter_any():
                pending += chunk
                self._check_size(growing.size + len(pending), descriptor)
                if len(pending) >= _WRITE:
                    await asyncio.to_thread(growing.write, bytes(pending))
                    pending.clear()
                if growing.size + len(pending) - told >= _REPORT_EVERY:
                    told = growing.size + len(pending)
                    report(_progress("Downloading", told, descriptor.size))
        except (aiohttp.ClientError, TimeoutError, ConnectionError):
            await asyncio.to_thread(growing.write, bytes(pending))  # the next attempt goes on here
            raise
        await asyncio.to_thread(growing.write, bytes(pending))
        if growing.size < descriptor.size:
            raise ConnectionError(f"{growing.size} of {descriptor.size} bytes came")

    def _check_size(self, size: int, descriptor: Descriptor) -> None:
        if size > descriptor.size:
            raise Invalid(
                f"registry {self._reference.host} sends more than the {descriptor.size} bytes it "
                f"announced of {descriptor.digest}"
            )

    async def _check(self, response: aiohttp.ClientResponse, what: str) -> None:
        """Raises what the status means."""
        if response.status in (200, 206):
            return
        host, name = self._reference.host, self._reference.familiar_repository
        code, message = await _complaint(response)
        if response.status in (401, 403) or code in ("NAME_UNKNOWN", "DENIED", "UNAUTHORIZED"):
            raise denied(name)
        if response.status == 404:
            raise NotFound(f"{what} not found: {message or 'manifest unknown'}")
        if response.status == 429:
            raise Unavailable(f"registry {host}: too many requests: {message or 'try again later'}")
        if response.status >= 500:
            raise Unavailable(f"registry {host} fails with status {response.status}: {message}")
        raise Invalid(f"registry {host} refuses {what} with status {response.status}: {message}")

    def _wrong(self, descriptor: Descriptor, found: str) -> ShoalError:
        return Invalid(
            f"registry {self._reference.host} sent {found} in place of {descriptor.digest}: the "
            "image is damaged or forged"
        )


class _Growing:
    """A file that grows, and the digest of what is in it. Every method blocks."""

    def __init__(self, path: Path, descriptor: Descriptor) -> None:
        self._path = path
        self._hash = hashlib.sha256()
        self.size = 0
        self._file: IO[bytes] = path.open("a+b")
        self._file.seek(0)
        while chunk := self._file.read(_WRITE):
            self._hash.update(chunk)
            self.size += len(chunk)
        if self.size > descriptor.size:
            self.restart()

    @property
    def digest(self) -> str:
        return f"sha256:{self._hash.hexdigest()}"

    def write(self, data: bytes) -> None:
        with full_disk(self._path.parent):
            self._file.write(data)
            self._file.flush()
        self._hash.update(data)
        self.size += len(data)

    def restart(self) -> None:
        self._file.truncate(0)
        self._hash = hashlib.sha256()
        self.size = 0

    def close(self) -> None:
        self._file.close()


def denied(name: str) -> NotFound:
    """Registries don't tell a secret repository from none; nor does Docker."""
    return NotFound(
        f"pull access denied for {name}, repository does not exist or may require 'docker login'"
    )


def as_not_found(error: Forbidden, name: str) -> NotFound:
    """A refused login, as the pull's error."""
    return NotFound(f"{denied(name)}: {error}")


def _continues(response: aiohttp.ClientResponse, offset: int) -> bool:
    start = response.headers.get("Content-Range", "").removeprefix("bytes ").partition("-")[0]
    return response.status == 206 and start == str(offset)


def _progress(status: str, current: int, total: int) -> dict[str, Any]:
    return {"status": status, "progressDetail": {"current": current, "total": total}}


async def _bounded(response: aiohttp.ClientResponse, limit: int, what: str) -> bytes:
    data = bytearray()
    try:
        async for chunk in response.content.iter_any():
            data += chunk
            if len(data) > limit:
                raise Invalid(f"{what} is larger than {limit} bytes")
    except (aiohttp.ClientError, TimeoutError) as error:
        raise Unavailable(f"the registry broke off while sending {what}: {error}") from error
    return bytes(data)


async def _complaint(response: aiohttp.ClientResponse) -> tuple[str, str]:
    """Code and words of a registry's error, if it has any."""
    try:
        body = msgspec.json.decode(await response.content.read(64 * 1024))
        first = body["errors"][0]
        return str(first.get("code", "")), str(first.get("message", ""))[:200]
    except (msgspec.DecodeError, aiohttp.ClientError, TimeoutError, LookupError, TypeError,
            AttributeError):  # fmt: skip
        return "", ""
