"""Groups of backends and the edits between them."""

import struct

from hypothesis import given
from hypothesis import strategies as st

from worker.network import balancer
from worker.network.balancer import Edit, Groups, plan

KEY = balancer.address_key("10.0.1.2")
Maps = dict[str, dict[bytes, bytes | int]]


def carry_out(maps: Maps, edits: list[Edit]) -> None:
    """As a transaction does: all deletions, then all additions; each must be possible."""
    for edit in edits:
        if edit.delete:
            del maps[edit.map][edit.key]
    for edit in edits:
        if edit.add is not None:
            assert edit.key not in maps[edit.map]
            maps[edit.map][edit.key] = edit.add


def empty() -> Maps:
    return {"be": {}, "vips": {}, "dead": {}}


names = st.integers(1, 12).map(lambda number: struct.pack("!I", number))


@given(st.lists(st.none() | st.sets(names, max_size=8), max_size=12))
def test_after_any_series_the_maps_are_what_was_last_asked(series: list[set[bytes] | None]) -> None:
    """Property: the maps hold each backend once, under 0 … n-1, and one verdict that fits."""
    maps, groups = empty(), Groups()
    for wanted in series:
        carry_out(maps, groups.put(KEY, wanted))
        count = len(wanted or ())
        assert sorted(maps["be"].values()) == sorted(wanted or ())  # type: ignore[type-var]
        assert set(maps["be"]) == {KEY + struct.pack("=I", place) for place in range(count)}
        assert maps["vips"] == ({KEY: count} if count else {})
        assert maps["dead"] == ({KEY: 0} if wanted is not None and not count else {})
    fresh = empty()
    carry_out(fresh, groups.everything())
    assert fresh == maps


def test_those_that_stay_keep_their_places_and_the_last_fills_the_hole() -> None:
    order, edits = plan(KEY, (b"a", b"b", b"c", b"d"), {b"a", b"c", b"d"})
    assert order == (b"a", b"d", b"c")
    assert [edit for edit in edits if edit.map == "be"] == [
        Edit("be", KEY + struct.pack("=I", 1), True, b"d"),
        Edit("be", KEY + struct.pack("=I", 3), True, None),
    ]


def test_replacing_one_backend_touches_one_element() -> None:
    order, edits = plan(KEY, (b"a", b"b", b"c"), {b"a", b"x", b"c"})
    assert order == (b"a", b"x", b"c")
    assert edits == [Edit("be", KEY + struct.pack("=I", 1), True, b"x")]


def test_nothing_changed_is_no_edit() -> None:
    assert plan(KEY, (b"a", b"b"), {b"b", b"a"})[1] == []
    assert plan(KEY, (), set())[1] == []
    assert plan(KEY, None, None)[1] == []


def test_each_number_of_backends_has_a_chain_that_is_asked_for() -> None:
    backends = {struct.pack("!I", number) for number in range(40)}
    assert balancer.counts(plan(KEY, None, backends)[1]) == {40}
    assert balancer.counts(plan(KEY, None, {b"a"})[1]) == {1}
    assert balancer.counts(plan(KEY, (b"a",), set())[1]) == set()
