"""Pulling: manifest, configuration, then all layers at the same time."""

import asyncio
import contextlib
from collections.abc import Coroutine, Iterable
from typing import Any

import msgspec

from common.errors import Forbidden, Invalid
from common.references import Reference
from worker.images import manifest as manifests
from worker.images.flights import Flights, Report
from worker.images.layers import Layers
from worker.images.manifest import Descriptor, Index, Manifest, Platform
from worker.images.registry import Repository, as_not_found
from worker.images.store import Layer, Record, Store

_DOWNLOADS = 4  # at the same time, of all pulls together


class Pulled(msgspec.Struct, frozen=True, kw_only=True):
    """What came: the image, and the digest that the name stood for."""

    record: Record
    digest: str
    new: bool


class Puller:
    """Brings images from registries into the store."""

    def __init__(self, store: Store, layers: Layers) -> None:
        self._store = store
        self._layers = layers
        self._flights: Flights[None] = Flights()
        self._slots = asyncio.Semaphore(_DOWNLOADS)

    async def pull(
        self, repository: Repository, reference: Reference, wanted: Platform, report: Report
    ) -> Pulled:
        """The image, in the store but not yet in its index; keep the store busy meanwhile."""
        try:
            digest, manifest_digest, manifest, data = await self._manifest(
                repository, reference, wanted
            )
        except Forbidden as error:
            raise as_not_found(error, reference.familiar_repository) from error
        report({"status": f"Pulling from {reference.path}", "id": reference.target})
        raw = await self._config(repository, manifest)
        config = manifests.parse_config(raw, len(manifest.layers), reference.familiar)
        pairs = list(zip(manifest.layers, config.rootfs.diff_ids, strict=True))
        await together(self._layer(repository, *pair, report) for pair in _unique(pairs))
        await asyncio.to_thread(self._store.put_blob, data)
        await asyncio.to_thread(self._store.put_blob, raw)
        new = manifest.config.digest not in self._store.index.images
        record = await asyncio.to_thread(self._record, manifest, manifest_digest, pairs)
        return Pulled(record=record, digest=digest, new=new)

    async def close(self) -> None:
        await self._flights.close()

    async def _manifest(
        self, repository: Repository, reference: Reference, wanted: Platform
    ) -> tuple[str, str, Manifest, bytes]:
        digest, data = await repository.manifest(reference.target)
        chosen, found = digest, manifests.parse(data, reference.familiar)
        if isinstance(found, Index):
            descriptor = manifests.choose(found, wanted, reference.familiar)
            chosen, data = await repository.manifest(descriptor.digest)
            found = manifests.parse(data, reference.familiar)
        if isinstance(found, Index):
            raise Invalid(f"the index of {reference.familiar} points to another index")
        return digest, chosen, found, data

    async def _config(self, repository: Repository, manifest: Manifest) -> bytes:
        with contextlib.suppress(FileNotFoundError):
            return await asyncio.to_thread(self._store.read_blob, manifest.config.digest)
        return await repository.small_blob(manifest.config)

    async def _layer(
        self, repository: Repository, descriptor: Descriptor, diff_id: str, report: Report
    ) -> None:
        def tell(item: dict[str, Any]) -> None:
            report({**item, "id": descriptor.digest[7:19]})

        if self._store.has_blob(descriptor.digest) and self._store.has_layer(diff_id):
            tell({"status": "Already exists"})
            return
        tell({"status": "Pulling fs layer"})

        async def download(tell_all: Report) -> None:
            async with self._slots:
                await self._download(repository, descriptor, tell_all)

        if not self._store.has_blob(descriptor.digest):
            await self._flights.run(descriptor.digest, download, tell)
        await self._layers.ensure(self._store.blob(descriptor.digest), diff_id, tell)
        tell({"status": "Pull complete"})

    async def _download(self, repository: Repository, descriptor: Descriptor, tell: Report) -> None:
        if self._store.has_blob(descriptor.digest):
            return
        partial = self._store.partial(descriptor.digest)
        await repository.download(descriptor, partial, tell)
        await asyncio.to_thread(self._store.adopt, partial, descriptor.digest)
        tell({"status": "Download complete"})

    def _record(
        self, manifest: Manifest, digest: str, pairs: list[tuple[Descriptor, str]]
    ) -> Record:
        layers = tuple(
            Layer(
                blob=descriptor.digest,
                diff_id=diff_id,
                blob_size=descriptor.size,
                media_type=descriptor.media_type,
            )
            for descriptor, diff_id in pairs
        )
        size = sum(self._store.layer_size(layer.diff_id) for layer in layers)
        return Record(id=manifest.config.digest, layers=layers, manifests=(digest,), size=size)


async def together(jobs: Iterable[Coroutine[Any, Any, None]]) -> None:
    """All at the same time; the first error cancels the others and is raised as it is."""
    try:
        async with asyncio.TaskGroup() as group:
            for job in jobs:
                group.create_task(job)
    except BaseExceptionGroup as errors:
        failure: BaseException = errors
        while isinstance(failure, BaseExceptionGroup):
            failure = failure.exceptions[0]
        raise failure from None


def _unique(pairs: list[tuple[Descriptor, str]]) -> list[tuple[Descriptor, str]]:
    return list({descriptor.digest: (descriptor, diff) for descriptor, diff in pairs}.values())
