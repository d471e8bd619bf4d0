"""What a service wishes by its labels `shoal.*` (common/model/labels.py): read and checked.

A label that begins so and is not known is refused: it was meant to do something.
"""

import dataclasses
import datetime as dt
import re
from collections.abc import Callable, Mapping
from typing import Any

from common.errors import Invalid
from common.model import labels
from common.model.service import ServiceSpec

_DURATION = re.compile(r"(\d+(?:\.\d+)?)(ms|s|m|h)")
_SECONDS = {"ms": 0.001, "s": 1.0, "m": 60.0, "h": 3600.0}
_LONGEST = dt.timedelta(days=365)


CONDITIONS = ("started", "healthy", "completed")


@dataclasses.dataclass(frozen=True, slots=True)
class Dependency:
    """Another service, by name, and what has to be so of it."""

    name: str
    condition: str


@dataclasses.dataclass(frozen=True, slots=True)
class Wishes:
    """`loss_grace`: how long a node may be down until its tasks are replaced. `rebalance`: whether
    running tasks may be moved for balance; None: as usual."""

    rebalance: bool | None = None
    depends_on: tuple[Dependency, ...] = ()
    loss_grace: dt.timedelta = dt.timedelta()


_NONE = Wishes()


def of(spec: ServiceSpec) -> Wishes:
    """The wishes of `spec`. Raises Invalid, which a stored spec never does: it was checked."""
    found = {name: text for name, text in spec.labels.items() if name.startswith(labels.PREFIX)}
    return _read(found) if found else _NONE


def _read(given: Mapping[str, str]) -> Wishes:
    values: dict[str, Any] = {}
    for name, text in given.items():
        if name not in _READERS:
            raise Invalid(
                f"label {name[:80]!r} is not known; those that begin with {labels.PREFIX} are "
                f"{', '.join(_READERS)}"
            )
        field, reader = _READERS[name]
        values[field] = reader(name, text.strip())
    return Wishes(**values)


def duration(name: str, text: str) -> dt.timedelta:
    """Text such as 1m30s. Raises Invalid."""
    parts = _DURATION.findall(text)
    if text == "0":
        return dt.timedelta()
    if not parts or "".join(number + unit for number, unit in parts) != text:
        raise Invalid(f"label {name} = {text[:80]!r} is not a duration; write 30s, 1m30s or 2h")
    seconds = sum(float(number) * _SECONDS[unit] for number, unit in parts)
    if seconds > _LONGEST.total_seconds():
        raise Invalid(f"label {name} = {text[:80]!r} is too long; use a year at most")
    return dt.timedelta(seconds=seconds)


def dependencies(name: str, text: str) -> tuple[Dependency, ...]:
    """Text such as db:healthy,migrate:completed. Raises Invalid."""
    found: dict[str, Dependency] = {}
    for part in filter(None, (part.strip() for part in text.split(","))):
        service, _, condition = part.partition(":")
        condition = condition or "started"
        if not service or condition not in CONDITIONS:
            raise Invalid(
                f"label {name}: {part[:80]!r} is not SERVICE or SERVICE:CONDITION, where the "
                f"condition is {', '.join(CONDITIONS)}"
            )
        if service in found:
            raise Invalid(f"label {name}: service {service} is named twice; name it once")
        found[service] = Dependency(service, condition)
    return tuple(found.values())


def switch(name: str, text: str) -> bool:
    """on or off. Raises Invalid."""
    if text not in ("on", "off"):
        raise Invalid(f"label {name} = {text[:80]!r} is not known; use on or off")
    return text == "on"


_READERS: dict[str, tuple[str, Callable[[str, str], Any]]] = {
    labels.DEPENDS_ON: ("depends_on", dependencies),
    labels.LOSS_GRACE: ("loss_grace", duration),
    labels.REBALANCE: ("rebalance", switch),
}
