"""One simulated run of Raft from one seed."""

import asyncio

from tests.support.raft_chaos import Chaos
from tests.support.raft_world import Violation, World, story
from tests.support.virtual_time import VirtualTimeLoop


async def run_seed(seed: int, *, syncs_votes: bool = True) -> World:
    """One run. Raises Violation with the way to replay it and its last events."""
    async with asyncio.TaskGroup() as group:
        world = World(f"{seed}", group, syncs_votes=syncs_votes)
        try:
            size = 5 if seed % 3 == 0 else 3
            await Chaos(world, f"{seed}", size, pauses=seed % 4 == 2).run()
        except Violation as violation:
            raise Violation(
                f"{violation}\nreplay: SEED={seed} pytest tests/sim/test_raft_safety.py\n"
                f"{story(world.checker)}"
            ) from None
        finally:
            for process in world.alive:
                process.crash()
    return world


def run_in_new_loop(seed: int, *, syncs_votes: bool = True) -> World:
    """`run_seed` in virtual time. Raises Violation itself, not a group of it."""
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
