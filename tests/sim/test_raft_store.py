"""Stores under faults: clients see one copy of each object, watchers hear of every change.

A run has clients that read, write, compare and set, create and delete, watchers on every member
and one that moves between them, all while the world of `raft_chaos` falls apart and its
membership changes. Afterwards each object's history must be linearizable, all stores of one
version equal, and the cluster must write again. Behaviours 175, 176, 181, 186, 195, 198, 199.

`make sim TEST=test_stores SEED=17` replays one run, `SEEDS=5000` runs more.
"""

import os

import pytest

from tests.support.raft_runs import run_store_in_new_loop
from tests.support.raft_store_defects import restore_without_events
from tests.support.raft_world import Violation

GROUPS = 5
SEEDS = int(os.environ.get("SEEDS", "100"))
ONLY = os.environ.get("SEED")


@pytest.mark.timeout(3600)
@pytest.mark.parametrize("part", [0] if ONLY else range(GROUPS))
def test_stores_under_faults(part: int) -> None:
    seeds = [int(ONLY)] if ONLY else range(part, SEEDS, GROUPS)
    answered = terms = compared = resynced = moved = 0
    for seed in seeds:
        run = run_store_in_new_loop(seed)
        seen = run.stores.seen
        answered += run.history.count
        terms += len(seen.leaders)
        compared += seen.compared
        resynced += seen.resynced
        moved += seen.moved
    # Otherwise the world was so cruel, or so kind, that nothing was tested.
    if not ONLY:
        assert answered >= 100 * len(seeds)
        assert terms >= 2 * len(seeds)
        assert compared >= 20 * len(seeds)
        assert resynced >= len(seeds)
        assert moved >= 10 * len(seeds)


def test_a_failing_run_says_how_to_replay_it(monkeypatch: pytest.MonkeyPatch) -> None:
    restore_without_events(monkeypatch)
    with pytest.raises(Violation, match="TEST=test_stores_under_faults make sim") as e:
        _run(range(20))
    assert "the last events:" in str(e.value)
    assert " -> m" in str(e.value)


def _run(seeds: range) -> None:
    for seed in seeds:
        run_store_in_new_loop(seed)
