"""What every stored or served object is made of, and how its fields are named in JSON.

One definition serves the HTTP API and the Raft log. Fields are Python names here and Docker's
names in JSON and MessagePack. A default means "left out when equal to it", so fields that Docker
always sends have none, or a factory.
"""

import datetime as dt
from typing import Any, TypeVar

import msgspec

# Words Docker writes in its own way. Anything else is capitalised.
_WORDS = {
    word.lower(): word
    for word in ("API", "CA", "CPU", "CSI", "DNS", "GID", "ID", "IP", "IPAM", "LB", "NCPU", "OS")
}
_WORDS |= {word.lower(): word for word in ("PID", "TLS", "TTY", "UID", "URL", "VIP")}
_WORDS |= {"cas": "CAs", "cpus": "CPUs", "ids": "IDs", "ips": "IPs"}


def docker_name(field: str) -> str:
    """`node_id` becomes `NodeID`; Docker's few exceptions are spelled at their field."""
    return "".join(_WORDS.get(word, word.capitalize()) for word in field.split("_"))


class Model(
    msgspec.Struct,
    frozen=True,
    kw_only=True,
    rename=docker_name,
    omit_defaults=True,
    gc=False,
):
    """Immutable. Change one with `msgspec.structs.replace`, never in place.

    Values made of finished values cannot form cycles, so the cyclic collector need not look at
    them: of a cluster with 100,000 services it would look at half a million, for half a second.
    """


class Version(Model, frozen=True, kw_only=True):
    """The Raft index of the entry that last wrote an object; 0 before it is committed."""

    index: int = msgspec.field(default_factory=int)


ZERO_TIME = dt.datetime(1, 1, 1, tzinfo=dt.UTC)  # how Docker's JSON writes "never"


class Object(Model, frozen=True, kw_only=True):
    """What the store adds to every stored thing."""

    id: str
    version: Version = msgspec.field(default_factory=Version)
    created_at: dt.datetime = msgspec.field(default_factory=lambda: ZERO_TIME)
    updated_at: dt.datetime = msgspec.field(default_factory=lambda: ZERO_TIME)


class Annotations(Model, frozen=True, kw_only=True):
    """The user's name and labels for a thing."""

    name: str = msgspec.field(default_factory=str)
    labels: dict[str, str] = msgspec.field(default_factory=lambda: {})


M = TypeVar("M")
_json = msgspec.json.Encoder(order="deterministic")


def to_json(value: object) -> bytes:
    """`value` as Docker's JSON."""
    return _json.encode(value)


def to_builtins(value: object) -> Any:
    """`value` as plain dicts and lists with Docker's names, times as text."""
    return msgspec.to_builtins(value)


def from_builtins(kind: type[M], value: object) -> M:
    """The reverse of `to_builtins`; raises msgspec.ValidationError naming the field."""
    return msgspec.convert(value, kind)
