"""The images of one node: pulled, loaded, named, unpacked, removed."""

import asyncio
import contextlib
import datetime as dt
import json
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import aiohttp
import msgspec

from common.config import DaemonConfig
from common.errors import Forbidden, NotFound
from common.model.image import RegistryAuth
from common.references import Reference, parse, with_tag
from worker.images import archives, names
from worker.images import manifest as manifests
from worker.images.changes import apply
from worker.images.committing import Note, extended, history
from worker.images.flights import Report
from worker.images.image import Details, Image, details, image
from worker.images.layers import Layers
from worker.images.manifest import Index as ManifestIndex
from worker.images.pull import Puller
from worker.images.registry import Repository, as_not_found
from worker.images.store import Layer, Record, Store, digest_of, full_disk

Events = Callable[[str, str, str, dict[str, str]], None]  # type, action, id, attributes
Rows = list[dict[str, str]]
History = list[dict[str, Any]]
Names = list[str]
_EMPTY = "empty"  # stands for the layers of an image that has none

__all__ = ["Image", "Images"]


class Images:
    """All images of a node. Safe for concurrent use on one event loop.

    `events` gets ("image", action, id or name, attributes) for each change.
    """

    def __init__(self, config: DaemonConfig, events: Events | None = None) -> None:
        self._config = config
        self._events = events
        self._store = Store(config.state_dir / "images")
        self._layers = Layers(self._store)
        self._puller = Puller(self._store, self._layers)
        self._details: dict[str, Details] = {}
        self._writing = asyncio.Lock()
        self._session: aiohttp.ClientSession | None = None

    async def open(self) -> None:
        """Read what is on disk and clean up after a crash. Raises Invalid if it is damaged."""
        await asyncio.to_thread(self._open)

    async def close(self) -> None:
        """Stop all downloads; what has come of them is kept."""
        await self._puller.close()
        await self._layers.close()
        if self._session is not None:
            await self._session.close()

    def get(self, ref: str) -> Image:
        """By name, digest, id or prefix of an id. Raises NotFound."""
        return self._image(names.find(self._store.index, ref).record)

    def list(self) -> list[Image]:
        """All, newest first."""
        found = [self._image(record) for record in self._store.index.images.values()]
        return sorted(found, key=lambda one: (one.created, one.id), reverse=True)

    def history(self, ref: str) -> History:
        """The lines of an image's history, newest first, each with its `size`. Raises NotFound."""
        record = names.find(self._store.index, ref).record
        sizes = [self._store.layer_size(layer.diff_id) for layer in record.layers]
        return history(self._details[record.id].raw, sizes)

    def layer_sizes(self) -> dict[str, int]:
        """Bytes of the files of each layer that is here, by diff id."""
        return {diff_id: self._store.layer_size(diff_id) for diff_id in self._store.index.layers}

    def lower_dirs(self, image_id: str) -> tuple[Path, ...]:
        """The unpacked layers, topmost first, as overlayfs counts. Raises NotFound."""
        record = names.find(self._store.index, image_id).record
        # a layer that occurs twice can be stacked only once, and the upper one hides the lower
        ids = dict.fromkeys(layer.diff_id for layer in reversed(record.layers))
        found = tuple(self._store.layer(diff_id) / "fs" for diff_id in ids)
        return found or (self._store.folder / _EMPTY,)

    async def pull(
        self,
        ref: str,
        auth: RegistryAuth | None = None,
        platform: str = "",
        progress: Report | None = None,
    ) -> Image:
        """Bring an image from its registry. `progress` gets Docker's JSON messages.

        Raises NotFound (also for "access denied"), Unavailable, Invalid.
        """
        reference, wanted = parse(ref), manifests.platform(platform)
        report = progress or _nothing
        async with self._bringing():
            pulled = await self._puller.pull(
                self._repository(reference, auth), reference, wanted, report
            )
            by_digest = reference.with_digest(pulled.digest)
            named = [by_digest] if reference.digest else [reference, by_digest]
            before = self._store.index.tags.get(reference.key)
            await self._add(pulled.record, named)
            pulled_image = self._image(self._store.index.images[pulled.record.id])
        report({"status": f"Digest: {pulled.digest}"})
        same = not pulled.new and (before == pulled.record.id or bool(reference.digest))
        word = "Image is up to date" if same else "Downloaded newer image"
        report({"status": f"Status: {word} for {reference.familiar}"})
        self._tell("pull", reference.familiar, {"name": reference.familiar_repository})
        return pulled_image

    async def resolve(self, ref: str, auth: RegistryAuth | None = None) -> tuple[str, Rows]:
        """What the registry has now: the digest, and the platforms as the API shows them.

        Raises NotFound, Unavailable, Invalid.
        """
        reference = parse(ref)
        repository = self._repository(reference, auth)
        with _refused(reference):
            digest, data = await repository.manifest(reference.target)
            found = manifests.parse(data, reference.familiar)
            if isinstance(found, ManifestIndex):
                there = [one.platform for one in found.manifests if one.platform]
            else:
                raw = await repository.small_blob(found.config)
                config = manifests.parse_config(raw, len(found.layers), reference.familiar)
                there = [config.platform]
        rows = [msgspec.to_builtins(platform) for platform in there]
        return digest, [{key: value for key, value in row.items() if value} for row in rows]

    async def load(self, stream: AsyncIterator[bytes], progress: Report | None = None) -> Names:
        """Take the images of an archive: their names, or ids where they have none.

        Raises Invalid, Unavailable.
        """
        async with self._bringing():
            return await self._load(stream, progress or _nothing)

    async def _load(self, stream: AsyncIterator[bytes], report: Report) -> Names:
        loaded: Names = []
        with self._temporary(2) as (path, expanded):
            await self._receive(stream, path)
            with full_disk(self._store.folder):
                plain = await asyncio.to_thread(archives.expand, path, expanded)
            archive = await asyncio.to_thread(archives.Archive, plain, manifests.platform())
            with archive:
                for found in await asyncio.to_thread(archive.images):
                    loaded += await self._load_one(archive, found, report)
        return loaded

    async def import_image(
        self,
        stream: AsyncIterator[bytes],
        repository: str,
        tag: str = "",
        message: str = "",
        changes: Sequence[str] = (),
    ) -> str:
        """Make an image of a root file system's tar: its id. Raises Invalid, Unavailable."""
        named = [with_tag(repository, tag)] if repository else []
        settings = apply(changes)
        async with self._bringing():
            with self._temporary(1) as (path,):
                await self._receive(stream, path)
                layer = await self._layer_of(path, "")
            raw = _configuration(layer.diff_id, settings, message)
            record = await self._record(raw, [layer])
            await self._add(record, named)
        self._tell("import", record.id, {})
        return record.id

    async def commit(
        self,
        base: str,
        layer: AsyncIterator[bytes],
        settings: dict[str, Any],
        note: Note,
        named: Sequence[Reference] = (),
    ) -> str:
        """An image of `base` with one more layer and other settings: its id.

        Raises NotFound, Invalid, Unavailable.
        """
        async with self._bringing():
            below = names.find(self._store.index, base).record
            with self._temporary(1) as (path,):
                await self._receive(layer, path)
                top = await self._layer_of(path, "")
            raw = extended(self._details[below.id].raw, settings, top.diff_id, note)
            record = await self._record(raw, [*below.layers, top])
            await self._add(record, named)
        return record.id

    async def save(self, refs: Sequence[str]) -> AsyncIterator[bytes]:
        """An archive of images, which `load` and Docker take. Raises NotFound."""
        chosen: dict[str, tuple[Record, list[Reference]]] = {}
        for ref in refs:
            found = names.find(self._store.index, ref)
            entry = chosen.setdefault(found.record.id, (found.record, []))
            if found.key and "@" not in found.key:
                entry[1].append(parse(found.key))
        with self._store.busy():
            chunks = archives.save(self._store, chosen.values())
            try:
                while (chunk := await asyncio.to_thread(next, chunks, None)) is not None:
                    yield chunk
            except FileNotFoundError as error:
                raise NotFound(f"a blob is missing: {error.filename}; pull it again") from error

    async def tag(self, ref: str, repo: str, tag: str = "") -> None:
        """Give an image one more name. Raises NotFound, Invalid."""
        name = with_tag(repo, tag)
        async with self._writing:
            record = names.find(self._store.index, ref).record
            index = names.added(self._store.index, record, [name])
            await asyncio.to_thread(self._store.save, index)
        self._tell("tag", record.id, {"name": name.familiar})

    async def remove(self, ref: str, force: bool, in_use: Callable[[str], Sequence[str]]) -> Rows:
        """Take away a name, and the image with its last name: Docker's list of what went.

        `in_use` gives the ids of the containers made of an image. Raises NotFound, Conflict.
        """
        async with self._writing:
            found = names.find(self._store.index, ref)
            removal = names.removed(self._store.index, found, in_use(found.record.id), force)
            await asyncio.to_thread(self._store.save, removal.index)
        gone = [{"Untagged": name} for name in removal.untagged]
        for name in removal.untagged:
            self._tell("untag", found.record.id, {"name": name})
        if removal.deleted:
            self._details.pop(found.record.id, None)
            gone.append({"Deleted": found.record.id})
            self._tell("delete", found.record.id, {})
            await self._tidy()
        return gone

    # How it is done

    def _open(self) -> None:
        self._store.open()
        (self._store.folder / _EMPTY).mkdir(exist_ok=True)
        for image_id in self._store.index.images:
            self._details[image_id] = details(self._store.read_blob(image_id), image_id)

    def _image(self, record: Record) -> Image:
        index = self._store.index
        tags, digests = (names.names_of(table, record.id) for table in (index.tags, index.digests))
        return image(record, self._details[record.id], tags, digests)

    async def _add(self, record: Record, named: Sequence[Reference]) -> None:
        if record.id not in self._details:
            raw = await asyncio.to_thread(self._store.read_blob, record.id)
            self._details[record.id] = details(raw, named[0].familiar if named else record.id)
        async with self._writing:
            index = names.added(self._store.index, record, named)
            await asyncio.to_thread(self._store.save, index)

    async def _load_one(
        self, archive: archives.Archive, found: archives.ArchivedImage, report: Report
    ) -> Names:
        named = [parse(name) for name in found.names]
        what = found.names[0] if found.names else "the archive"
        config = manifests.parse_config(found.config, len(found.layers), what)
        layers = []
        for member, diff_id in zip(found.layers, config.rootfs.diff_ids, strict=True):
            report({"status": "Loading layer", "id": diff_id[7:19], "progressDetail": {}})
            layers.append(await self._load_layer(archive, member, diff_id))
        record = await self._record(found.config, layers)
        await self._add(record, named)
        self._tell("load", record.id, {"name": found.names[0] if found.names else record.id})
        return [name.familiar for name in named] or [record.id]

    async def _load_layer(self, archive: archives.Archive, member: str, diff_id: str) -> Layer:
        known = self._known_layer(diff_id)
        if known is not None:
            return known
        with self._temporary(1) as (path,):
            with full_disk(self._store.folder):
                await asyncio.to_thread(archive.extract, member, path)
            return await self._layer_of(path, diff_id)

    async def _layer_of(self, path: Path, diff_id: str) -> Layer:
        """Keep a layer's file as a blob and unpack it; an empty diff id is not checked."""
        digest = await asyncio.to_thread(digest_of, path)
        kind = await asyncio.to_thread(archives.media_type, path)
        size = (await asyncio.to_thread(path.stat)).st_size
        await asyncio.to_thread(self._store.adopt, path, digest)
        blob = self._store.blob(digest)
        if diff_id:
            await self._layers.ensure(blob, diff_id, _nothing)
        else:
            diff_id = (await self._layers.unpack(blob)).diff_id
        return Layer(blob=digest, diff_id=diff_id, blob_size=size, media_type=kind)

    def _known_layer(self, diff_id: str) -> Layer | None:
        for record in self._store.index.images.values():
            for layer in record.layers:
                if layer.diff_id == diff_id and self._store.has_blob(layer.blob):
                    return layer
        return None

    async def _record(self, raw: bytes, layers: Sequence[Layer]) -> Record:
        image_id = await asyncio.to_thread(self._store.put_blob, raw)
        sizes = [self._store.layer_size(layer.diff_id) for layer in layers]
        return Record(id=image_id, layers=tuple(layers), size=sum(sizes))

    async def _receive(self, stream: AsyncIterator[bytes], path: Path) -> None:
        with full_disk(self._store.folder):
            out = await asyncio.to_thread(path.open, "wb")
            try:
                async for chunk in stream:
                    await asyncio.to_thread(out.write, chunk)
            finally:
                await asyncio.to_thread(out.close)

    @contextlib.contextmanager
    def _temporary(self, count: int) -> Iterator[tuple[Path, ...]]:
        paths = tuple(self._store.temporary() for _ in range(count))
        try:
            yield paths
        finally:
            for path in paths:
                path.unlink(missing_ok=True)

    @contextlib.asynccontextmanager
    async def _bringing(self) -> AsyncIterator[None]:
        """While an image comes in; what a failure leaves of it is garbage afterwards."""
        try:
            with self._store.busy():
                yield
        finally:
            await self._tidy()

    async def _tidy(self) -> None:
        self._store.collect()  # not in a thread: nobody may begin to use what it throws away
        await asyncio.to_thread(self._store.empty_trash)

    def _repository(self, reference: Reference, auth: RegistryAuth | None) -> Repository:
        if self._session is None:
            self._session = aiohttp.ClientSession(
                auto_decompress=False,  # digests are of the bytes as they are sent
                cookie_jar=aiohttp.DummyCookieJar(),
                headers={"User-Agent": "shoal", "Accept-Encoding": "identity"},
            )
        return Repository(self._session, reference, auth, self._config.insecure_registries)

    def _tell(self, action: str, actor: str, attributes: dict[str, str]) -> None:
        if self._events is not None:
            self._events("image", action, actor, attributes)


@contextlib.contextmanager
def _refused(reference: Reference) -> Iterator[None]:
    try:
        yield
    except Forbidden as error:
        raise as_not_found(error, reference.familiar_repository) from error


def _nothing(item: dict[str, Any]) -> None:
    """Progress that nobody wants."""


def _configuration(diff_id: str, settings: dict[str, Any], message: str) -> bytes:
    platform = manifests.platform()
    now = dt.datetime.now(dt.UTC).isoformat()
    configuration = {
        "architecture": platform.architecture,
        "os": platform.os,
        "created": now,
        "config": settings,
        "rootfs": {"type": "layers", "diff_ids": [diff_id]},
        "history": [{"created": now, "comment": message or "Imported from -"}],
    }
    return json.dumps(configuration).encode()
