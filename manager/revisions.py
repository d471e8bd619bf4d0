"""The specs that a service had: what `service history` shows and `rollback --to` brings back.

A revision begins with each change of the spec but that of the replicas alone: a service that is
scaled often would else soon remember nothing but that. The present spec stands in the service;
earlier ones are kept packed beside it, so that what is written with every change of the service,
and stands in each snapshot, stays small: at most 10 of them, and at most 32 KiB.
"""

import datetime as dt
import zlib

import msgspec
from msgspec.structs import replace

from common.errors import Invalid
from common.model.service import Revision, Service, ServiceSpec

KEPT = 10
KEPT_BYTES = 32 * 1024

_encoder = msgspec.msgpack.Encoder()
_decoder = msgspec.msgpack.Decoder(ServiceSpec)


def revised(service: Service, spec: ServiceSpec, cause: str, now: dt.datetime) -> Service:
    """`service` with `spec`, and the one that it had remembered. `cause`: what changed it."""
    if replace(spec, mode=service.spec.mode) == service.spec:
        return replace(service, spec=spec)
    old = present(service)
    kept = (*service.revisions, replace(old, packed=_pack(service.spec)))
    number = Revision(number=old.number + 1, at=now, cause=cause)
    return replace(service, spec=spec, revision=number, revisions=_newest(kept))


def present(service: Service) -> Revision:
    """The revision that `service` is in; its spec is that of the service."""
    if service.revision is not None:
        return service.revision
    return Revision(number=1, at=service.created_at, cause="create")


def history(service: Service) -> list[tuple[Revision, ServiceSpec]]:
    """The present revision and the earlier ones that are kept, newest first."""
    earlier = [(one, _decoder.decode(zlib.decompress(one.packed))) for one in service.revisions]
    return [(present(service), service.spec), *reversed(earlier)]


def spec_of(service: Service, number: int) -> ServiceSpec:
    """The spec of an earlier revision. Raises Invalid, naming those that there are."""
    name, now = service.spec.name, present(service).number
    if number == now:
        raise Invalid(f"service {name} is in revision {number} already; name an earlier one")
    for one in service.revisions:
        if one.number == number:
            return _decoder.decode(zlib.decompress(one.packed))
    kept = ", ".join(str(one.number) for one in service.revisions) or "none"
    raise Invalid(f"service {name} has no earlier revision {number}; kept: {kept}")


def _pack(spec: ServiceSpec) -> bytes:
    return zlib.compress(_encoder.encode(spec))


def _newest(kept: tuple[Revision, ...]) -> tuple[Revision, ...]:
    kept = kept[-KEPT:]
    while sum(len(one.packed) for one in kept) > KEPT_BYTES:
        kept = kept[1:]
    return kept
