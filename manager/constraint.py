"""Placement constraints: `node.labels.disk == ssd`, `node.role != manager`.

A task may go to a node only if all its constraints hold there. Values are compared without
regard to case, as Swarm does. A key that a node does not have counts as "".

Besides Swarm's `==` and `!=` there are

    node.labels.zone in (a, b)      one of these; `notin`: none of these
    node.labels.cores >= 8          as numbers; `>`, `<=`, `<` too; only where the label is a number
    node.hostname =~ web-*          `*` stands for any text, nothing else is special; `!~`: not so
    node.labels.gpu exists          whatever its value; `notexists`: the node has no such label

There are no regular expressions: somebody's pattern must not be able to stop the scheduler. What
stands here takes time in proportion to the lengths of pattern and value.
"""

import dataclasses
import ipaddress
import operator
import re
from collections.abc import Callable, Iterable, Mapping
from decimal import Decimal

from common.errors import Invalid
from common.model.node import Node

_KEY = re.compile(r"^[a-z_][a-z0-9\-_.]*$", re.IGNORECASE)
_VALUE = re.compile(r"^[a-z0-9:\-_\s.*()?+\[\]\\^$|/]+$", re.IGNORECASE)
_NUMBER = re.compile(r"[+-]?[0-9]{1,18}(\.[0-9]{1,18})?", re.ASCII)
_FORM = re.compile(
    r"(?P<key>[^\s<>=~!()]*)\s*"
    r"((?P<sign>>=|<=|>|<|=~|!~)(?P<value>.*)"
    r"|(?<=\s)(?P<set>in|notin)\s*\((?P<values>[^()]*)\)\s*"
    r"|(?<=\s)(?P<is>exists|notexists)\s*)",
    re.DOTALL,
)
_SPECIAL = frozenset("?[]()\\^$|+")  # in patterns elsewhere

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
_COMPARISONS: Mapping[str, Callable[[Decimal, Decimal], bool]] = {
    ">": operator.gt,
    ">=": operator.ge,
    "<": operator.lt,
    "<=": operator.le,
}

Test = Callable[[str | None], bool]  # of what a node has; None: no such label


@dataclasses.dataclass(frozen=True, slots=True)
class Constraint:
    """What `key` must be like."""

    key: str
    test: Test


def parse(text: str) -> Constraint:
    """Read one constraint. Raises Invalid, naming what is wrong with `text`."""
    sign = next((sign for sign in ("==", "!=") if sign in text), "")
    if sign:
        key, _, value = (part.strip() for part in text.partition(sign))
        _check_key(text, key)
        return Constraint(key, _one_of(text, key, [value], sign == "=="))
    form = _FORM.fullmatch(text.strip())
    if form is None:
        raise Invalid(
            f"constraint {text!r} has no == or !=; write KEY==VALUE or KEY!=VALUE, or one of "
            "KEY in (A, B), KEY notin (A, B), KEY>=NUMBER, KEY=~PATTERN, KEY exists, KEY notexists"
        )
    key = form["key"]
    _check_key(text, key)
    if form["set"]:
        values = [value.strip() for value in form["values"].split(",")]
        return Constraint(key, _one_of(text, key, values, form["set"] == "in"))
    if form["is"]:
        return Constraint(key, _exists(text, key, form["is"] == "exists"))
    if form["sign"] in _COMPARISONS:
        return Constraint(key, _compared(text, key, form["sign"], form["value"].strip()))
    return Constraint(key, _like(text, key, form["value"].strip(), form["sign"] == "=~"))


def parse_all(texts: Iterable[str]) -> tuple[Constraint, ...]:
    """Read all of `texts`. Raises Invalid for the first that is wrong."""
    return tuple(parse(text) for text in texts)


def matches(constraints: Iterable[Constraint], node: Node) -> bool:
    """Whether all of `constraints` hold for `node`."""
    return all(constraint.test(_value(constraint.key, node)) for constraint in constraints)


def fits(texts: Iterable[str], node: Node) -> bool:
    """`matches` for constraints as a spec has them; one that cannot be read never holds."""
    try:
        return matches(parse_all(texts), node)
    except Invalid:
        return False


# Keys


def _check_key(text: str, key: str) -> None:
    if not _KEY.match(key):
        raise Invalid(f"constraint {text!r}: {key!r} is not a key; use {_known_keys()}")
    if key.lower() not in _KEYS and not _is_label(key):
        raise Invalid(f"constraint {text!r}: key {key!r} is not known; use {_known_keys()}")


def _is_label(key: str) -> bool:
    lower = key.lower()
    return any(
        lower.startswith(prefix) and len(lower) > len(prefix)
        for prefix in (NODE_LABEL, ENGINE_LABEL)
    )


def _known_keys() -> str:
    return ", ".join((*_KEYS, f"{NODE_LABEL}NAME or {ENGINE_LABEL}NAME"))


def _value(written: str, node: Node) -> str | None:
    """What `node` has for a key; label names keep their case as `written`."""
    key = written.lower()
    if key.startswith(NODE_LABEL):
        return node.spec.labels.get(written[len(NODE_LABEL) :])
    if key.startswith(ENGINE_LABEL):
        return node.description.engine.labels.get(written[len(ENGINE_LABEL) :])
    match key:
        case "node.id":
            return node.id
        case "node.hostname":
            return node.description.hostname
        case "node.ip":
            return node.status.addr
        case "node.role":
            return node.role.value
        case "node.platform.os":
            return node.description.platform.os
        case _:
            return _architecture(node.description.platform.architecture)


def _architecture(name: str) -> str:
    return _ARCHITECTURES.get(name.lower(), name)


# Operators


def _one_of(text: str, key: str, values: list[str], wanted: bool) -> Test:
    for value in values:
        if not _VALUE.match(value):
            raise Invalid(f"constraint {text!r}: {value!r} is not a value; use letters and digits")
    if key.lower() == "node.ip":
        subnets = tuple(_network(text, value) for value in values)
        return lambda found: any(_in_network(net, found) for net in subnets) == wanted
    if key.lower() == "node.platform.arch":
        values = [_architecture(value) for value in values]
    folded = frozenset(value.casefold() for value in values)
    return lambda found: ((found or "").casefold() in folded) == wanted


def _exists(text: str, key: str, wanted: bool) -> Test:
    if not _is_label(key):
        raise Invalid(f"constraint {text!r}: every node has a {key}; only labels may be missing")
    return lambda found: (found is not None) == wanted


def _compared(text: str, key: str, sign: str, value: str) -> Test:
    if not _is_label(key):
        raise Invalid(f"constraint {text!r}: {key} is no number; {sign} is for labels")
    limit = _number(value)
    if limit is None:
        raise Invalid(f"constraint {text!r}: {value!r} is not a number; write 8 or 0.5")
    compare = _COMPARISONS[sign]

    def test(found: str | None) -> bool:
        number = _number(found or "")
        return number is not None and compare(number, limit)

    return test


def _number(text: str) -> Decimal | None:
    return Decimal(text) if _NUMBER.fullmatch(text) else None


def _like(text: str, key: str, pattern: str, wanted: bool) -> Test:
    if key.lower() == "node.ip":
        raise Invalid(f"constraint {text!r}: addresses have no patterns; write node.ip==SUBNET")
    if not _VALUE.match(pattern):
        raise Invalid(f"constraint {text!r}: {pattern!r} is not a pattern; use letters and *")
    if special := _SPECIAL.intersection(pattern):
        raise Invalid(
            f"constraint {text!r}: {min(special)!r} means nothing in a pattern; "
            "only * does, any text"
        )
    first, *rest = pattern.casefold().split("*")
    return lambda found: _matches((found or "").casefold(), first, rest) == wanted


def _matches(value: str, first: str, rest: list[str]) -> bool:
    """Whether `value` begins with `first`, has the others after it in order, ends with the last.

    Taking each at the first place where it stands leaves most for those after it."""
    if not rest:
        return value == first
    *middle, last = rest
    if not value.startswith(first):
        return False
    at, end = len(first), len(value) - len(last)
    for part in middle:
        found = value.find(part, at, end) if at <= end else -1
        if found < 0:
            return False
        at = found + len(part)
    return at <= end and value.endswith(last)


def _network(text: str, value: str) -> ipaddress.IPv4Network | ipaddress.IPv6Network:
    try:
        return ipaddress.ip_network(value, strict=False)
    except ValueError as error:
        raise Invalid(f"constraint {text!r}: {value!r} is no address or subnet") from error


def _in_network(subnet: ipaddress.IPv4Network | ipaddress.IPv6Network, address: str | None) -> bool:
    try:
        return ipaddress.ip_address(address or "") in subnet
    except ValueError:
        return False
