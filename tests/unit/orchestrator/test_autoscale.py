"""Services that are scaled by what their tasks use."""

import asyncio
import datetime as dt
import random
from collections.abc import AsyncIterator, Mapping
from typing import Any

import pytest
from msgspec.structs import replace

from common.errors import Invalid
from common.ids import Ids
from common.model import labels
from common.model.service import ReplicatedService, Service, ServiceMode
from common.model.task import ResourceRequirements, Resources
from manager.dispatcher.usage import Used
from manager.orchestrator.autoscale import Autoscaler, wanted
from manager.wishes import Autoscale, Target
from tests.support import build
from tests.support.fake_agents import Leader, running
from tests.support.memory_proposer import LoopClock
from tests.unit.orchestrator.conftest import World

MIB = 1 << 20


class Load:
    """A load that all replicas share; says what each uses when it was asked for before."""

    def __init__(self, world: World) -> None:
        self.world = world
        self.cpus = 0.0  # of all together
        self.memory = 0  # of each
        self.silent = False
        self.asked: dict[str, str] = {}

    def ask(self, tasks: Mapping[str, str]) -> None:
        self.asked = dict(tasks)

    def of(self, task_id: str) -> Used | None:
        if self.silent or task_id not in self.asked:
            return None
        replicas = len(running(self.world.tasks()))
        return Used(self.cpus / max(replicas, 1), self.memory, LoopClock().now())


@pytest.fixture
async def load(world: World) -> AsyncIterator[Load]:
    await world.leader.kill()
    load = Load(world)
    world.leader = Leader(world.store, Ids(random.Random(2)), lambda: [Autoscaler(load)])
    world.leader.start()
    yield load
    await world.leader.kill()


def by(bounds: str = "2-10", **targets: str) -> dict[str, str]:
    return {labels.AUTOSCALE: bounds} | {
        f"{labels.AUTOSCALE}.{name}": text for name, text in targets.items()
    }


def replicas(world: World, service: Service) -> int:
    mode = world.services.get(service.id).spec.mode.replicated
    assert mode is not None
    assert mode.replicas is not None
    return mode.replicas


async def test_up_at_once_and_down_after_the_cooldown(load: Load) -> None:
    world = load.world
    load.cpus = 1.0
    web = await world.create(replicas=2, labels=by(cpu="0.5"))
    await asyncio.sleep(400)
    assert replicas(world, web) == 2  # just right
    load.cpus = 2.9
    await asyncio.sleep(25)
    assert replicas(world, web) == 6
    status = world.services.get(web.id).autoscale
    assert status is not None
    assert (status.replicas_before, status.replicas) == (2, 6)
    assert status.message == "cpu 1.45 for each replica, target 0.50"
    load.cpus = 100.0
    await asyncio.sleep(120)
    assert replicas(world, web) == 10  # no more than allowed
    load.cpus = 1.6
    await asyncio.sleep(170)
    assert replicas(world, web) == 10
    await asyncio.sleep(40)
    assert replicas(world, web) == 4
    load.cpus = 0.0
    await asyncio.sleep(400)
    assert replicas(world, web) == 2
    assert world.services.get(web.id).revision is None  # nothing to roll back to


async def test_a_short_lull_takes_nothing_away(load: Load) -> None:
    world = load.world
    load.cpus = 3.0
    web = await world.create(replicas=6, labels=by(cpu="0.5", cooldown="1m"))
    await asyncio.sleep(120)
    for _ in range(5):
        load.cpus = 0.1
        await asyncio.sleep(40)
        load.cpus = 3.0
        await asyncio.sleep(20)
    assert replicas(world, web) == 6


async def test_no_word_no_change(load: Load) -> None:
    """Also a new leader waits for a whole cool-down before anything goes."""
    world = load.world
    load.silent = True
    web = await world.create(replicas=6, labels=by(cpu="0.5"))
    await asyncio.sleep(1000)
    assert replicas(world, web) == 6
    load.silent = False
    await world.leader.kill()
    world.leader.start()
    await asyncio.sleep(170)
    assert replicas(world, web) == 6
    await asyncio.sleep(40)
    assert replicas(world, web) == 2


async def test_bounds_hold_without_a_word_and_memory_counts_too(load: Load) -> None:
    world = load.world
    load.silent = True
    web = await world.create(replicas=1, labels=by("3-4", memory="100m"))
    await asyncio.sleep(15)
    assert replicas(world, web) == 3
    load.silent, load.memory = False, 150 * MIB
    await asyncio.sleep(60)
    assert replicas(world, web) == 4
    assert load.asked.keys() == {task.id for task in running(world.tasks())}
    await world.services.remove(web.id)
    await asyncio.sleep(60)
    version = world.store.version
    await asyncio.sleep(600)
    assert world.store.version == version


async def test_an_update_that_names_no_number_keeps_it(load: Load) -> None:
    """As from a compose file without replicas."""
    world = load.world
    load.cpus = 3.0
    web = await world.create(replicas=2, labels=by(cpu="0.5"))
    await asyncio.sleep(100)
    assert replicas(world, web) == 6
    nothing = ServiceMode(replicated=ReplicatedService())
    await world.update(web, image="web:2", mode=nothing)
    assert replicas(world, web) == 6
    await world.update(web, mode=nothing, labels={})
    assert replicas(world, web) == 1


USED = Used(1.0, 100 * MIB, dt.datetime(2024, 1, 1, tzinfo=dt.UTC))


def test_silent_replicas_count_as_idle_upwards_and_as_busy_downwards() -> None:
    rule = Autoscale(1, 100, cpu=Target(0.5))
    spec = build.task_spec()
    up = wanted(rule, spec, 4, [USED, None, None, None])
    assert up is not None
    assert (up.up, up.down) == (4, 4)
    down = wanted(rule, spec, 8, [USED, *[None] * 3])
    assert down is not None
    assert (down.up, down.down) == (8, 5)
    assert wanted(rule, spec, 4, [None] * 4) is None


def test_the_measure_that_asks_for_the_most_decides() -> None:
    rule = Autoscale(1, 100, cpu=Target(0.5), memory=Target(10 * MIB))
    found = wanted(rule, build.task_spec(), 1, [USED])
    assert found is not None
    assert (found.up, found.why) == (10, "memory 100 MiB for each replica, target 10 MiB")


def test_percentages_are_of_the_limit_or_else_the_reservation() -> None:
    rule = Autoscale(1, 100, cpu=Target(50, percent=True))
    for limit, reserved, expected in ((2, 4, 1), (0, 4, 1), (1, 0, 2), (0, 0, None)):
        resources = ResourceRequirements(
            limits=Resources(nano_cpus=limit * 10**9),
            reservations=Resources(nano_cpus=reserved * 10**9),
        )
        spec = replace(build.task_spec(), resources=resources)
        found = wanted(rule, spec, 1, [USED])
        assert (found.up if found is not None else None) == expected


@pytest.mark.parametrize(
    ("wants", "why"),
    [
        (by("0-4", cpu="1"), "write MIN-MAX"),
        (by("5-4", cpu="1"), "write MIN-MAX"),
        (by("2", cpu="1"), "write MIN-MAX"),
        (by(), "has no target"),
        (by(cooldown="1m"), "has no target"),
        ({labels.AUTOSCALE_CPU: "1"}, "shoal.autoscale is missing"),
        (by(cpu="0"), "write 0.5 or 60%"),
        (by(cpu="1m"), "write 0.5 or 60%"),
        (by(cpu="nan"), "write 0.5 or 60%"),
        (by(memory="1x"), "write 200m or 60%"),
        (by(cpu="60%"), "the service has none"),
    ],
)
async def test_what_is_refused(world: World, wants: dict[str, str], why: str) -> None:
    with pytest.raises(Invalid, match=why):
        await world.create(labels=wants)


async def test_only_replicated_services(world: World) -> None:
    settings: dict[str, Any] = {"global_": True, "labels": by(cpu="1")}
    with pytest.raises(Invalid, match="for replicated services only"):
        await world.create(**settings)
    await world.create(cpus=0.5, labels=by(cpu="60%"))
