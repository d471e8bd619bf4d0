"""Placement constraints: `node.labels.disk == ssd`, `node.role != manager`.

A task may go to a node only if all its constraints hold there. Values are compared without
regard to case, as Swarm does. A key that a node does not have counts as "".
"""

import dataclasses
import ipaddress
import re
from collections.abc import Iterable

from common.errors import Invalid
from common.model.node import Node

_KEY = re.compile(r"^[a-z_][a-z0-9\-_.]*$", re.IGNORECASE)
_VALUE = re.compile(r"^[a-z0-9:\-_\s.*()?+\[\]\\^$|/]+$", re.IGNORECASE)

NODE_LABEL = "node.labels."
ENGINE_LABEL = "engine.labels."
_KEYS = (
    "node.id",
    "node.hostname",
    "node.ip",
    "node.role",
    "node.platform.os",
    "node.platform.arch",
)
_ARCHITECTURES = {"x86_64": "amd64", "aarch64": "arm64"}


@dataclasses.dataclass(frozen=True, slots=True)
class Constraint:
    """`key` has (`equal`) or has not `value`."""

    key: str
    equal: bool
    value: str


def parse(text: str) -> Constraint:
    """Read one constraint. Raises Invalid, naming what is wrong with `text`."""
    operator = next((op for op in ("==", "!=") if op in text), "")
    if not operator:
        raise Invalid(f"constraint {text!r} has no == or !=; write KEY==VALUE or KEY!=VALUE")
    key, _, value = (part.strip() for part in text.partition(operator))
    if not _KEY.match(key):
        raise Invalid(f"constraint {text!r}: {key!r} is not a key; use {_known_keys()}")
    if not _VALUE.match(value):
        raise Invalid(f"constraint {text!r}: {value!r} is not a value; use letters and digits")
    if not _is_known(key):
        raise Invalid(f"constraint {text!r}: key {key!r} is not known; use {_known_keys()}")
    if key.lower() == "node.ip":
        _network(text, value)
    return Constraint(key, operator == "==", value)


def parse_all(texts: Iterable[str]) -> tuple[Constraint, ...]:
    """Read all of `texts`. Raises Invalid for the first that is wrong."""
    return tuple(parse(text) for text in texts)


def matches(constraints: Iterable[Constraint], node: Node) -> bool:
    """Whether all of `constraints` hold for `node`."""
    return all(_holds(constraint, node) for constraint in constraints)


def fits(texts: Iterable[str], node: Node) -> bool:
    """`matches` for constraints as a spec has them; one that cannot be read never holds."""
    try:
        return matches(parse_all(texts), node)
    except Invalid:
        return False


def _is_known(key: str) -> bool:
    lower = key.lower()
    return lower in _KEYS or any(
        lower.startswith(prefix) and len(lower) > len(prefix)
        for prefix in (NODE_LABEL, ENGINE_LABEL)
    )


def _known_keys() -> str:
    return ", ".join((*_KEYS, f"{NODE_LABEL}NAME or {ENGINE_LABEL}NAME"))


def _network(text: str, value: str) -> ipaddress.IPv4Network | ipaddress.IPv6Network:
    try:
        return ipaddress.ip_network(value, strict=False)
    except ValueError as error:
        raise Invalid(f"constraint {text!r}: {value!r} is no address or subnet") from error


def _holds(constraint: Constraint, node: Node) -> bool:
    key = constraint.key.lower()
    if key == "node.ip":
        return _in_network(constraint.value, node.status.addr) == constraint.equal
    actual, wanted = _value(key, constraint.key, node), constraint.value
    if key == "node.platform.arch":
        actual, wanted = _architecture(actual), _architecture(wanted)
    return (actual.casefold() == wanted.casefold()) == constraint.equal


def _value(key: str, written: str, node: Node) -> str:
    """What `node` has for `key` (lower case); label names keep their case as `written`."""
    if key.startswith(NODE_LABEL):
        return node.spec.labels.get(written[len(NODE_LABEL) :], "")
    if key.startswith(ENGINE_LABEL):
        return node.description.engine.labels.get(written[len(ENGINE_LABEL) :], "")
    return {
        "node.id": node.id,
        "node.hostname": node.description.hostname,
        "node.role": node.role.value,
        "node.platform.os": node.description.platform.os,
        "node.platform.arch": node.description.platform.architecture,
    }[key]


def _architecture(name: str) -> str:
    return _ARCHITECTURES.get(name.lower(), name)


def _in_network(subnet: str, address: str) -> bool:
    try:
        return ipaddress.ip_address(address) in ipaddress.ip_network(subnet, strict=False)
    except ValueError:
        return False
