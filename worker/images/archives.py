"""Archives of images: what `docker save` writes, in its own form and as an OCI layout.

Everything here blocks; the caller uses a thread.
"""

import hashlib
import json
import tarfile
from collections.abc import Iterable, Iterator
from pathlib import Path
from types import TracebackType
from typing import Any

import msgspec

from common.errors import Invalid
from common.references import Reference
from worker.images import manifest as manifests
from worker.images.manifest import Descriptor, Index, Platform
from worker.images.store import Record, Store
from worker.images.unpack import SafeTarInfo, decompressed

_CHUNK = 1024 * 1024
_MAX_MEMBERS = 20_000
_NAME, _REF_NAME = "io.containerd.image.name", "org.opencontainers.image.ref.name"


class ArchivedImage(msgspec.Struct, frozen=True, kw_only=True):
    """One image in an archive: its configuration, its layers by member name, its names."""

    config: bytes
    layers: list[str]
    names: list[str]


class _Entry(msgspec.Struct, frozen=True, rename="pascal"):
    """One image in Docker's `manifest.json`."""

    config: str
    layers: list[str]
    repo_tags: list[str] | None = None


class Archive:
    """An archive on disk, read in any order. Raises Invalid when it isn't one."""

    def __init__(self, path: Path, wanted: Platform) -> None:
        self._wanted = wanted
        try:
            self._tar = tarfile.open(path, "r:", tarinfo=SafeTarInfo)  # noqa: SIM115
            self._members = dict(self._scan())
        except tarfile.TarError as error:
            raise Invalid(f"the image archive is damaged: {error}") from error

    def __enter__(self) -> "Archive":
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._tar.close()

    def images(self) -> list[ArchivedImage]:
        """What it holds."""
        try:
            if "manifest.json" in self._members:
                entries = msgspec.json.decode(self._read("manifest.json"), type=list[_Entry])
                return [self._docker_image(entry) for entry in entries]
            if "index.json" in self._members:
                return list(self._oci_images())
        except msgspec.DecodeError as error:
            raise Invalid(f"the image archive is damaged: {error}") from error
        raise Invalid(
            "the archive holds no image: neither manifest.json nor index.json is in it (a root "
            "file system is taken by import)"
        )

    def extract(self, member: str, target: Path) -> str:
        """A member into a file: its digest."""
        total = hashlib.sha256()
        source = self._open(member)
        with target.open("wb") as out:
            while chunk := source.read(_CHUNK):
                total.update(chunk)
                out.write(chunk)
        digest = f"sha256:{total.hexdigest()}"
        self._check_name(member, digest)
        return digest

    def _scan(self) -> Iterator[tuple[str, tarfile.TarInfo]]:
        for count, member in enumerate(self._tar):
            if count >= _MAX_MEMBERS:
                raise Invalid(
                    f"the archive has more than {_MAX_MEMBERS} members, so it is no archive of "
                    "images (a root file system is taken by import)"
                )
            yield _clean(member.name), member

    def _docker_image(self, entry: _Entry) -> ArchivedImage:
        return ArchivedImage(
            config=self._read(entry.config, manifests.MAX_CONFIG),
            layers=[_clean(layer) for layer in entry.layers],
            names=entry.repo_tags or [],
        )

    def _oci_images(self) -> Iterator[ArchivedImage]:
        index = manifests.parse(self._read("index.json"), "the archive")
        if not isinstance(index, Index):
            raise Invalid("the archive's index.json is not an index")
        for descriptor in index.manifests:
            yield self._oci_image(descriptor)

    def _oci_image(self, descriptor: Descriptor) -> ArchivedImage:
        notes = descriptor.annotations or {}
        names = [name for name in (notes.get(_NAME) or notes.get(_REF_NAME, ""),) if ":" in name]
        found = manifests.parse(self._blob(descriptor), descriptor.digest)
        if isinstance(found, Index):
            chosen = manifests.choose(found, self._wanted, descriptor.digest)
            found = manifests.parse(self._blob(chosen), chosen.digest)
        if isinstance(found, Index):
            raise Invalid(f"index {descriptor.digest} in the archive is nested too deeply")
        config = self._read(_blob_name(found.config.digest), manifests.MAX_CONFIG)
        layers = [_blob_name(layer.digest) for layer in found.layers]
        return ArchivedImage(config=config, layers=layers, names=names)

    def _blob(self, descriptor: Descriptor) -> bytes:
        return self._read(_blob_name(descriptor.digest))

    def _read(self, name: str, limit: int = manifests.MAX_MANIFEST) -> bytes:
        data: bytes = self._open(name).read(limit + 1)
        if len(data) > limit:
            raise Invalid(f"{name} in the archive is larger than {limit} bytes")
        self._check_name(name, f"sha256:{hashlib.sha256(data).hexdigest()}")
        return data

    def _open(self, name: str) -> Any:
        try:
            source = self._tar.extractfile(self._members[_clean(name)])
        except (KeyError, RecursionError, tarfile.TarError) as error:
            raise Invalid(f"the image archive lacks {name!r}") from error
        if source is None:
            raise Invalid(f"{name!r} in the image archive is not a file")
        return source

    def _check_name(self, name: str, digest: str) -> None:
        """A blob of an OCI layout is named by its digest."""
        clean = _clean(name)
        if clean.startswith("blobs/sha256/") and clean != _blob_name(digest):
            raise Invalid(f"{name} in the archive is damaged: its digest is {digest}")


def expand(source: Path, target: Path) -> Path:
    """The archive without its compression: `target`, or `source` if it has none."""
    with source.open("rb") as packed:
        head = packed.read(4)
        packed.seek(0)
        if head[:2] != b"\x1f\x8b" and head != b"\x28\xb5\x2f\xfd":
            return source
        with target.open("wb") as out:
            for chunk in decompressed(packed):
                out.write(chunk)
    return target


def media_type(path: Path) -> str:
    """A layer's, by its first bytes."""
    with path.open("rb") as source:
        head = source.read(4)
    if head[:2] == b"\x1f\x8b":
        return f"{manifests.OCI_LAYER}+gzip"
    return f"{manifests.OCI_LAYER}+zstd" if head == b"\x28\xb5\x2f\xfd" else manifests.OCI_LAYER


def save(store: Store, images: Iterable[tuple[Record, list[Reference]]]) -> Iterator[bytes]:
    """An archive of these images under these names, chunk by chunk, each blob once."""
    entries, descriptors, blobs = [], [], dict[str, bytes | None]()
    for record, names in images:
        blobs[record.id] = None
        blobs.update((layer.blob, None) for layer in record.layers)
        text = _manifest(store, record)
        digest = f"sha256:{hashlib.sha256(text).hexdigest()}"
        blobs[digest] = text
        entries.append(
            {
                "Config": _blob_name(record.id),
                "RepoTags": [name.familiar for name in names] or None,
                "Layers": [_blob_name(layer.blob) for layer in record.layers],
            }
        )
        base = {"mediaType": manifests.OCI_MANIFEST, "digest": digest, "size": len(text)}
        notes = [{_NAME: name.key, _REF_NAME: name.tag} for name in names]
        descriptors += [{**base, "annotations": note} for note in notes] or [base]
    for digest, data in blobs.items():
        yield from _member(_blob_name(digest), data, store.blob(digest))
    index = {"schemaVersion": 2, "mediaType": manifests.OCI_INDEX, "manifests": descriptors}
    yield from _member("index.json", json.dumps(index).encode())
    yield from _member("oci-layout", b'{"imageLayoutVersion": "1.0.0"}')
    yield from _member("manifest.json", json.dumps(entries).encode())
    yield bytes(2 * tarfile.BLOCKSIZE)


def _manifest(store: Store, record: Record) -> bytes:
    layers = [
        {"mediaType": layer.media_type, "digest": layer.blob, "size": layer.blob_size}
        for layer in record.layers
    ]
    config = {
        "mediaType": manifests.OCI_CONFIG,
        "digest": record.id,
        "size": store.blob(record.id).stat().st_size,
    }
    head = {"schemaVersion": 2, "mediaType": manifests.OCI_MANIFEST}
    return json.dumps({**head, "config": config, "layers": layers}).encode()


def _member(name: str, data: bytes | None, path: Path | None = None) -> Iterator[bytes]:
    info = tarfile.TarInfo(name)
    if data is None:
        assert path is not None
        with path.open("rb") as source:
            info.size = path.stat().st_size
            yield info.tobuf()
            yield from iter(lambda: source.read(_CHUNK), b"")
    else:
        info.size = len(data)
        yield info.tobuf()
        yield data
    yield bytes(-info.size % tarfile.BLOCKSIZE)


def _blob_name(digest: str) -> str:
    return "blobs/sha256/" + digest.removeprefix("sha256:")


def _clean(name: str) -> str:
    return "/".join(part for part in name.split("/") if part not in ("", "."))
