"""One simulated run of Raft, or of Raft and the store, from one seed."""

import asyncio
import contextlib
import random
import tempfile
from collections.abc import Callable, Coroutine, Iterator
from pathlib import Path
from typing import Any, TypeVar

import msgspec

from tests.support.faulty_files import FaultyFiles
from tests.support.raft_chaos import Chaos
from tests.support.raft_store_chaos import StoreChaos
from tests.support.raft_store_world import StoreWorld
from tests.support.raft_world import Violation, World, story
from tests.support.virtual_time import VirtualTimeLoop

T = TypeVar("T")


class Profile(msgspec.Struct, frozen=True):
    """What kind of world a seed stands for."""

    size: int
    pauses: bool
    drift: bool
    files: bool  # the product's own files under faults, rather than a simpler disk

    @classmethod
    def of(cls, seed: int) -> "Profile":
        rng = random.Random(f"{seed}/profile")
        return cls(
            size=rng.choice((3, 3, 5)),
            pauses=rng.random() < 0.4,
            drift=rng.random() < 0.3,
            files=rng.random() < 0.3,
        )


async def run_seed(seed: int) -> World:
    """One run. Raises Violation with the way to replay it and its last events."""
    profile = Profile.of(seed)
    async with asyncio.TaskGroup() as group:
        world = World(f"{seed}", group, drift=profile.drift)
        chaos = Chaos(world, f"{seed}", profile.size, pauses=profile.pauses)
        await _told(world, chaos, seed, "test_safety_under_faults")
    return world


async def run_store_seed(seed: int) -> StoreChaos:
    """One run of a cluster of stores. Raises Violation, as `run_seed` does."""
    profile = Profile.of(seed)
    async with asyncio.TaskGroup() as group:
        with real_files(profile.files) as files:
            world = StoreWorld(f"store {seed}", group, files=files, drift=profile.drift)
            chaos = StoreChaos(world, f"{seed}", profile.size, pauses=profile.pauses)
            await _told(world, chaos, seed, "test_stores_under_faults")
    return chaos


@contextlib.contextmanager
def real_files(real: bool = True) -> Iterator[FaultyFiles | None]:
    """The product's own files, in memory; or none, and members have the simpler fake disk."""
    if not real:
        yield None
        return
    memory = Path("/dev/shm")
    with tempfile.TemporaryDirectory(dir=memory if memory.is_dir() else None) as scratch:
        files = FaultyFiles(Path(scratch))
        with files.in_force("manager.raft"):
            yield files


async def _told(world: World, chaos: Chaos, seed: int, test: str) -> None:
    try:
        await chaos.run()
    except Violation as violation:
        raise Violation(
            f"{violation}\n\nreplay: SEED={seed} TEST={test} make sim\n"
            f"{Profile.of(seed)}; the last events:\n{story(world.checker)}"
        ) from None
    finally:
        for process in world.alive:
            process.crash()


def run_in_new_loop(seed: int) -> World:
    """`run_seed` in virtual time. Raises Violation itself, not a group of it."""
    return in_new_loop(lambda: run_seed(seed))


def run_store_in_new_loop(seed: int) -> StoreChaos:
    """`run_store_seed` in virtual time. Raises Violation itself, not a group of it."""
    return in_new_loop(lambda: run_store_seed(seed))


def in_new_loop(make: Callable[[], Coroutine[Any, Any, T]]) -> T:
    """Run it in virtual time. Raises Violation itself, not a group of it."""
    with asyncio.Runner(loop_factory=VirtualTimeLoop) as runner:
        try:
            return runner.run(make())
        except BaseExceptionGroup as group:
            found, _ = group.split(Violation)
            if found is None:
                raise
            error: BaseException = found
            while isinstance(error, BaseExceptionGroup):
                error = error.exceptions[0]
            raise error from None
