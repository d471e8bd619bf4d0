"""An image as the rest of the daemon sees it."""

import datetime as dt

import msgspec

from common.errors import Invalid
from common.model.base import ZERO_TIME
from common.model.image import ImageConfig
from worker.images import manifest as manifests
from worker.images.store import Record


class Image(msgspec.Struct, frozen=True, kw_only=True):
    """`id` is the digest of the configuration; `layers` are diff ids, lowest first."""

    id: str
    repo_tags: tuple[str, ...]
    repo_digests: tuple[str, ...]
    config: ImageConfig
    architecture: str
    os: str
    variant: str
    created: dt.datetime
    size: int  # bytes of its unpacked files
    layers: tuple[str, ...]
    raw: bytes  # the whole configuration as it came


class Details(msgspec.Struct, frozen=True, kw_only=True):
    """What a configuration says."""

    config: ImageConfig
    platform: manifests.Platform
    created: dt.datetime
    raw: bytes


def details(raw: bytes, what: str) -> Details:
    """Read a configuration. Raises Invalid naming `what` and the field."""
    parsed = manifests.parse_config(raw, None, what)
    given = {key: value for key, value in (parsed.config or {}).items() if value is not None}
    try:
        config = msgspec.convert(given, ImageConfig)
    except msgspec.ValidationError as error:
        raise Invalid(f"the configuration of {what} is damaged: {error}") from error
    return Details(
        config=config, platform=parsed.platform, created=_moment(parsed.created), raw=raw
    )


def image(record: Record, found: Details, tags: list[str], digests: list[str]) -> Image:
    """Record, configuration and names together."""
    return Image(
        id=record.id,
        repo_tags=tuple(sorted(tags)),
        repo_digests=tuple(sorted(digests)),
        config=found.config,
        architecture=found.platform.architecture,
        os=found.platform.os,
        variant=found.platform.variant,
        created=found.created,
        size=record.size,
        layers=tuple(layer.diff_id for layer in record.layers),
        raw=found.raw,
    )


def _moment(text: str | None) -> dt.datetime:
    try:
        moment = msgspec.convert(text or "", dt.datetime, strict=False)
    except msgspec.ValidationError:
        return ZERO_TIME
    return moment if moment.tzinfo else moment.replace(tzinfo=dt.UTC)
