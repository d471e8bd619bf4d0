"""The specs that a service had, and the way back to each of them."""

import random
from typing import Any

import msgspec
import pytest
from msgspec.structs import replace

from common.errors import Conflict, Invalid, NotFound
from common.model.base import to_builtins
from common.model.service import ReplicatedJob, Service, ServiceMode, ServiceSpec
from common.model.task import ContainerSpec
from manager import revisions
from tests.support import build
from tests.unit.manager_api.conftest import World


def spec(image: str = "web:1", **more: Any) -> ServiceSpec:
    return build.service("web", image=image, **more).spec


async def updated(world: World, new: ServiceSpec, **more: Any) -> Service:
    version = world.api.services.get("web").version.index
    return await world.api.services.update("web", version, new, **more)


def listed(world: World) -> list[tuple[int, str, str]]:
    return [
        (revision.number, revision.cause, image(found))
        for revision, found in world.api.services.history("web")
    ]


def image(found: ServiceSpec) -> str:
    container = found.task_template.container_spec
    return "" if container is None else container.image


async def test_each_change_of_the_spec_is_a_revision(world: World) -> None:
    made = await world.api.services.create(spec())
    assert listed(world) == [(1, "create", "web:1")]
    ((first, _),) = world.api.services.history("web")
    assert first.at == made.created_at
    await updated(world, spec("web:2"))
    await updated(world, spec("web:2"))  # nothing new
    await updated(world, spec("web:3"))
    await updated(world, spec(), rollback="previous")
    assert listed(world) == [
        (4, "rollback", "web:2"),
        (3, "update", "web:3"),
        (2, "update", "web:2"),
        (1, "create", "web:1"),
    ]


async def test_scaling_alone_makes_none_but_is_part_of_the_one_that_is(world: World) -> None:
    await world.api.services.create(spec(replicas=2))
    await updated(world, spec(replicas=5))
    assert listed(world) == [(1, "create", "web:1")]
    await updated(world, spec("web:2", replicas=7))
    back = await updated(world, spec(), rollback_to=1)
    assert back.spec.mode == spec(replicas=5).mode


async def test_back_to_a_revision(world: World) -> None:
    """As by hand: the rollback's own rules hold, and there is a way forward again."""
    for number in (1, 2, 3):
        new = spec(f"web:{number}")
        await (world.api.services.create(new) if number == 1 else updated(world, new))
    back = await updated(world, spec(), rollback_to=1)
    assert (image(back.spec), back.previous_spec) == ("web:1", spec("web:3"))
    assert back.update_status is not None
    assert back.update_status.state == "rollback_started"
    assert listed(world)[0] == (4, "rollback to 1", "web:1")
    assert image((await updated(world, spec(), rollback="previous")).spec) == "web:3"


@pytest.mark.parametrize(
    ("choice", "says"),
    [
        ({"rollback_to": 3}, "in revision 3 already"),
        ({"rollback_to": 9}, "no earlier revision 9; kept: 1, 2"),
        ({"rollback_to": 0}, "no earlier revision 0"),
        ({"rollback_to": 1, "rollback": "previous"}, "exclude each other"),
    ],
)
async def test_no_way_back(world: World, choice: dict[str, Any], says: str) -> None:
    await world.api.services.create(spec())
    await updated(world, spec("web:2"))
    before = await updated(world, spec("web:3"))
    with pytest.raises(Invalid, match=says):
        await updated(world, spec(), **choice)
    assert world.api.services.get("web") == before


async def test_no_way_back_to_what_is_gone_or_anothers_by_now(world: World) -> None:
    await world.put(build.network("front"))
    await world.api.services.create(spec(networks=["front"]))
    await updated(world, spec("web:2", ports=[build.port(80, 8080)]))
    await updated(world, spec("web:3"))
    await world.api.networks.remove("front")
    other = build.service("other", ports=[build.port(80, 8080)]).spec
    await world.api.services.create(other)
    with pytest.raises(NotFound, match="network"):
        await updated(world, spec(), rollback_to=1)
    with pytest.raises(Conflict, match="8080/tcp is already in use"):
        await updated(world, spec(), rollback_to=2)
    with pytest.raises(Conflict, match="8080/tcp is already in use"):
        await updated(world, spec(), rollback="previous")


async def test_a_job_runs_again(world: World) -> None:
    job = ServiceMode(replicated_job=ReplicatedJob())
    await world.api.services.create(replace(spec(), mode=job))
    await updated(world, replace(spec("web:2"), mode=job))
    back = await updated(world, spec(), rollback_to=1)
    assert back.update_status is None
    assert back.job_status is not None
    assert back.job_status.job_iteration.index == 2


async def test_ten_are_kept_and_little_of_each(world: World) -> None:
    await world.api.services.create(spec())
    for number in range(2, 31):
        await updated(world, spec(f"web:{number}"))
    assert [number for number, _, _ in listed(world)] == list(range(30, 19, -1))
    stored = world.api.services.get("web")
    with_history = len(msgspec.msgpack.encode(stored))
    without = len(msgspec.msgpack.encode(replace(stored, revisions=())))
    assert with_history - without < 5000
    assert "Revisions" not in to_builtins(await world.api.services.create(build.service("b").spec))


async def test_large_specs_leave_no_room_for_many(world: World) -> None:
    rng = random.Random(1)
    await world.api.services.create(spec())
    for _ in range(10):
        large = ContainerSpec(image="web:1", env=(f"A={rng.randbytes(7000).hex()}",))
        await updated(world, spec(container_spec=large))
    packed = [one.packed for one in world.api.services.get("web").revisions]
    assert 2 <= len(packed) < 10
    assert sum(map(len, packed)) <= revisions.KEPT_BYTES
