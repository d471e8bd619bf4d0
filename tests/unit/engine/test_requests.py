"""What a create request comes to, and what is refused."""

import json
from pathlib import Path
from typing import Any

import msgspec
import pytest

from common.errors import Invalid, NotImplementedHere
from common.model.base import ZERO_TIME
from common.model.container import (
    ContainerConfig,
    ContainerCreate,
    DeviceMapping,
    EndpointConfig,
    HostConfig,
    LogConfig,
    NetworkingConfig,
    PortBinding,
    RestartRule,
    ThrottleDevice,
)
from common.model.image import ImageConfig
from common.model.mounts import BindOptions, DriverConfig, Mount, VolumeOptions
from common.model.task import HealthConfig
from worker.engine import (
    devices,
    files,
    logoptions,
    modes,
    oci,
    points,
    propagation,
    remap,
    request,
    signals,
)
from worker.engine.container import Record
from worker.network.model import HostPort
from worker.runtime import foreign, users

ALL = (1 << 41) - 1
IMAGE = ImageConfig(
    entrypoint=("/entry",), cmd=("default",), env=("PATH=/x", "A=1"), user="app",
    working_dir="/srv", labels={"from": "image"}, volumes={"/data": {}}, stop_signal="SIGINT",
)  # fmt: skip


def merged(image: ImageConfig = IMAGE, **fields: Any) -> tuple[ContainerConfig, tuple[str, ...]]:
    return request.merged(ContainerCreate(image="i", **fields), image)


@pytest.mark.parametrize(
    ("fields", "line"),
    [
        ({}, ("/entry", "default")),
        ({"cmd": ("own",)}, ("/entry", "own")),
        ({"entrypoint": ("mine",)}, ("mine",)),
        ({"entrypoint": ("",), "cmd": ("own",)}, ("own",)),
        ({"entrypoint": "mine", "cmd": "x y"}, ("mine", "x y")),
    ],
)
def test_command(fields: dict[str, Any], line: tuple[str, ...]) -> None:
    assert merged(**fields)[1] == line


def test_no_command_is_refused() -> None:
    with pytest.raises(Invalid, match="no command specified"):
        merged(ImageConfig())


def test_the_image_gives_defaults() -> None:
    config, _ = merged(env=("A=2", "B=3"), labels={"own": "1"}, volumes={"/more": {}})
    assert config.env == ("PATH=/x", "A=2", "B=3")
    assert (config.user, config.working_dir, config.stop_signal) == ("app", "/srv", "SIGINT")
    assert config.labels == {"from": "image", "own": "1"}
    assert set(config.volumes or {}) == {"/data", "/more"}


def test_environment_without_a_value_unsets() -> None:
    config, _ = merged(env=("A",), tty=True)
    assert config.env == ("PATH=/x", "TERM=xterm")


def test_health_is_merged_field_by_field() -> None:
    image = HealthConfig(test=("CMD", "a"), interval=5_000_000, retries=4)
    assert request.health(None, image) == image
    assert request.health(HealthConfig(test=("NONE",)), image) is None
    own = request.health(HealthConfig(retries=9), image)
    assert own is not None
    assert (own.test, own.interval, own.retries) == (("CMD", "a"), 5_000_000, 9)
    with pytest.raises(Invalid, match="interval = 5 ns"):
        request.health(HealthConfig(interval=5), image)
    with pytest.raises(Invalid, match="'RUN'"):
        request.health(HealthConfig(test=("RUN",)), None)


@pytest.mark.parametrize(
    ("host", "error", "field"),
    [
        (HostConfig(memory=1), Invalid, "4MB"),
        (HostConfig(annotations={"org.shoal.runtime": "/x"}), Invalid, "are the engine's"),
        (HostConfig(annotations={"": "x"}), Invalid, "no name of an annotation"),
        (HostConfig(storage_opt={"size": "1G"}), NotImplementedHere, "StorageOpt 'size'"),
        (HostConfig(memory_swap=10 << 20), Invalid, "MemorySwap"),
        (HostConfig(nano_cpus=-1), Invalid, "NanoCpus"),
        (HostConfig(nano_cpus=10**9, cpu_quota=5000), Invalid, "NanoCpus"),
        (HostConfig(oom_score_adj=2000), Invalid, "OomScoreAdj"),
        (HostConfig(sysctls={"kernel.panic": "1"}), Invalid, "kernel.panic"),
        (HostConfig(cap_add=("fly",)), Invalid, "fly"),
        (HostConfig(restart_policy=RestartRule(name="maybe")), Invalid, "maybe"),
        (
            HostConfig(auto_remove=True, restart_policy=RestartRule(name="always")),
            Invalid,
            "AutoRemove",
        ),
        (HostConfig(log_config=LogConfig(config={"max-size": "big"})), Invalid, "max-size"),
        (HostConfig(log_config=LogConfig(type="syslog")), NotImplementedHere, "syslog"),
        (HostConfig(sysctls={"kernel.shmfoo": "1"}), Invalid, "kernel.shmfoo"),
        (HostConfig(sysctls={"kernel.sem": "1"}, ipc_mode="host"), Invalid, "own IPC"),
        (HostConfig(sysctls={"net.x": "1"}, network_mode="host"), Invalid, "own network"),
        (HostConfig(devices=(DeviceMapping(path_on_host="x"),)), Invalid, "Devices: 'x'"),
        (
            HostConfig(devices=(DeviceMapping(path_on_host="/x", cgroup_permissions="rx"),)),
            Invalid,
            "'rx' is not made of",
        ),
        (HostConfig(device_cgroup_rules=("c 1:3 rwx",)), Invalid, "DeviceCgroupRules"),
        (HostConfig(blkio_weight=5), Invalid, "BlkioWeight = 5"),
        (
            HostConfig(blkio_device_read_bps=(ThrottleDevice(path="/dev/x"),)),
            Invalid,
            "BlkioDeviceReadBps",
        ),
        (HostConfig(memory_swappiness=101), Invalid, "MemorySwappiness"),
        (HostConfig(extra_hosts=("db:nowhere",)), Invalid, "ExtraHosts"),
        (HostConfig(security_opt=("seccomp={}",)), Invalid, "defaultAction = None"),
        (HostConfig(security_opt=("seccomp=/a/file",)), NotImplementedHere, "SecurityOpt"),
        (HostConfig(security_opt=("apparmor=mine",)), NotImplementedHere, "apparmor=mine"),
    ],
)
def test_refused_with_the_fields_name(host: HostConfig, error: type[Exception], field: str) -> None:
    with pytest.raises(error, match=field):
        request.check_host(host, ALL)


@pytest.mark.parametrize(
    ("host", "fields", "error", "text"),
    [
        (HostConfig(pid_mode="container:"), {}, Invalid, "names no container"),
        (HostConfig(pid_mode="shareable"), {}, NotImplementedHere, "PidMode = 'shareable'"),
        (HostConfig(userns_mode="remap"), {}, NotImplementedHere, "UsernsMode"),
        (HostConfig(uts_mode="host"), {"hostname": "x"}, Invalid, "the UTS mode"),
        (HostConfig(cgroup_parent="/a/../b"), {}, Invalid, "CgroupParent"),
        (HostConfig(cgroup_parent="a.slice"), {}, Invalid, "systemd"),
        (HostConfig(network_mode="container:x"), {"hostname": "y"}, Invalid, "hostname and"),
        (HostConfig(network_mode="container:x", dns=("1.1.1.1",)), {}, Invalid, "dns and"),
        (HostConfig(network_mode="container:x", publish_all_ports=True), {}, Invalid, "port"),
    ],
)
def test_modes_that_cannot_be(
    host: HostConfig, fields: dict[str, Any], error: type[Exception], text: str
) -> None:
    with pytest.raises(error, match=text):
        modes.check(ContainerCreate(image="i", host_config=host, **fields))


def test_namespaces_of_modes() -> None:
    host = HostConfig(pid_mode="host", ipc_mode="container:a", cgroupns_mode="host")
    modes.check(ContainerCreate(image="i", host_config=host))
    found = modes.namespaces(host, "/run/netns/x", {"ipc": "/proc/7/ns/ipc"})
    assert found == [
        {"type": "mount"},
        {"type": "ipc", "path": "/proc/7/ns/ipc"},
        {"type": "uts"},
        {"type": "network", "path": "/run/netns/x"},
    ]
    assert modes.donors(host) == {"ipc": "a"}
    assert modes.shares_memory(host)
    assert not modes.shares_memory(HostConfig())


def test_extra_hosts() -> None:
    entries = ("db:10.9.8.7", "v6:::1", "node:host-gateway")
    text = files.extra_hosts(entries, "10.192.0.1")
    assert text == "10.9.8.7\tdb\n::1\tv6\n10.192.0.1\tnode\n"
    with pytest.raises(Invalid, match="no gateway"):
        files.extra_hosts(entries, "")


def test_devices_and_their_rules() -> None:
    host = HostConfig(
        devices=(DeviceMapping(path_on_host="/dev/zero", path_in_container="/dev/nil"),),
        device_cgroup_rules=("b 8:* rm",),
    )
    found = devices.find(host)
    assert [(n.path, n.kind, n.major, n.minor) for n in found.nodes] == [("/dev/nil", "c", 1, 5)]
    assert devices.rules(host, found.nodes) == [
        {"allow": True, "type": "c", "major": 1, "minor": 5, "access": "rwm"},
        {"allow": True, "type": "b", "major": 8, "access": "rm"},
    ]
    for path, text in (("/etc/passwd", "is not a device"), ("/dev/none", "No such file")):
        with pytest.raises(Invalid, match=text):
            devices.find(HostConfig(devices=(DeviceMapping(path_on_host=path),)))


def test_a_capability_the_machine_lacks_is_refused() -> None:
    host = HostConfig(cap_add=("SYS_TIME",))
    assert request.check_host(host, ALL) is host
    with pytest.raises(Invalid, match="CAP_SYS_TIME is not available"):
        request.check_host(host, ALL & ~(1 << 25))


def test_security() -> None:
    assert request.security(()) == ("builtin", False)
    assert request.security(("no-new-privileges",)) == ("builtin", True)
    options = ("no-new-privileges:false", "seccomp=unconfined")
    assert request.security(options) == ("unconfined", False)
    profile = '{"defaultAction": "SCMP_ACT_ALLOW"}'
    assert request.security((f"seccomp={profile}",)) == (profile, False)
    assert request.security(("seccomp:unconfined",)).seccomp == "unconfined"


def test_log_options() -> None:
    assert logoptions.kept(HostConfig()) == (20 << 20, 5)
    more = {"compress": "false", "mode": "blocking", "tag": "{{.Name}}", "labels": "a"}
    options = LogConfig(type="local", config={"max-size": "10k", "max-file": "2", **more})
    assert logoptions.kept(HostConfig(log_config=options)) == (10 << 10, 2)
    assert logoptions.kept(HostConfig(log_config=LogConfig(type="none"))) is None


@pytest.mark.parametrize(
    ("driver", "option", "value", "kind", "text"),
    [
        ("local", "compress", "true", NotImplementedHere, "'compress' is not supported"),
        ("json-file", "mode", "non-blocking", NotImplementedHere, "no line is dropped"),
        ("json-file", "max-buffer-size", "1m", Invalid, "mode=non-blocking"),
        ("json-file", "labels-regex", "(", Invalid, "labels-regex"),
        ("json-file", "tag", "{{.Nome}}", Invalid, r"it may have \{\{\.ID\}\}"),
        ("json-file", "tag", "{{range .Name}}", Invalid, "it may have"),
        ("none", "env", "A", Invalid, "keeps no lines"),
        ("json-file", "gelf-address", "x", NotImplementedHere, "gelf-address"),
    ],
)
def test_log_options_that_are_refused(
    driver: str, option: str, value: str, kind: type[Exception], text: str
) -> None:
    log = LogConfig(type=driver, config={option: value})
    with pytest.raises(kind, match=text):
        request.check_host(HostConfig(log_config=log), ALL)


def test_what_is_told_with_each_line() -> None:
    """Labels and variables by name or pattern, and the tag; `logs --details` shows them."""
    options = {
        "labels": "tier,none",
        "labels-regex": "^com\\.",
        "env": "A,B",
        "env-regex": "OS$",
        "tag": "{{.ImageName}}/{{ .Name }}/{{.ID}}",
    }
    made = Record(
        id="0123456789abcdef",
        name="web",
        created_at=ZERO_TIME,
        image_id="sha256:fedc",
        config=ContainerConfig(
            image="img:1",
            labels={"tier": "a b", "com.x": "1", "other": "2"},
            env=("A=x=y", "MYOS=z", "C=3"),
        ),
        host_config=HostConfig(log_config=LogConfig(config=options)),
        path="sh",
        args=(),
    )
    assert logoptions.details(made) == (
        "A=x%3Dy,MYOS=z,com.x=1,tag=img%3A1%2Fweb%2F0123456789ab,tier=a+b"
    )
    plain = msgspec.structs.replace(made, host_config=HostConfig())
    assert logoptions.details(plain) == ""


def test_annotations_reach_the_runtime_and_cannot_steer_ours() -> None:
    """The bundle has all, another runtime's configuration the user's only."""
    made = Record(
        id="c1",
        name="web",
        created_at=ZERO_TIME,
        image_id="sha256:fedc",
        config=ContainerConfig(image="img:1"),
        host_config=HostConfig(annotations={"com.x": "1", "org.shoalx": "2"}),
        path="sh",
        args=(),
    )
    around = oci.Surroundings(
        folder=Path("/c"), lower=(), netns="", cgroup="shoal/c1", seccomp="", device_filter=True,
        files=Path("/c"), memory=Path("/m"), devices=devices.Devices((), {}), userns="", donors={},
    )  # fmt: skip
    bundle = oci.configuration(made, around)
    given = {"com.x": "1", "org.shoalx": "2"}
    assert given.items() <= bundle["annotations"].items()
    assert bundle["annotations"]["org.shoal.user"] == "0"
    account = users.Account(0, 0, (), "/")
    assert foreign.configuration(bundle, account, [])["annotations"] == given


def test_ports() -> None:
    bindings: dict[str, tuple[PortBinding, ...] | None] = {
        "80/tcp": (PortBinding(host_port="8080", host_ip="127.0.0.1"), PortBinding()),
        "53/udp": None,
    }
    config = ContainerConfig(exposed_ports={"80/tcp": {}, "443": {}})
    found = request.host_ports(config, HostConfig(port_bindings=bindings, publish_all_ports=True))
    assert found == (
        HostPort(protocol="tcp", published=8080, target=80, host_ip="127.0.0.1"),
        HostPort(protocol="tcp", published=0, target=80),
        HostPort(protocol="udp", published=0, target=53),
        HostPort(protocol="tcp", published=0, target=443),
    )
    for wrong in ("0/tcp", "70000/tcp", "http", "80/tcp/x"):
        with pytest.raises(Invalid, match="port"):
            request.port(wrong)


def wanted(
    host: HostConfig, points: dict[str, EndpointConfig | None] | None = None, **config: Any
) -> tuple[str, dict[str, EndpointConfig]]:
    networking = None if points is None else NetworkingConfig(endpoints_config=points)
    return request.wanted_networks(ContainerConfig(**config), host, networking)


def test_networks() -> None:
    """The mode's comes first, unless only others are named; the default one is the bridge."""
    plain, db = EndpointConfig(), EndpointConfig(aliases=("db",))
    assert wanted(HostConfig(network_mode="none")) == ("none", {})
    assert wanted(HostConfig()) == ("private", {"bridge": plain})
    assert wanted(HostConfig(), {"default": None}) == ("private", {"bridge": plain})
    assert wanted(HostConfig(), {"net": db}) == ("private", {"net": db})
    assert wanted(HostConfig(network_mode="net"), {"b": db}) == ("private", {"net": plain, "b": db})
    assert list(wanted(HostConfig(network_mode="b"), {"a": db, "b": db})[1]) == ["b", "a"]
    with pytest.raises(Invalid, match="conflicting options: network net"):
        wanted(HostConfig(network_mode="host"), {"net": db, "host": plain})


def test_links_and_mac_addresses_are_of_the_modes_network() -> None:
    found = wanted(HostConfig(links=("x:y",)), mac_address="02:00:00:00:00:01")[1]["bridge"]
    assert (found.links, found.mac_address) == (("x:y",), "02:00:00:00:00:01")


def test_mount_wishes() -> None:
    host = HostConfig(
        binds=("/h:/a:ro,rslave", "vol:/b", "/c"),
        mounts=(
            Mount(type="volume", target="/d/"),
            Mount(type="bind", source="/s", target="/e",
                  bind_options=BindOptions(create_mountpoint=True)),
        ),
        tmpfs={"/f": "size=1m"},
    )  # fmt: skip
    found = points.wishes(ContainerConfig(volumes={"/b": {}, "/g": {}}), host)
    shown = [(w.point.destination, w.point.type, w.point.anonymous, w.copy) for w in found]
    assert shown == [
        ("/a", "bind", False, False),
        ("/b", "volume", False, True),
        ("/c", "volume", True, True),
        ("/d", "volume", True, True),
        ("/e", "bind", False, False),
        ("/f", "tmpfs", False, False),
        ("/g", "volume", True, True),
    ]
    assert found[0].point.read_only
    assert found[0].point.propagation == "rslave"
    assert found[4].make_source


@pytest.mark.parametrize(
    ("host", "text"),
    [
        (HostConfig(binds=("/a:/b:odd",)), "invalid mode"),
        (HostConfig(binds=("/a:/b", "v:/b/")), "Duplicate mount point: /b"),
        (HostConfig(binds=("/a:/",)), "would cover"),
        (HostConfig(binds=("a:b:c:d",)), "invalid volume specification"),
        (HostConfig(tmpfs={"/t": "evil=1"}), "unknown option"),
        (HostConfig(mounts=(Mount(type="bind", source="rel", target="/x"),)), "absolute path"),
    ],
)
def test_wrong_mounts(host: HostConfig, text: str) -> None:
    with pytest.raises(Invalid, match=text):
        points.wishes(ContainerConfig(), host)


def test_foreign_volume_drivers_are_refused() -> None:
    options = VolumeOptions(driver_config=DriverConfig(name="nfs"))
    mount = Mount(type="volume", source="v", target="/x", volume_options=options)
    with pytest.raises(NotImplementedHere, match="driver 'nfs' is not supported"):
        points.wishes(ContainerConfig(), HostConfig(mounts=(mount,)))


def test_resources() -> None:
    found = oci.resources(HostConfig(memory=10 << 20, nano_cpus=1_500_000_000, pids_limit=-1))
    assert found["memory"] == {"limit": 10 << 20, "swap": 20 << 20}
    assert found["cpu"] == {"quota": 150_000, "period": 100_000}
    assert found["pids"] == {"limit": -1}
    assert found["devices"][0]["allow"] is False
    assert oci.resources(HostConfig(privileged=True))["devices"] == []


def test_without_a_device_filter_no_nodes_can_be_made() -> None:
    assert "CAP_MKNOD" in oci.granted(HostConfig())
    assert "CAP_MKNOD" not in oci.granted(HostConfig(), device_filter=False)
    assert "CAP_MKNOD" in oci.granted(HostConfig(privileged=True), device_filter=False)


@pytest.mark.parametrize(
    ("text", "number"), [("SIGTERM", 15), ("kill", 9), ("10", 10), ("SIGRTMIN+3", 37)]
)
def test_signals(text: str, number: int) -> None:
    assert signals.number(text) == number


@pytest.mark.parametrize("text", ["", "0", "99", "SIGNOPE", "TERM+1", "SIGRTMIN+99", "RTMIN+x"])
def test_wrong_signals(text: str) -> None:
    with pytest.raises(Invalid, match="Invalid signal"):
        signals.number(text)


def test_mounts_that_spread() -> None:
    table = (
        "1 0 8:1 / / rw - ext4 /dev/a rw\n"
        "2 1 0:5 / /mnt/with\\040space rw shared:3 master:1 - tmpfs none rw\n"
        "3 1 0:6 / /mnt rw shared:9 - tmpfs none rw\n"
        "4 1 0:7 / /mnt rw - tmpfs none rw\n"
    )
    assert propagation.tags_of("/mnt/with space/x", table) == {"shared", "master"}
    assert propagation.tags_of("/mnt/with spaces", table) == set()  # the later mount covers
    assert propagation.tags_of("/mntx", table) == set()


def test_ranges_of_subordinate_ids() -> None:
    text = "other:1:5\nme:100000:65536\nbad line\nme:300000:10\nme:x:1\n"
    assert remap.ranges(text, "me") == ((0, 100_000, 65_536), (65_536, 300_000, 10))
    assert remap.ranges(text, "nobody") == ()


def test_remapping_is_read_and_refuses(tmp_path: Path) -> None:
    assert remap.load("", tmp_path).note(HostConfig()) == ""
    with pytest.raises(Invalid, match=r"subuid has no range for dockremap; add a line such as"):
        remap.load("default", tmp_path)
    (tmp_path / "subuid").write_text("me:100000:65536\n")
    (tmp_path / "subgid").write_text("us:200000:65536\n")
    users = remap.load("me:us", tmp_path)
    assert json.loads(users.note(HostConfig())) == {
        "uids": [[0, 100_000, 65_536]], "gids": [[0, 200_000, 65_536]],
    }  # fmt: skip
    assert users.note(HostConfig(userns_mode="host")) == ""
    users.check(HostConfig(), "")
    users.check(HostConfig(privileged=True, userns_mode="host"), "")
    for host in (HostConfig(privileged=True), HostConfig(network_mode="host")):
        with pytest.raises(Invalid, match="--userns=host only"):
            users.check(host, "")
    with pytest.raises(Invalid, match="/usr/bin/crun"):
        users.check(HostConfig(), "/usr/bin/crun")
