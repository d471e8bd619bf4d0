"""A whole leader, agents on fake engines, users and faults at random.

In the end each slot has one running task and nothing is left over; meanwhile nothing is given out
twice and no limit is exceeded.
"""

import os
from pathlib import Path

import pytest

from manager.orchestrator import loop
from tests.support.cluster_chaos import run

SEEDS = int(os.environ.get("CLUSTER_SEEDS", "4"))
STEPS = 60


@pytest.mark.parametrize("seed", range(SEEDS))
async def test_all_comes_right_in_the_end(
    tmp_path: Path, seed: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Every other seed treats each service as a large one, of which a few slots are looked at."""
    if seed % 2:
        monkeypatch.setattr(loop, "LARGE", 0)
    assert await run(tmp_path, seed, STEPS) == []
