"""One failure after the other; after each all must be as it should be.

`python -m tests.support.lab_chaos --seed N` plays more of them, in other orders.
"""

import random

import pytest

from lab.cluster import Cluster
from tests.support.lab_chaos import Chaos

pytestmark = [pytest.mark.root, pytest.mark.timeout(300)]
SEED = 1
ELSEWHERE = {"cable cut", "daemon killed", "leader off", "update"}  # test_main_job has them
LONG = {"loose cable"}


def test_all_comes_right_after_every_failure(cluster: Cluster) -> None:
    """NOD 225, REP 66, AGT 237, RAF 175: each slot has one running task, the tasks' containers
    and no others run, exactly they answer at the virtual IP and at every machine's port, no two
    share an address, and no daemon logs an error or grows."""
    chaos = Chaos(cluster, random.Random(SEED), lambda line: print(line, flush=True))  # noqa: T201
    names = sorted(set(chaos.steps) - ELSEWHERE - LONG)
    chaos.begin()
    chaos.run(random.Random(SEED).sample(names, len(names)))
    chaos.end()
