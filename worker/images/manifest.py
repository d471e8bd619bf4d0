"""Manifests and indexes, of OCI and of Docker: checked on arrival, and the platform chosen."""

import os
from typing import Any

import msgspec

from common.errors import Invalid, NotFound
from common.references import is_digest

OCI_INDEX = "application/vnd.oci.image.index.v1+json"
OCI_MANIFEST = "application/vnd.oci.image.manifest.v1+json"
OCI_CONFIG = "application/vnd.oci.image.config.v1+json"
OCI_LAYER = "application/vnd.oci.image.layer.v1.tar"
DOCKER_INDEX = "application/vnd.docker.distribution.manifest.list.v2+json"
DOCKER_MANIFEST = "application/vnd.docker.distribution.manifest.v2+json"
INDEXES = (OCI_INDEX, DOCKER_INDEX)
ACCEPTED = (OCI_MANIFEST, DOCKER_MANIFEST, *INDEXES)
MAX_MANIFEST = 4 * 1024 * 1024  # bytes; the least a registry must take, says the specification
MAX_CONFIG = 8 * 1024 * 1024
MAX_LAYERS = 500  # what overlayfs can stack
_MACHINES = {"x86_64": "amd64", "aarch64": "arm64", "armv7l": "arm", "i686": "386"}


class Platform(msgspec.Struct, frozen=True, kw_only=True):
    """For what an image was built; `variant` is often empty."""

    os: str = ""
    architecture: str = ""
    variant: str = ""

    def __str__(self) -> str:
        return "/".join(part for part in (self.os, self.architecture, self.variant) if part)

    def suits(self, wanted: "Platform") -> bool:
        """Whether an image for this platform is what `wanted` asks for."""
        same = (self.os, self.architecture) == (wanted.os, wanted.architecture)
        return same and (not wanted.variant or self.variant in ("", wanted.variant))


class Descriptor(msgspec.Struct, frozen=True, kw_only=True, rename="camel"):
    """Points to a blob: what it is, its digest, its size in bytes."""

    media_type: str = ""
    digest: str
    size: int
    platform: Platform | None = None
    annotations: dict[str, str] | None = None
    urls: list[str] | None = None

    def __post_init__(self) -> None:
        if not is_digest(self.digest):
            raise ValueError(f"{self.digest!r} is not a sha256 digest")
        if self.size < 0:
            raise ValueError(f"size {self.size} of {self.digest} is negative")


class Manifest(msgspec.Struct, frozen=True, kw_only=True, rename="camel"):
    """One image for one platform."""

    schema_version: int
    media_type: str = ""
    config: Descriptor
    layers: list[Descriptor]


class Index(msgspec.Struct, frozen=True, kw_only=True, rename="camel"):
    """One image for several platforms; or what an archive holds."""

    schema_version: int
    media_type: str = ""
    manifests: list[Descriptor]


class RootFS(msgspec.Struct, frozen=True, kw_only=True):
    diff_ids: list[str]
    type: str = "layers"


class Config(msgspec.Struct, frozen=True, kw_only=True):
    """The part of an image's configuration that pulling needs; the rest is kept as it came."""

    rootfs: RootFS
    architecture: str = ""
    os: str = "linux"
    variant: str = ""
    created: str | None = None
    config: dict[str, Any] | None = None

    @property
    def platform(self) -> Platform:
        return Platform(os=self.os, architecture=self.architecture, variant=self.variant)


def parse(data: bytes, what: str) -> Manifest | Index:
    """A manifest or an index, told apart by content, for the media type is often wrong.

    Raises Invalid naming `what`.
    """
    if len(data) > MAX_MANIFEST:
        raise Invalid(f"the manifest of {what} is larger than {MAX_MANIFEST} bytes")
    try:
        head: dict[str, Any] = msgspec.json.decode(data, type=dict[str, Any])
        if head.get("schemaVersion") != 2:
            raise Invalid(f"{what} has a manifest of schema {head.get('schemaVersion')}; push it "
                          "again with a newer client, which makes schema 2")  # fmt: skip
        if "manifests" in head:
            return msgspec.convert(head, Index)
        manifest = msgspec.convert(head, Manifest)
    except msgspec.DecodeError as error:
        raise Invalid(f"the manifest of {what} is damaged: {error}") from error
    if len(manifest.layers) > MAX_LAYERS:
        raise Invalid(f"{what} has {len(manifest.layers)} layers; at most {MAX_LAYERS} can be")
    return manifest


def parse_config(data: bytes, layers: int | None, what: str) -> Config:
    """An image configuration that has a diff id for each of the layers. Raises Invalid."""
    if len(data) > MAX_CONFIG:
        raise Invalid(f"the configuration of {what} is larger than {MAX_CONFIG} bytes")
    try:
        config = msgspec.json.decode(data, type=Config)
    except msgspec.DecodeError as error:
        raise Invalid(f"the configuration of {what} is damaged: {error}") from error
    ids = config.rootfs.diff_ids
    if layers is not None and len(ids) != layers:
        raise Invalid(f"{what} has {layers} layers, but its configuration names {len(ids)}")
    for diff_id in ids:
        if not is_digest(diff_id):
            raise Invalid(f"the configuration of {what} names a layer {diff_id!r}, not a digest")
    return config


def choose(index: Index, wanted: Platform, what: str) -> Descriptor:
    """The manifest for a platform. Raises NotFound naming the platforms there are."""
    for descriptor in index.manifests:
        platform = descriptor.platform
        if descriptor.media_type not in INDEXES and (platform is None or platform.suits(wanted)):
            return descriptor
    there = ", ".join(sorted({str(item.platform) for item in index.manifests if item.platform}))
    raise NotFound(
        f"no matching manifest for {wanted} in the manifest list entries of {what}; "
        f"there are: {there or 'none'}"
    )


def platform(text: str = "") -> Platform:
    """`os/architecture[/variant]`, or an architecture alone; default: this machine's.

    Raises Invalid.
    """
    if not text:
        machine = os.uname().machine
        return Platform(os="linux", architecture=_MACHINES.get(machine, machine))
    parts = text.lower().split("/")
    if len(parts) == 1:
        parts = ["linux", *parts]
    if len(parts) > 3 or not all(parts):
        raise Invalid(f"platform {text!r}: write os/architecture, for example linux/amd64")
    architecture = _MACHINES.get(parts[1], parts[1])
    return Platform(os=parts[0], architecture=architecture, variant="".join(parts[2:]))
