"""What the kernel should have and what it has, compared. Pure.

State is given as a set of facts, small tuples of plain values, once as the endpoint table wants it
and once as it was read from the kernel. A fact that is on one side only is a difference: the
kernel was changed by somebody else, or we made a mistake. Either way it is repaired and counted.
"""

import struct
from collections import Counter, defaultdict
from collections.abc import Collection, Hashable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import NamedTuple

Fact = tuple[Hashable, ...]

_SHOWN = 5  # differences that a line of the log names


class Difference(NamedTuple):
    """One fact that the kernel lacks, or has without a reason."""

    part: str  # names, overlay, mesh, ports, sandbox, firewall
    where: str  # which of them; "" if there is but one
    fact: Fact
    missing: bool

    def __str__(self) -> str:
        words = " ".join(part.hex() if isinstance(part, bytes) else str(part) for part in self.fact)
        place = f"{self.part} {self.where}".strip()
        return f"{place}: {words} is {'missing' if self.missing else 'there, but should not be'}"


def compare(part: str, where: str, wanted: set[Fact], found: set[Fact]) -> list[Difference]:
    """The differences, in a stable order."""
    lacking = [Difference(part, where, fact, True) for fact in wanted - found]
    stale = [Difference(part, where, fact, False) for fact in found - wanted]
    return sorted(lacking + stale, key=str)


def groups(members: Mapping[bytes, Collection[bytes]]) -> set[Fact]:
    """A balancer's groups: key -> backends, whatever their order."""
    return {("group", key, *sorted(backends)) for key, backends in members.items()}


def maps(
    backends: Mapping[bytes, bytes | str],
    counts: Mapping[bytes, bytes | str],
    dead: Mapping[bytes, bytes | str],
    ways: Mapping[bytes, bytes | str],
) -> set[Fact]:
    """The groups that the kernel's maps make; what makes none, as it is.

    `counts`: a group's number of backends; `ways`: the chain for such a number.
    """
    places: dict[bytes, dict[int, bytes]] = defaultdict(dict)
    for key, backend in backends.items():
        place = struct.unpack("=I", key[-4:])[0]
        places[key[:-4]][place] = backend if isinstance(backend, bytes) else b""
    found: set[Fact] = set()
    for key, count in counts.items():
        have = places.pop(key, {})
        chain = ways.get(count, "") if isinstance(count, bytes) else count
        right = struct.pack("=I", len(have)) == count
        if right and chain == f"n{len(have)}" and sorted(have) == list(range(len(have))):
            found.add(("group", key, *sorted(have.values())))
        else:
            found.add(("broken group", key, count, chain, *sorted(have.items())))
    found |= {("group", key) for key in dead}
    found |= {("backends without a group", key, *have.values()) for key, have in places.items()}
    return found


@dataclass
class Counts:
    """What the comparisons of this node came to since the daemon started."""

    audits: int = 0
    repairs: int = 0  # of differences, and of requests that the kernel refused
    differences: Counter[str] = field(default_factory=Counter)  # by part

    def note(self, found: Iterable[Difference]) -> None:
        for item in found:
            self.differences[item.part] += 1


def summary(found: Collection[Difference]) -> str:
    """`found` in one line, of bounded length."""
    listed = "; ".join(str(item)[:200] for item in list(found)[:_SHOWN])
    return listed + (f"; and {len(found) - _SHOWN} more" if len(found) > _SHOWN else "")
