"""Raft under faults: nothing acknowledged is lost, nobody disagrees, and it goes on afterwards.

`SEED=17` replays one run, `SEEDS=5000` runs more. RAF 173, 175, 176, 180, 181, 182,
186, 191 and 192.
"""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.support.raft_runs import Profile, run_in_new_loop

GROUPS = 10
SEEDS = int(os.environ.get("SEEDS", "200"))
ONLY = os.environ.get("SEED")
STORE_SEEDS = (3, 4, next(seed for seed in range(99) if Profile.of(seed).files))
ROOT = Path(__file__).resolve().parents[2]


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


def test_a_seed_replays_exactly_under_another_hash_seed() -> None:
    digests = {_digest_in_new_process(hash_seed) for hash_seed in ("1", "2")}
    assert len(digests) == 1


def _digest_in_new_process(hash_seed: str) -> str:
    code = (
        "from tests.support.raft_runs import run_in_new_loop, run_store_in_new_loop\n"
        "for seed in (3, 4): print(run_in_new_loop(seed).checker.digest)\n"
        f"for seed in {STORE_SEEDS}: print(run_store_in_new_loop(seed).stores.checker.digest)"
    )
    environment = os.environ | {"PYTHONHASHSEED": hash_seed}
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, env=environment, capture_output=True, check=True
    )
    return done.stdout.decode()
