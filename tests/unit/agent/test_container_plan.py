"""From a task to its container."""

import msgspec
import pytest
from msgspec.structs import replace

from common.errors import Invalid, NotImplementedHere, ShoalError
from common.model.base import Annotations
from common.model.mounts import Mount
from common.model.node import EngineDescription, NodeDescription
from common.model.task import (
    ContainerSpec,
    DNSConfig,
    LogDriver,
    NetworkAttachment,
    NetworkAttachmentConfig,
    Platform,
    PortConfig,
    ResourceRequirements,
    Resources,
    Task,
    TaskSpec,
)
from tests.support import build
from worker.agent.spec import Plan, plan, stop_grace_s
from worker.network.model import HostPort

NODE = NodeDescription(
    hostname="machine-1",
    platform=Platform(architecture="x86_64", os="linux"),
    engine=EngineDescription(labels={"rack": "7"}),
)


def task(container: ContainerSpec | None = None, *, slot: int = 3, **spec: object) -> Task:
    made = TaskSpec(container_spec=container or ContainerSpec(image="web:1"), **spec)  # type: ignore[arg-type]
    return replace(
        build.task(id="t1", slot=slot, node="n1", spec=made),
        name="web.3.t1",
        service_id="s1",
        service_annotations=Annotations(name="web", labels={"tier": "front"}),
    )


def planned(**container: object) -> Plan:
    return plan(task(ContainerSpec(image="web:1", **container)), NODE)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("text", "expect"),
    [
        ("{{.Service.Name}}-{{.Task.Slot}}", "web-3"),
        ("{{ .Node.Hostname }}", "machine-1"),
        ("{{.Node.ID}}/{{.Service.ID}}/{{.Task.ID}}/{{.Task.Name}}", "n1/s1/t1/web.3.t1"),
        ("{{.Node.Platform.OS}}-{{.Node.Platform.Architecture}}", "linux-x86_64"),
        ('{{index .Service.Labels "tier"}}{{index .Node.Labels "rack"}}', "front7"),
        ('{{index .Service.Labels "none"}}', ""),
        ("plain { } $", "plain { } $"),
    ],
)
def test_placeholders(text: str, expect: str) -> None:
    """AGT 241."""
    found = planned(env=(f"A={text}",), mounts=(Mount(source=text, target=f"/{text}"),))
    assert found.body.env == (f"A={expect}",)
    assert found.body.host_config.mounts == (Mount(source=expect, target=f"/{expect}"),)


def test_the_slot_of_a_global_task_is_its_nodes_id() -> None:
    container = ContainerSpec(image="web:1", hostname="h-{{.Task.Slot}}")
    assert plan(task(container, slot=0), NODE).body.hostname == "h-n1"


def test_an_unknown_placeholder_is_an_error_that_names_it() -> None:
    with pytest.raises(Invalid, match=r"\.Task\.Color"):
        planned(env=("A={{.Task.Color}}",))


def test_command_and_arguments_limits_and_the_rest() -> None:
    container = ContainerSpec(
        image="web:1",
        command=("/bin/web",),
        args=("-v",),
        dir="/srv",
        user="1:1",
        read_only=True,
        hosts=("192.0.2.1 db db.local",),
        dns_config=DNSConfig(nameservers=("192.0.2.53",)),
        stop_grace_period=1_500_000_000,
        privileges={"NoNewPrivileges": True},
        labels={"mine": "1", "com.docker.swarm.task.id": "forged"},
    )
    resources = ResourceRequirements(
        limits=Resources(nano_cpus=5, memory_bytes=6, pids=7),
        reservations=Resources(memory_bytes=4),
    )
    log = LogDriver(name="json-file", options={"max-size": "1m"})
    body = plan(task(container, resources=resources, log_driver=log), NODE).body
    host = body.host_config
    assert (body.entrypoint, body.cmd, body.working_dir) == (("/bin/web",), ("-v",), "/srv")
    assert (host.nano_cpus, host.memory, host.pids_limit, host.memory_reservation) == (5, 6, 7, 4)
    assert host.extra_hosts == ("db:192.0.2.1", "db.local:192.0.2.1")
    assert host.security_opt == ("no-new-privileges",)
    assert host.log_config.config == {"max-size": "1m"}
    assert host.readonly_rootfs
    assert body.stop_timeout == 2
    assert body.labels is not None
    assert body.labels["com.docker.swarm.task.id"] == "t1"
    assert body.labels["mine"] == "1"


def test_networks_and_host_ports() -> None:
    given = replace(
        task(),
        networks_attachments=(
            NetworkAttachment(
                network_id="o1", network_name="net", addresses=("10.0.1.5/24",), mac="m"
            ),
        ),
        ports=(
            PortConfig(target_port=80, published_port=8080, publish_mode="host"),
            PortConfig(target_port=80, published_port=30000),
            msgspec.json.decode(
                b'{"TargetPort":81,"PublishedPort":81,"PublishMode":"host","HostIp":"127.0.0.1"}',
                type=PortConfig,
            ),
        ),
    )
    found = plan(given, NODE)
    assert found.attachments is not None
    assert [(a.network_id, a.address, a.mac) for a in found.attachments] == [
        ("o1", "10.0.1.5/24", "m")
    ]
    assert found.host_ports == (
        HostPort(protocol="tcp", published=8080, target=80),
        HostPort(protocol="tcp", published=81, target=81, host_ip="127.0.0.1"),
    )


def test_the_hosts_own_network() -> None:
    found = plan(task(networks=(NetworkAttachmentConfig(target="host"),)), NODE)
    assert found.attachments is None
    assert found.body.host_config.network_mode == "host"


@pytest.mark.parametrize(
    ("container", "error", "words"),
    [
        pytest.param({"isolation": "hyperv"}, NotImplementedHere, "hyperv", id="isolation"),
        pytest.param(
            {"privileges": {"SELinuxContext": {"User": "u"}}},
            NotImplementedHere,
            "SELinux",
            id="selinux",
        ),
        pytest.param({"hosts": ("192.0.2.1",)}, Invalid, "192.0.2.1", id="a host without name"),
    ],
)
def test_what_is_not_done_is_refused(
    container: dict[str, object], error: type[ShoalError], words: str
) -> None:
    with pytest.raises(error, match=words):
        planned(**container)


def test_grace() -> None:
    assert stop_grace_s(task(), 10) == 10
    assert stop_grace_s(task(ContainerSpec(stop_grace_period=0)), 10) == 0
