"""Raft under faults: nothing acknowledged is lost, nobody disagrees, and it goes on afterwards.

`SEED=17` replays one run, `SEEDS=5000` runs more. Behaviours 173, 175, 176, 180, 181, 182,
186, 191 and 192.
"""

import asyncio
import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.support.raft_chaos import Chaos
from tests.support.raft_world import Violation, World, story
from tests.support.virtual_time import VirtualTimeLoop

GROUPS = 10
SEEDS = int(os.environ.get("SEEDS", "200"))
ONLY = os.environ.get("SEED")
ROOT = Path(__file__).resolve().parents[2]


async def run_seed(seed: int, *, syncs_votes: bool = True) -> World:
    """One run. Raises Violation with the way to replay it and its last events."""
    async with asyncio.TaskGroup() as group:
        world = World(f"{seed}", group, syncs_votes=syncs_votes)
        try:
            await Chaos(world, f"{seed}", 5 if seed % 3 == 0 else 3).run()
        except Violation as violation:
            raise Violation(
                f"{violation}\nreplay: SEED={seed} pytest {__file__}\n{story(world.checker)}"
            ) from None
        finally:
            for process in world.alive:
                process.crash()
    return world


def run_in_new_loop(seed: int, *, syncs_votes: bool = True) -> World:
    with asyncio.Runner(loop_factory=VirtualTimeLoop) as runner:
        try:
            return runner.run(run_seed(seed, syncs_votes=syncs_votes))
        except BaseExceptionGroup as group:
            found, _ = group.split(Violation)
            if found is None:
                raise
            error: BaseException = found
            while isinstance(error, BaseExceptionGroup):
                error = error.exceptions[0]
            raise error from None


@pytest.mark.timeout(900)
@pytest.mark.parametrize("part", [0] if ONLY else range(GROUPS))
def test_safety_under_faults(part: int) -> None:
    seeds = [int(ONLY)] if ONLY else range(part, SEEDS, GROUPS)
    acknowledged = terms = 0
    for seed in seeds:
        checker = run_in_new_loop(seed).checker
        acknowledged += len(checker.acknowledged)
        terms += len(checker.leaders)
    # Otherwise the world was so cruel, or so kind, that nothing was tested.
    assert acknowledged > 20 * len(seeds)
    assert terms > 2 * len(seeds)


def test_a_vote_that_is_not_synced_elects_two_leaders() -> None:
    """The checker finds what it is for."""
    for seed in range(SEEDS):
        try:
            run_in_new_loop(seed, syncs_votes=False)
        except Violation as violation:
            if "election safety" in str(violation):
                return
    pytest.fail(f"{SEEDS} seeds without a second leader")


def test_a_seed_replays_exactly_under_another_hash_seed() -> None:
    digests = {_digest_in_new_process(hash_seed) for hash_seed in ("1", "2")}
    assert len(digests) == 1


def _digest_in_new_process(hash_seed: str) -> str:
    code = (
        "from tests.sim.test_raft_safety import run_in_new_loop\n"
        "for seed in (3, 4): print(run_in_new_loop(seed).checker.digest)"
    )
    environment = os.environ | {"PYTHONHASHSEED": hash_seed}
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, env=environment, capture_output=True, check=True
    )
    return done.stdout.decode()
