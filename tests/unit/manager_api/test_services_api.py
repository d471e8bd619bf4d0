"""Services: what is stored, what is refused, what is found (API 242-250)."""

import re
from typing import Any

import pytest
from msgspec.structs import replace

from common.errors import Conflict, Invalid, NotFound, NotImplementedHere, ShoalError
from common.model.mounts import Mount
from common.model.node import ManagerStatus
from common.model.service import (
    GlobalJob,
    ReplicatedJob,
    ReplicatedService,
    Service,
    ServiceMode,
    ServiceSpec,
    UpdateConfig,
    UpdateStatus,
)
from common.model.task import (
    ConfigReference,
    ContainerSpec,
    FileTarget,
    HealthConfig,
    LogDriver,
    NetworkAttachmentConfig,
    Placement,
    PlacementPreference,
    PortConfig,
    ResourceRequirements,
    Resources,
    RestartPolicy,
    SecretReference,
    SpreadOver,
    TaskSpec,
    TaskState,
)
from manager.api.services import _status
from tests.support import build
from tests.unit.manager_api.conftest import World

CONTAINER = ContainerSpec(image="web:1")


CREDENTIALS = ConfigReference(config_id="c", runtime={})
BOTH = ServiceMode(global_job=GlobalJob(), replicated=ReplicatedService())
JOB = ServiceMode(replicated_job=ReplicatedJob())
NEGATIVE_JOB = ServiceMode(replicated_job=ReplicatedJob(total_completions=-1))


def secret(name: str, target: str = "") -> SecretReference:
    return SecretReference(secret_id="id", secret_name=name, file=FileTarget(name=target or name))


def spec(name: str = "web", **more: Any) -> ServiceSpec:
    return build.service(name, **more).spec


def with_task(**fields: Any) -> ServiceSpec:
    return replace(spec(), task_template=replace(build.task_spec(), **fields))


def with_container(**fields: Any) -> ServiceSpec:
    return with_task(container_spec=replace(CONTAINER, **fields))


def limits(**amount: int) -> ServiceSpec:
    return with_task(resources=ResourceRequirements(limits=Resources(**amount)))


def published(*ports: PortConfig, mode: str = "") -> ServiceSpec:
    return spec(ports=ports, mode=mode)


BAD = [
    (spec("a b"), Invalid, "service name 'a b' is not valid"),
    (spec("x" * 64), Invalid, "63 at most"),
    (spec(replicas=-1), Invalid, "replicas is -1"),
    (spec(replicas=10**9), Invalid, "replicas is 1000000000"),
    (replace(spec(), mode=BOTH), Invalid, "several are given"),
    (replace(spec(update=UpdateConfig()), mode=JOB), Invalid, "no update"),
    (replace(spec(), mode=NEGATIVE_JOB), Invalid, "total completions is -1"),
    (with_container(image=""), Invalid, "image is missing"),
    (with_container(image="UPPER:::bad"), Invalid, "invalid reference format"),
    (with_container(image="a b"), Invalid, "invalid reference format"),
    (with_container(dir="rel"), Invalid, "working directory 'rel' is not an absolute path"),
    (with_container(env=("=x",)), Invalid, "'=x' has no name"),
    (with_container(env=("A={{.Foo}}",)), Invalid, r"template {{.Foo}} cannot be expanded"),
    (with_container(hostname="{{.Task.Slut}}"), Invalid, "what can be named is"),
    (
        with_container(mounts=(Mount(type="volume", source="{{.X}}", target="/x"),)),
        Invalid,
        "template {{.X}} cannot",
    ),
    (
        with_task(
            resources=ResourceRequirements(
                limits=Resources(memory_bytes=10 << 20),
                reservations=Resources(memory_bytes=20 << 20),
            )
        ),
        Invalid,
        "memory reservation 20971520 is above the limit",
    ),
    (
        with_task(
            resources=ResourceRequirements(
                limits=Resources(nano_cpus=10**9), reservations=Resources(nano_cpus=2 * 10**9)
            )
        ),
        Invalid,
        "CPU reservation 2 is above the limit 1",
    ),
    (with_task(container_spec=None), Invalid, "no container spec"),
    (with_task(plugin_spec={"Name": "x"}), NotImplementedHere, "plugin"),
    (with_task(network_attachment_spec={}), NotImplementedHere, "attachment"),
    (with_task(runtime="plugin"), NotImplementedHere, "runtime 'plugin'"),
    (with_task(log_driver=LogDriver(name="gelf")), NotImplementedHere, "log driver 'gelf'"),
    (with_container(secrets=(SecretReference(secret_id="s"),)), Invalid, "no name"),
    (with_container(secrets=(secret("key"),)), Invalid, "secret key not found"),
    (with_container(secrets=(secret("key", "../passwd"),)), Invalid, "plain path"),
    (with_container(secrets=(secret("a", "x"), secret("b", "/run/secrets/x"))), Invalid, "has t"),
    (
        with_container(configs=(ConfigReference(config_id="c", runtime={}),)),
        NotImplementedHere,
        "R",
    ),
    (limits(memory_bytes=1), Invalid, "memory limit is 1 bytes; use at least 4 MiB"),
    (limits(memory_bytes=-1), Invalid, "memory limit"),
    (limits(nano_cpus=999_999), Invalid, "at least 0.001"),
    (limits(nano_cpus=-1), Invalid, "CPU limit"),
    (limits(pids=-1), Invalid, "pids limit is -1"),
    (with_task(restart_policy=RestartPolicy(condition="often")), Invalid, "'often'"),
    (with_task(restart_policy=RestartPolicy(delay=-1)), Invalid, "restart delay is -1"),
    (with_task(restart_policy=RestartPolicy(window=-1)), Invalid, "restart window is -1"),
    (spec(update=UpdateConfig(delay=-1)), Invalid, "update_config delay is -1"),
    (spec(update=UpdateConfig(parallelism=-1)), Invalid, "parallelism is -1"),
    (spec(update=UpdateConfig(failure_action="panic")), Invalid, "'panic'"),
    (spec(rollback=UpdateConfig(failure_action="rollback")), Invalid, "rollback_config"),
    (spec(update=UpdateConfig(max_failure_ratio=1.5)), Invalid, "ratio is 1.5"),
    (spec(update=UpdateConfig(max_failure_ratio=float("nan"))), Invalid, "ratio is nan"),
    (spec(update=UpdateConfig(order="sideways")), Invalid, "'sideways'"),
    (spec(constraints=["node.role=manager"]), Invalid, "no == or !="),
    (with_task(placement=Placement(max_replicas=-1)), Invalid, "max replicas"),
    (
        with_task(
            placement=Placement(
                preferences=(PlacementPreference(spread=SpreadOver(spread_descriptor="zone")),)
            )
        ),
        Invalid,
        "spread=zone",
    ),
    (with_container(mounts=(Mount(target="data"),)), Invalid, "'data' is not an absolute"),
    (with_container(mounts=(Mount(type="npipe", target="/x"),)), NotImplementedHere, "npipe"),
    (
        with_container(mounts=(Mount(type="bind", source="x", target="/x"),)),
        Invalid,
        "source 'x'",
    ),
    (with_container(mounts=(Mount(target="/x"), Mount(target="/x/"))), Invalid, "two mounts"),
    (with_container(healthcheck=HealthConfig(interval=10)), Invalid, "interval is 10 ns"),
    (with_container(healthcheck=HealthConfig(test=("ls",))), Invalid, "begins with 'ls'"),
    (with_container(stop_grace_period=-1), Invalid, "grace"),
    (published(PortConfig(target_port=0)), Invalid, "target port 0"),
    (published(PortConfig(target_port=80, published_port=70000)), Invalid, "70000"),
    (published(PortConfig(target_port=80, protocol="sctp")), NotImplementedHere, "sctp"),
    (published(PortConfig(target_port=80, publish_mode="magic")), Invalid, "'magic'"),
    (published(build.port(80, 8080), build.port(81, 8080)), Invalid, "published twice"),
    (published(PortConfig(target_port=80, host_ip="127.0.0.1")), Invalid, "publish mode host"),
    (
        published(PortConfig(target_port=80, publish_mode="host", host_ip="::1")),
        Invalid,
        "'::1' is not an IPv4 address",
    ),
    (published(build.port(80, 8080), mode="dnsrr"), Invalid, "dnsrr"),
    (spec(mode="lvs"), Invalid, "endpoint mode 'lvs'"),
    (spec(networks=["nowhere"]), NotFound, "network nowhere not found"),
    (spec(networks=["host"]), NotImplementedHere, "network host"),
]


@pytest.mark.parametrize(("bad", "error", "says"), BAD, ids=[case[2] for case in BAD])
async def test_refused(world: World, bad: ServiceSpec, error: type[ShoalError], says: str) -> None:
    """API 242-246: one line that names the field; nothing is written."""
    with pytest.raises(error) as caught:
        await world.api.services.create(bad)
    assert says in str(caught.value)
    assert "\n" not in str(caught.value)
    assert not world.store.view().find(Service)


async def test_ports_of_the_cluster_itself_cannot_be_published(world: World) -> None:
    """Else what the managers say to each other goes to the service, and the quorum is lost."""
    manager = replace(
        build.node("m1", id="m1"), manager_status=ManagerStatus(addr="192.0.2.1:2377")
    )
    await world.put(manager)
    for port in (build.port(80, 2377), build.port(80, 4789, protocol="udp")):
        with pytest.raises(Conflict, match="is the cluster's own; publish another port"):
            await world.api.services.create(published(port))
    assert not world.store.view().find(Service)
    await world.api.services.create(published(build.port(80, 2377, protocol="udp")))


async def test_what_is_stored(world: World) -> None:
    await world.put(build.network("front", id="net1"))
    wanted = replace(
        spec(),
        mode=ServiceMode(replicated=ReplicatedService()),
        networks=(
            NetworkAttachmentConfig(target="front", aliases=("www",)),
            NetworkAttachmentConfig(target="ingress"),
        ),
    )
    made = await world.api.services.create(wanted)
    assert made.spec.mode.replicated == ReplicatedService(replicas=1)
    assert made.spec.networks == ()
    assert made.spec.task_template.networks == (
        NetworkAttachmentConfig(target="net1", aliases=("www",)),
    )
    assert made.spec_version == made.version
    assert world.api.services.get(made.id[:6]) == made == world.api.services.get("web")


async def test_names_and_ports_are_given_once(world: World) -> None:
    await world.api.services.create(published(build.port(80, 8080)))
    with pytest.raises(Conflict, match="name conflicts with an existing object: service 'web'"):
        await world.api.services.create(spec())
    other = spec("other", ports=[build.port(80, 8080)])
    with pytest.raises(Conflict, match="8080/tcp is already in use by service web"):
        await world.api.services.create(other)
    await world.api.services.create(spec("udp", ports=[build.port(80, 8080, protocol="udp")]))
    await world.api.services.create(spec("host", ports=[build.port(80, 8080, publish_mode="host")]))
    await world.api.services.remove("web")
    await world.api.services.create(other)


async def test_a_service_without_a_name_is_given_one(world: World) -> None:
    first, second = [await world.api.services.create(spec("")) for _ in range(2)]
    assert first.spec.name != second.spec.name
    assert re.fullmatch(r"[a-z]+-[a-z]+", first.spec.name)


async def test_removed_services_are_not_there(world: World) -> None:
    made = await world.api.services.create(spec())
    await world.api.services.remove(made.id)
    assert world.api.services.list({}) == []
    for ref in (made.id, "web"):
        with pytest.raises(NotFound, match=f"service {ref} not found"):
            world.api.services.get(ref)
    with pytest.raises(NotFound):
        await world.api.services.remove("web")
    assert (await world.api.services.create(spec())).id != made.id


async def test_update_and_roll_back(world: World) -> None:
    services = world.api.services
    one = await services.create(spec(image="one"))
    two = await services.update("web", one.version.index, spec(image="two"))
    assert (two.spec.task_template, two.previous_spec) == (build.task_spec("two"), one.spec)
    assert two.previous_spec_version == one.spec_version
    back = await services.update("web", two.version.index, spec(), rollback="previous")
    assert (back.spec, back.previous_spec) == (one.spec, two.spec)
    assert back.update_status is not None
    assert back.update_status.state == "rollback_started"
    new = await services.create(spec("new"))
    with pytest.raises(Invalid, match="no previous spec"):
        await services.update("new", new.version.index, spec("new"), rollback="previous")


async def test_old_versions_are_refused(world: World) -> None:
    """API 247; writes of the cluster itself do not make a version old."""
    services = world.api.services
    one = await services.create(spec(image="one"))
    await world.put(replace(one, update_status=UpdateStatus(state="completed")))
    two = await services.update("web", one.version.index, spec(image="two"))
    for version in (one.version.index, two.version.index + 1, 0, -1):
        with pytest.raises(Conflict, match="update out of sequence"):
            await services.update("web", version, spec(image="three"))
    assert services.get("web") == two


async def test_what_an_update_may_not_change(world: World) -> None:
    """API 244."""
    made = await world.api.services.create(spec())
    version = made.version.index
    with pytest.raises(NotImplementedHere, match="renaming"):
        await world.api.services.update("web", version, spec("other"))
    with pytest.raises(NotImplementedHere, match="mode change"):
        await world.api.services.update("web", version, spec(global_=True))
    with pytest.raises(Invalid, match="replicas is -1"):
        await world.api.services.update("web", version, spec(replicas=-1))
    assert world.api.services.get("web") == made


@pytest.mark.parametrize(("state", "kept"), [("paused", False), ("updating", True)])
async def test_the_same_spec_again(world: World, state: str, kept: bool) -> None:
    """It resumes an update that is paused, and leaves the previous spec for a rollback."""
    one = await world.api.services.create(spec(image="one"))
    two = await world.api.services.update("web", one.version.index, spec(image="two"))
    await world.put(replace(two, update_status=UpdateStatus(state=state)))
    again = await world.api.services.update("web", two.version.index, spec(image="two"))
    assert (again.update_status is not None) is kept
    assert again.previous_spec == one.spec


@pytest.mark.parametrize(
    ("filters", "names"),
    [
        ({}, ["web", "worker", "every"]),
        ({"name": ["we"]}, ["web"]),
        ({"name": ["web", "every"]}, ["web", "every"]),
        ({"label": ["tier"]}, ["web", "worker"]),
        ({"label": ["tier=front"]}, ["web"]),
        ({"label": ["tier", "tier=front"]}, ["web"]),
        ({"mode": ["global"]}, ["every"]),
        ({"mode": ["replicated"], "name": ["wo"]}, ["worker"]),
        ({"id": ["zzz"]}, []),
        ({"runtime": ["container"]}, ["web", "worker", "every"]),
    ],
)
async def test_filters(world: World, filters: dict[str, list[str]], names: list[str]) -> None:
    """API 248."""
    await world.api.services.create(spec(labels={"tier": "front"}))
    await world.api.services.create(spec("worker", labels={"tier": "back"}))
    await world.api.services.create(spec("every", global_=True))
    found = [service.spec.name for service in world.api.services.list(filters)]
    assert sorted(found) == sorted(names)


async def test_unknown_filters_are_named(world: World) -> None:
    with pytest.raises(Invalid, match="filter 'colour' is not known"):
        world.api.services.list({"colour": ["red"]})
    await world.api.services.create(spec())
    with pytest.raises(Invalid, match="mode=fast"):
        world.api.services.list({"mode": ["fast"]})


async def test_statuses(world: World) -> None:
    web = await world.api.services.create(spec(replicas=3))
    every = await world.api.services.create(spec("every", global_=True))
    await world.put(
        build.task(web, slot=1, id="a", state=TaskState.RUNNING),
        build.task(web, slot=2, id="b", state=TaskState.STARTING),
        build.task(web, slot=3, id="c", state=TaskState.RUNNING, desired=TaskState.SHUTDOWN),
        build.task(every, slot=0, id="d", node="n1", state=TaskState.RUNNING),
        build.task(every, slot=0, id="e", node="n2", state=TaskState.FAILED),
    )
    status = world.api.services.statuses()
    assert (status[web.id].running_tasks, status[web.id].desired_tasks) == (1, 3)
    assert (status[every.id].running_tasks, status[every.id].desired_tasks) == (1, 2)


async def test_tasks(world: World) -> None:
    web = await world.api.services.create(spec())
    await world.put(
        build.node("box", id="node1"),
        build.task(web, id="aaaa1", node="node1", state=TaskState.RUNNING),
        build.task(
            web,
            id="bbbb1",
            spec=TaskSpec(),
            spec_version=None,
            state=TaskState.FAILED,
            desired=TaskState.SHUTDOWN,
        ),
    )
    tasks = world.api.tasks

    def ids(**filters: str) -> list[str]:
        wanted = {name.strip("_").replace("_", "-"): [value] for name, value in filters.items()}
        return [task.id for task in tasks.list(wanted)]

    both = ["aaaa1", "bbbb1"]
    assert ids(service="web") == ids(service=web.id) == ids(service=web.id[:8]) == both
    assert ids(service="other") == []
    assert ids(node="box") == ids(node="node1") == ids(desired_state="running") == ["aaaa1"]
    assert ids(desired_state="shutdown") == ids(id="bbbb") == ["bbbb1"]
    assert ids(name="web.1.a") == ["aaaa1"]
    current = tasks.list({"_up-to-date": ["true"], "service": ["web"]})
    assert [task.id for task in current] == ["aaaa1"]
    with pytest.raises(Invalid, match="desired-state=asleep"):
        ids(desired_state="asleep")
    assert tasks.get("aaaa").id == "aaaa1"
    assert tasks.peek("none") is None
    every, after, pages = tasks.list({}), "", []
    while page := tasks.page({}, 1, after):
        pages.append(len(page))
        assert [task.id for task in page] == sorted(t.id for t in every if t.id > after)[:1]
        after = page[-1].id
    assert sum(pages) == len(every) == 2
    assert tasks.page({"service": ["none"]}, 2) == []
    with pytest.raises(Invalid, match="limit=0 is not valid"):
        tasks.page({}, 0)
    with pytest.raises(NotFound, match="task none not found"):
        tasks.get("none")


def test_a_global_job_desires_what_is_not_completed() -> None:
    """Clients show completed of completed and desired."""
    job = build.service("job")
    job = replace(job, spec=replace(job.spec, mode=ServiceMode(global_job=GlobalJob())))
    complete = TaskState.COMPLETE
    done = build.task(job, id="a", node="a", desired=complete, state=complete)
    going = build.task(job, id="b", node="b", desired=complete, state=TaskState.RUNNING)
    status = _status(job, [done, going], set())
    assert (status.completed_tasks, status.running_tasks, status.desired_tasks) == (1, 1, 1)
