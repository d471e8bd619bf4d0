"""Majorities. Pure arithmetic over member ids."""

import enum
from collections.abc import Callable, Collection, Mapping


class Outcome(enum.Enum):
    """How an election stands."""

    WON = "won"
    LOST = "lost"
    OPEN = "open"


def majority(voters: int) -> int:
    """The least number that is more than half of `voters`."""
    return voters // 2 + 1


def reached(voters: Collection[str], agrees: Callable[[str], bool]) -> bool:
    """Whether a majority of `voters` agrees."""
    return sum(map(agrees, voters)) >= majority(len(voters))


def highest(voters: Collection[str], number: Callable[[str], int]) -> int:
    """The highest number that a majority of `voters` has reached; 0 without voters."""
    if not voters:
        return 0
    return sorted(map(number, voters), reverse=True)[majority(len(voters)) - 1]


def tally(voters: Collection[str], votes: Mapping[str, bool]) -> Outcome:
    """How the election stands, counting only the votes of `voters`."""
    needed = majority(len(voters))
    granted = sum(votes.get(voter, False) for voter in voters)
    refused = sum(not votes.get(voter, True) for voter in voters)
    if granted >= needed:
        return Outcome.WON
    return Outcome.LOST if refused > len(voters) - needed else Outcome.OPEN
