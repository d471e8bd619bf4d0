"""Docker's filters: `{"name": ["we"], "label": ["tier=web"]}`.

Each filter is a test with one wanted value. The values of one filter are alternatives, except
labels, all of which must be there; all filters must hold.
"""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import TypeVar

from common.errors import Invalid

T = TypeVar("T")

Filters = Mapping[str, Sequence[str]]
Test = Callable[[T, str], bool]

_ALL_MUST_HOLD = frozenset({"label", "node.label"})
_TRUE = ("1", "true", "t", "yes")
_FALSE = ("0", "false", "f", "no")


def select(items: Iterable[T], filters: Filters, tests: Mapping[str, Test[T]]) -> list[T]:
    """The items that pass. Raises Invalid for a filter that is not in `tests`."""
    return list(passing(items, filters, tests))


def passing(items: Iterable[T], filters: Filters, tests: Mapping[str, Test[T]]) -> Iterator[T]:
    """Like `select`, one by one."""
    for name in filters:
        if name not in tests:
            known = ", ".join(sorted(name for name in tests if not name.startswith("_")))
            raise Invalid(f"filter {name!r} is not known; there are {known}")
    return (item for item in items if _passes(item, filters, tests))


def _passes(item: T, filters: Filters, tests: Mapping[str, Test[T]]) -> bool:
    for name, values in filters.items():
        combine = all if name in _ALL_MUST_HOLD else any
        if values and not combine(tests[name](item, value) for value in values):
            return False
    return True


def has_label(labels: Mapping[str, str], wanted: str) -> bool:
    """Whether `labels` have `wanted`, which is NAME or NAME=VALUE."""
    name, equals, value = wanted.partition("=")
    return name in labels and (not equals or labels[name] == value)


def one_of(name: str, value: str, allowed: Iterable[str]) -> str:
    """`value`, if it is allowed for filter `name`. Raises Invalid."""
    choices = tuple(allowed)
    if value.lower() not in choices:
        raise Invalid(f"filter {name}={value} is not valid; use {' or '.join(choices)}")
    return value.lower()


def boolean(name: str, value: str) -> bool:
    """What `value` says, as Docker reads it. Raises Invalid."""
    return one_of(name, value, (*_TRUE, *_FALSE)) in _TRUE
