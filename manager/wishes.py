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
from manager import cron
from manager.cron import Cron

_DURATION = re.compile(r"(\d+(?:\.\d+)?)(ms|s|m|h)")
_SECONDS = {"ms": 0.001, "s": 1.0, "m": 60.0, "h": 3600.0}
_TARGET = re.compile(r"(\d{1,12}(?:\.\d{1,6})?)([kmg%]?)b?")
_SIZES = {"": 1, "k": 1 << 10, "m": 1 << 20, "g": 1 << 30}
REPLICAS_MAX = 100_000
_LONGEST = dt.timedelta(days=365)


CONDITIONS = ("started", "healthy", "completed")


@dataclasses.dataclass(frozen=True, slots=True)
class Dependency:
    """Another service, by name, and what has to be so of it."""

    name: str
    condition: str


OVERLAPS = ("forbid", "allow", "replace")
HISTORY_MAX = 100


@dataclasses.dataclass(frozen=True, slots=True)
class Schedule:
    """When a job runs. `overlap`: what a run that is due does to one that has not ended; `history`:
    how many earlier runs' tasks are kept."""

    cron: Cron
    overlap: str = "forbid"
    history: int = 3


@dataclasses.dataclass(frozen=True, slots=True)
class Target:
    """CPUs or bytes for each replica; or, with `percent`, a share of its limit or reservation."""

    amount: float
    percent: bool = False


@dataclasses.dataclass(frozen=True, slots=True)
class Autoscale:
    """Between how many replicas, and by what. `cooldown`: for how long fewer must have done."""

    least: int
    most: int
    cpu: Target | None = None
    memory: Target | None = None
    cooldown: dt.timedelta = dt.timedelta(minutes=3)


@dataclasses.dataclass(frozen=True, slots=True)
class Wishes:
    """`loss_grace`: how long a node may be down until its tasks are replaced. `rebalance`: whether
    running tasks may be moved for balance; None: as usual."""

    rebalance: bool | None = None
    schedule: Schedule | None = None
    autoscale: Autoscale | None = None
    depends_on: tuple[Dependency, ...] = ()
    loss_grace: dt.timedelta = dt.timedelta()


_NONE = Wishes()


def of(spec: ServiceSpec) -> Wishes:
    """The wishes of `spec`. One that was stored by a version which checked less has none: what
    reads it here are the leader's loops, which must not end over it."""
    try:
        return read(spec)
    except Invalid:
        return _NONE


def read(spec: ServiceSpec) -> Wishes:
    """The same, strictly. Raises Invalid."""
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
    values["schedule"] = _schedule(values)
    values["autoscale"] = _autoscale(values)
    return Wishes(**values)


def check(spec: ServiceSpec) -> None:
    """Raises Invalid for labels that are wrong, by themselves or for such a service."""
    found = read(spec)
    _check_autoscale(spec)
    if found.schedule is not None and not spec.mode.is_job:
        raise Invalid(
            f"label {labels.SCHEDULE} is for jobs, and this service is {spec.mode.name}: "
            "use mode replicated-job or global-job"
        )


def _check_autoscale(spec: ServiceSpec) -> None:
    rule = of(spec).autoscale
    if rule is None:
        return
    if spec.mode.name != "replicated":
        raise Invalid(f"label {labels.AUTOSCALE} is for replicated services only")
    wanted = spec.task_template.resources
    amounts = [each for each in (wanted.limits, wanted.reservations) if each] if wanted else []
    for name, target, known in (
        (labels.AUTOSCALE_CPU, rule.cpu, any(each.nano_cpus for each in amounts)),
        (labels.AUTOSCALE_MEMORY, rule.memory, any(each.memory_bytes for each in amounts)),
    ):
        if target is not None and target.percent and not known:
            raise Invalid(
                f"label {name}: a percentage is of the limit or reservation, and the service has "
                "none; give one, or an amount for each replica"
            )


def _autoscale(values: dict[str, Any]) -> Autoscale | None:
    """Takes out of `values` what belongs together."""
    names = ("cpu", "memory", "cooldown")
    more = {name: values.pop(name) for name in names if name in values}
    found: tuple[int, int] | None = values.pop("bounds", None)
    if found is None:
        if more:
            raise Invalid(f"label {labels.AUTOSCALE} is missing: between how many replicas?")
        return None
    if not more.keys() & {"cpu", "memory"}:
        raise Invalid(
            f"label {labels.AUTOSCALE} has no target: give {labels.AUTOSCALE_CPU} or "
            f"{labels.AUTOSCALE_MEMORY}"
        )
    return Autoscale(*found, **more)


def _schedule(values: dict[str, Any]) -> Schedule | None:
    """Takes out of `values` what belongs together."""
    more = {name: values.pop(name) for name in ("overlap", "history") if name in values}
    found: Cron | None = values.pop("cron", None)
    if found is None and more:
        raise Invalid(f"label {labels.SCHEDULE} is missing: it says when the job runs")
    return None if found is None else Schedule(found, **more)


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


def schedule(name: str, text: str) -> Cron:
    """A cron expression. Raises Invalid."""
    return cron.parse(text)


def bounds(name: str, text: str) -> tuple[int, int]:
    """Text such as 2-10. Raises Invalid."""
    least, _, most = text.partition("-")
    if not (least.isdecimal() and most.isdecimal()) or not (
        1 <= int(least[:9]) <= int(most[:9]) <= REPLICAS_MAX
    ):
        raise Invalid(f"label {name} = {text[:80]!r} is not valid; write MIN-MAX, as in 2-10")
    return int(least), int(most)


def target(name: str, text: str) -> Target:
    """CPUs such as 0.5, bytes such as 200m, or a percentage such as 60%. Raises Invalid."""
    found = _TARGET.fullmatch(text.lower())
    units = _SIZES if name == labels.AUTOSCALE_MEMORY else {"": 1}
    if not found or (found[2] != "%" and found[2] not in units) or not float(found[1]):
        example = "200m" if name == labels.AUTOSCALE_MEMORY else "0.5"
        raise Invalid(f"label {name} = {text[:80]!r} is not valid; write {example} or 60%")
    if found[2] == "%":
        return Target(float(found[1]), percent=True)
    return Target(float(found[1]) * units[found[2]])


def overlap(name: str, text: str) -> str:
    """Raises Invalid."""
    if text not in OVERLAPS:
        raise Invalid(f"label {name} = {text[:80]!r} is not known; use {', '.join(OVERLAPS)}")
    return text


def history(name: str, text: str) -> int:
    """Raises Invalid."""
    if not text.isdecimal() or int(text[:9]) > HISTORY_MAX:
        raise Invalid(f"label {name} = {text[:80]!r} is not a number from 0 to {HISTORY_MAX}")
    return int(text)


_READERS: dict[str, tuple[str, Callable[[str, str], Any]]] = {
    labels.DEPENDS_ON: ("depends_on", dependencies),
    labels.LOSS_GRACE: ("loss_grace", duration),
    labels.AUTOSCALE: ("bounds", bounds),
    labels.AUTOSCALE_CPU: ("cpu", target),
    labels.AUTOSCALE_MEMORY: ("memory", target),
    labels.AUTOSCALE_COOLDOWN: ("cooldown", duration),
    labels.SCHEDULE: ("cron", schedule),
    labels.SCHEDULE_OVERLAP: ("overlap", overlap),
    labels.SCHEDULE_HISTORY: ("history", history),
    labels.REBALANCE: ("rebalance", switch),
}
