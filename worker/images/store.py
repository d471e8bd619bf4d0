"""What images are on this node's disk: blobs by digest, and an index of names.

    images/
      index.json            names and images; replaced atomically
      blobs/sha256/HEX      manifests, configurations, layers as they came
      ingest/               downloads and uploads under way; a download is kept to be resumed
      layers/HEX/fs, size   unpacked layers by the digest of their tar
      trash/                removed, being deleted

Blobs and layers appear by rename when complete, so what has its final name is whole. What the
index doesn't name is garbage.
"""

import contextlib
import errno
import hashlib
import os
import shutil
import time
from collections.abc import Iterator
from pathlib import Path

import msgspec

from common.errors import Invalid, Unavailable
from common.references import is_digest

_CHUNK = 1024 * 1024
_RESUME_S = 24 * 3600.0  # how long a broken download is kept to be resumed


class Layer(msgspec.Struct, frozen=True, kw_only=True):
    """One layer of an image: the blob as it came, and what it unpacks to."""

    blob: str
    diff_id: str
    blob_size: int
    media_type: str = ""


class Record(msgspec.Struct, frozen=True, kw_only=True):
    """One image."""

    id: str
    layers: tuple[Layer, ...]
    manifests: tuple[str, ...] = ()  # digests of the manifests it came by
    size: int = 0  # bytes of its unpacked files


class Index(msgspec.Struct, frozen=True, kw_only=True):
    """All images and names. `tags` and `digests`: a reference's key to an image id."""

    images: dict[str, Record] = {}
    tags: dict[str, str] = {}
    digests: dict[str, str] = {}

    @property
    def blobs(self) -> set[str]:
        """Digests of all blobs that are needed."""
        found = set(self.images)
        for record in self.images.values():
            found.update(layer.blob for layer in record.layers)
            found.update(record.manifests)
        return found

    @property
    def layers(self) -> set[str]:
        """Diff ids of all layers that are needed."""
        return {layer.diff_id for record in self.images.values() for layer in record.layers}


class Store:
    """The folder and its index. Not for more than one process."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.index = Index()
        self._incoming = 0
        self._serial = 0

    def open(self) -> None:
        """Read the index and throw away what a crash left. Blocks."""
        self.folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        for name in ("blobs/sha256", "ingest", "layers", "trash"):
            (self.folder / name).mkdir(parents=True, exist_ok=True)
        self.index = self._read()
        oldest = time.time() - _RESUME_S
        for path in (self.folder / "ingest").iterdir():
            if not is_digest(f"sha256:{path.name}") or path.stat().st_mtime < oldest:
                self._discard(path)
        for path in (self.folder / "layers").glob(".*"):
            self._discard(path)
        self.collect()
        self.empty_trash()

    def save(self, index: Index) -> None:
        """Make `index` the truth, on disk first. Raises Unavailable when the disk is full."""
        path = self.folder / "index.json"
        temporary = path.with_suffix(".new")
        with full_disk(self.folder), temporary.open("wb") as out:
            out.write(msgspec.json.encode(index))
            out.flush()
            os.fsync(out.fileno())
        temporary.rename(path)
        sync_folder(self.folder)
        self.index = index

    @contextlib.contextmanager
    def busy(self) -> Iterator[None]:
        """While an image comes in, nothing is garbage: what it brings has no name yet."""
        self._incoming += 1
        try:
            yield
        finally:
            self._incoming -= 1

    def blob(self, digest: str) -> Path:
        """Where a blob is, or would be."""
        assert is_digest(digest), digest
        return self.folder / "blobs" / "sha256" / digest.removeprefix("sha256:")

    def has_blob(self, digest: str) -> bool:
        return self.blob(digest).exists()

    def read_blob(self, digest: str) -> bytes:
        """A small blob's bytes. Raises FileNotFoundError."""
        return self.blob(digest).read_bytes()

    def partial(self, digest: str) -> Path:
        """Where a download grows."""
        return self.folder / "ingest" / digest.removeprefix("sha256:")

    def temporary(self, kind: str = "ingest") -> Path:
        """A path of its own, gone after a restart."""
        self._serial += 1
        return self.folder / kind / f".{os.getpid()}-{self._serial}"

    def put_blob(self, data: bytes) -> str:
        """Keep a small blob: its digest. Blocks."""
        digest = f"sha256:{hashlib.sha256(data).hexdigest()}"
        if not self.has_blob(digest):
            temporary = self.temporary()
            with full_disk(self.folder):
                temporary.write_bytes(data)
            self.adopt(temporary, digest)
        return digest

    def adopt(self, path: Path, digest: str) -> None:
        """Make a file, whose digest was checked, the blob. Blocks: syncs."""
        with path.open("rb") as done:
            os.fsync(done.fileno())
        path.rename(self.blob(digest))
        sync_folder(self.blob(digest).parent)

    def layer(self, diff_id: str) -> Path:
        """The folder of an unpacked layer, whether it is there or not."""
        assert is_digest(diff_id), diff_id
        return self.folder / "layers" / diff_id.removeprefix("sha256:")

    def has_layer(self, diff_id: str) -> bool:
        return self.layer(diff_id).exists()

    def layer_size(self, diff_id: str) -> int:
        """Bytes of its files."""
        return int((self.layer(diff_id) / "size").read_text())

    def collect(self) -> None:
        """Put what nobody needs into the trash: quick, for `empty_trash` to delete."""
        if self._incoming:
            return  # whoever brings it in collects afterwards
        blobs, layers = self.index.blobs, self.index.layers
        for path in (self.folder / "blobs" / "sha256").iterdir():
            digest = f"sha256:{path.name}"
            if digest not in blobs:
                self._discard(path)
        for path in (self.folder / "layers").iterdir():
            diff_id = f"sha256:{path.name}"
            if is_digest(diff_id) and diff_id not in layers:
                self._discard(path)

    def empty_trash(self) -> None:
        """Blocks as long as deleting takes."""
        for path in (self.folder / "trash").iterdir():
            if path.is_dir():
                shutil.rmtree(path, ignore_errors=True)
            else:
                path.unlink(missing_ok=True)

    def _discard(self, path: Path) -> None:
        with contextlib.suppress(FileNotFoundError):
            path.rename(self.temporary("trash"))

    def _read(self) -> Index:
        path = self.folder / "index.json"
        try:
            return msgspec.json.decode(path.read_bytes(), type=Index)
        except FileNotFoundError:
            return Index()
        except msgspec.DecodeError as error:
            raise Invalid(
                f"{path} is damaged ({error}): move the folder {self.folder} away; images are "
                "then pulled again"
            ) from error


def sync_folder(folder: Path) -> None:
    """So that a rename in it survives a power loss."""
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


@contextlib.contextmanager
def full_disk(folder: Path) -> Iterator[None]:
    """A full disk as an error that a user understands."""
    try:
        yield
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            raise Unavailable(
                f"no space left on the disk of {folder}: remove images or make room"
            ) from error
        raise


def digest_of(path: Path) -> str:
    """A file's digest. Blocks."""
    total = hashlib.sha256()
    with path.open("rb") as source:
        while chunk := source.read(_CHUNK):
            total.update(chunk)
    return f"sha256:{total.hexdigest()}"
