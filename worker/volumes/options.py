"""The options of the local volume driver, as Docker has them: what is mounted as a volume. Pure.

type    a file system of the kernel's (tmpfs, nfs, ext4, …), or none for a bind
device  what to mount: a path, host:/path, a block device; any word for a tmpfs
o       mount options, by commas; `bind` or `rbind` stand for a bind mount of the folder `device`
"""

import posixpath
import re

import msgspec

from common.errors import Invalid, NotImplementedHere
from worker.runtime.plan import ATTRIBUTES, PLAIN

_TYPE = re.compile(r"^[a-z0-9][a-z0-9._-]{0,30}$")
_LONGEST = 255  # the kernel takes fewer than 256 bytes of one option
_REMOTE = ("nfs", "nfs4", "cifs", "smb3")
ADDRESS = "addr"


class Source(msgspec.Struct, frozen=True, kw_only=True):
    """What is mounted: a bind if `type` is "bind"."""

    type: str
    device: str
    attributes: int = 0  # of the mount: MOUNT_ATTR_…
    recursive: bool = False
    data: tuple[tuple[str, str | None], ...] = ()  # for the file system

    @property
    def remote(self) -> bool:
        """Whether a machine elsewhere has a say, so that mounting may take long."""
        return self.type in _REMOTE

    @property
    def quick(self) -> bool:
        """Whether mounting it neither waits for a device nor for another machine."""
        return self.type in ("bind", "tmpfs")

    @property
    def address(self) -> str:
        """The host in `addr`, for the kernel knows no names; "" if there is none."""
        return (dict(self.data).get(ADDRESS) or "") if self.remote else ""


def source(options: dict[str, str]) -> Source | None:
    """None for a plain volume, without options. Raises Invalid, NotImplementedHere."""
    if "size" in options:
        raise NotImplementedHere(
            "volume option 'size' needs project quotas, which are not here; for a volume in memory "
            "give type=tmpfs, device=tmpfs and o=size=…"
        )
    if unknown := sorted(set(options) - {"type", "o", "device"}):
        raise Invalid(f"invalid option: {unknown[0]!r}: local volumes have type, o and device")
    if not options:
        return None
    for name in ("type", "device"):
        if not options.get(name):
            raise Invalid(f"missing required option: {name!r}: a volume with options needs it")
    for name, value in options.items():
        if "\0" in value or "\n" in value:
            raise Invalid(f"volume option {name!r}: {value!r} has more than one line")
    words = [word for word in options.get("o", "").split(",") if word]
    if {"bind", "rbind"} & set(words):
        return _bind(options["device"], words)
    return _filesystem(options["type"], options["device"], words)


def _bind(device: str, words: list[str]) -> Source:
    if not device.startswith("/"):
        raise Invalid(f"volume option 'device': {device!r} of a bind must be an absolute path")
    attributes, rest = _split([word for word in words if word not in ("bind", "rbind")])
    if rest:
        raise Invalid(f"volume option 'o': a bind has no option {rest[0]!r}")
    return Source(
        type="bind",
        device=posixpath.normpath(device),
        attributes=attributes,
        recursive="rbind" in words,
    )


def _filesystem(kind: str, device: str, words: list[str]) -> Source:
    if kind == "none":
        raise Invalid("volume option 'type': none needs o=bind, to mount the folder 'device'")
    if not _TYPE.match(kind):
        raise Invalid(f"volume option 'type': {kind!r} is no name of a file system")
    attributes, rest = _split(words)
    pairs = [word.partition("=") for word in rest]
    data = [(name, value if equals else None) for name, equals, value in pairs]
    if "ro" in words:
        data.append(("ro", None))  # a device that cannot be written is mounted no other way
    for text in (device, *rest):
        if len(text.encode()) > _LONGEST:
            raise Invalid(f"volume option {text[:40]!r}… is longer than {_LONGEST} bytes")
    return Source(type=kind, device=device, attributes=attributes, data=tuple(data))


def _split(words: list[str]) -> tuple[int, list[str]]:
    """(attributes of the mount, the other words)."""
    attributes = 0
    for word in words:
        attributes |= ATTRIBUTES.get(word, 0)
    return attributes, [word for word in words if word not in ATTRIBUTES and word not in PLAIN]


def addressed(wanted: Source, address: str) -> Source:
    """With the number of its host."""
    data = tuple((k, address if k == ADDRESS else v) for k, v in wanted.data)
    return msgspec.structs.replace(wanted, data=data)
