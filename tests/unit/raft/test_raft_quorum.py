"""Majorities, against their definition."""

import itertools

import pytest
from hypothesis import given
from hypothesis import strategies as st

from manager.raft import quorum
from manager.raft.quorum import Outcome


@pytest.mark.parametrize(("voters", "needed"), [(1, 1), (2, 2), (3, 2), (4, 3), (5, 3), (6, 4)])
def test_a_majority_is_more_than_half(voters: int, needed: int) -> None:
    assert quorum.majority(voters) == needed


@given(st.lists(st.integers(0, 9), min_size=1, max_size=7))
def test_highest_is_the_highest_number_a_majority_has_reached(numbers: list[int]) -> None:
    voters = [str(place) for place in range(len(numbers))]
    found = quorum.highest(voters, lambda voter: numbers[int(voter)])
    assert sum(number >= found for number in numbers) * 2 > len(numbers)
    assert sum(number > found for number in numbers) * 2 <= len(numbers)


def test_without_voters_nothing_is_reached() -> None:
    assert quorum.highest((), lambda voter: 5) == 0
    assert not quorum.reached((), lambda voter: True)


@pytest.mark.parametrize("size", range(1, 6))
def test_an_election_is_won_or_lost_as_soon_as_it_cannot_turn(size: int) -> None:
    voters = [str(place) for place in range(size)]
    for votes in itertools.product((True, False, None), repeat=size):
        cast = {v: vote for v, vote in zip(voters, votes, strict=True) if vote is not None}
        outcome = quorum.tally(voters, cast | {"stranger": True})
        can_win = sum(vote is not False for vote in votes) * 2 > size
        has_won = sum(vote is True for vote in votes) * 2 > size
        expected = Outcome.WON if has_won else Outcome.OPEN if can_win else Outcome.LOST
        assert outcome is expected
