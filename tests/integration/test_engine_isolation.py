"""What a container may not do, tried from inside a real one; and what it is given."""

import json
import os
import platform
import sys
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from common.errors import Invalid, NotImplementedHere, ShoalError
from common.model.container import ContainerCreate, HostConfig
from common.model.image import ImageConfig
from common.model.mounts import Mount, TmpfsOptions, VolumeOptions
from common.model.task import Ulimit
from tests.support.fake_node import EngineNode, busybox_root, engine_node
from tests.support.inside import begin, inside, status
from worker.engine.logs import LogQuery
from worker.runtime import capabilities

pytestmark = pytest.mark.root
BINARY = Path(sys.executable).resolve()


@pytest.fixture
async def node(tmp_path: Path) -> AsyncIterator[EngineNode]:
    async with engine_node(tmp_path) as node:
        yield node


def interpreter() -> os.stat_result:
    return BINARY.stat()


async def test_docker_default_rights(node: EngineNode) -> None:
    shown = status(await inside(node, "cat /proc/self/status"))
    assert shown["CapEff"] == shown["CapPrm"] == shown["CapBnd"] == "00000000a80425fb"
    assert (shown["CapInh"], shown["CapAmb"]) == ("0" * 16, "0" * 16)
    assert (shown["Seccomp"], shown["NoNewPrivs"]) == ("2", "0")
    assert shown["Groups"] == ""


async def test_another_user_may_open_its_output_again(node: EngineNode) -> None:
    script = "echo out > /dev/stdout; echo err > /dev/stderr"
    assert sorted((await inside(node, script, user="app")).split()) == ["err", "out"]


async def test_another_user_has_no_capabilities(node: EngineNode) -> None:
    shown = status(await inside(node, "cat /proc/self/status", user="app"))
    assert (shown["CapEff"], shown["CapPrm"]) == ("0" * 16, "0" * 16)
    assert shown["Uid"].split() == ["1000"] * 4
    assert shown["Groups"] == "2000"


@pytest.mark.parametrize(
    ("user", "expected"),
    [("1000", "1000 1000 2000"), ("app:extra", "1000 2000"), ("4242", "4242 0"), ("0:7", "0 7")],
)
async def test_users_of_the_image(node: EngineNode, user: str, expected: str) -> None:
    text = await inside(node, "echo $(id -u) $(id -G)", user=user)
    assert text.strip() == expected


async def test_an_unknown_user_is_refused(node: EngineNode) -> None:
    ref = await node.engine.create(ContainerCreate(image="busybox", cmd=("true",), user="ghost"))
    with pytest.raises(ShoalError, match="unable to find user ghost"):
        await node.engine.start(ref)


@pytest.mark.parametrize(
    "attempt",
    [
        "mount -t tmpfs none /tmp",
        "umount /proc/sys",
        "unshare -m true",
        "hostname other",
        "echo 1 > /proc/sys/kernel/panic",
        "echo b > /proc/sysrq-trigger",
        "echo 1 > /sys/kernel/profiling",
        "mkdir /sys/fs/cgroup/memory/sub",
        "mknod /tmp/disk b 254 0 && head -c 1 /tmp/disk",
        "mknod /tmp/mem c 1 1 && head -c 1 /tmp/mem",
        "dmesg",
        "chroot /proc/1/root/../.. test -e /usr/sbin/dpkg-preconfigure",
        "ip link add dummy0 type dummy",
        "head -c 1 /proc/kcore | grep .",
        "ls /sys/firmware | grep .",
        "cat /proc/keys | grep .",
    ],
)
async def test_refused(node: EngineNode, attempt: str) -> None:
    text = await inside(node, f"if {attempt}; then echo ESCAPED; else echo held; fi")
    assert text.splitlines()[-1] == "held"


async def test_no_more_file_systems_than_needed(node: EngineNode) -> None:
    """Each costs every container of the machine some memory; none can be written through another
    of its mounts."""
    text = await inside(node, "cat /proc/self/mountinfo")
    lines = [line.split() for line in text.splitlines() if " - " in line]
    own = {fields[2] for fields in lines if fields[fields.index("-") + 1] == "tmpfs"}
    assert len(own) <= 2  # /dev and /dev/shm
    for fields in lines:
        if fields[4].startswith("/sys/") or fields[4] == "/proc/acpi":
            assert "ro" in fields[5].split(",")


async def test_only_own_processes_and_descriptors(node: EngineNode) -> None:
    text = await inside(node, "echo pids $(ls /proc | grep -c '^[0-9]'); ls -l /proc/self/fd")
    assert text.splitlines()[0] in ("pids 2", "pids 3", "pids 4")
    links = [line.split(" -> ")[1] for line in text.splitlines() if " -> " in line]
    assert len(links) <= 4
    assert not [link for link in links if "socket" in link or "eventpoll" in link]


async def test_root_cannot_leave_by_its_working_directory(node: EngineNode) -> None:
    """CVE-2024-21626: a working directory through a leaked descriptor."""
    for number in range(3, 12):
        ref = await node.engine.create(
            ContainerCreate(
                image="busybox", cmd=("cat", "../../../etc/hostname"),
                working_dir=f"/proc/self/fd/{number}",
            )
        )  # fmt: skip
        with pytest.raises(ShoalError):
            await node.engine.start(ref)


async def test_the_keepers_binary_cannot_be_written(node: EngineNode) -> None:
    """CVE-2019-5736: the container executes /proc/self/exe, which is the runtime's own binary."""
    script = "import os\nfor p in os.listdir('/proc'):\n  pass\n"
    ref = await node.engine.create(
        ContainerCreate(image="busybox", cmd=("/proc/self/exe", "-c", script))
    )
    before = interpreter()
    try:
        await node.engine.start(ref)
        await node.engine.wait(ref)
    except Invalid:
        pass
    exe = f"/proc/{node.engine.keeper_pid}/exe"
    assert os.statvfs(exe).f_flag & os.ST_RDONLY  # also when nobody executes it any more
    with pytest.raises(OSError, match=r"Read-only|Text file busy") as caught:
        os.open(exe, os.O_WRONLY)
    assert caught.value.errno in (30, 26)
    after = interpreter()
    assert (before.st_mtime_ns, before.st_size) == (after.st_mtime_ns, after.st_size)


async def test_links_of_the_image_do_not_lead_mounts_outside(
    node: EngineNode, tmp_path: Path
) -> None:
    outside = tmp_path / "outside"
    outside.mkdir()
    root = busybox_root(tmp_path / "evil")
    (root / "data").symlink_to(outside)
    (root / "up").symlink_to("../../../../../../" + str(outside))
    (root / "etc/hosts").symlink_to(str(outside / "hosts"))
    node.images.add("evil", (root,), ImageConfig(env=("PATH=/bin",)))
    host = HostConfig(tmpfs={"/data": "", "/up/sub": ""}, binds=("vol:/up/vol",))
    await inside(node, "touch /data/x /up/sub/y /up/vol/z", host, image="evil")
    assert sorted(os.listdir(outside)) == []


async def test_proc_as_a_link_is_refused(node: EngineNode, tmp_path: Path) -> None:
    root = busybox_root(tmp_path / "evil")
    (root / "elsewhere").mkdir()
    (root / "proc").symlink_to("/elsewhere")
    node.images.add("evil", (root,), ImageConfig(env=("PATH=/bin",)))
    ref = await node.engine.create(ContainerCreate(image="evil", cmd=("true",)))
    with pytest.raises(ShoalError, match="mounting proc at /proc"):
        await node.engine.start(ref)


async def test_device_nodes_and_privileged(node: EngineNode) -> None:
    text = await inside(node, "head -c 3 /dev/zero | wc -c; echo x > /dev/null; echo y > /dev/full")
    assert text.startswith("3\n")
    assert "No space left" in text
    wide = status(await inside(node, "cat /proc/self/status", HostConfig(privileged=True)))
    assert wide["Seccomp"] == "0"
    assert int(wide["CapEff"], 16) == capabilities.own()
    assert "ok" in await inside(
        node, "mount -t tmpfs none /tmp && echo ok", HostConfig(privileged=True)
    )


async def test_capabilities_added_and_dropped(node: EngineNode) -> None:
    host = HostConfig(cap_drop=("ALL",), cap_add=("net_bind_service",))
    shown = status(await inside(node, "cat /proc/self/status", host))
    assert shown["CapEff"] == f"{1 << 10:016x}"
    admin = HostConfig(cap_add=("SYS_ADMIN",))
    assert "ok" in await inside(node, "mount -t tmpfs none /tmp && echo ok", admin)


async def test_security_options(node: EngineNode) -> None:
    host = HostConfig(security_opt=("no-new-privileges", "seccomp=unconfined"))
    shown = status(await inside(node, "cat /proc/self/status", host))
    assert (shown["NoNewPrivs"], shown["Seccomp"]) == ("1", "0")
    host = HostConfig(security_opt=("no-new-privileges:true",))
    shown = status(await inside(node, "cat /proc/self/status", host, user="app"))
    assert (shown["NoNewPrivs"], shown["Seccomp"]) == ("1", "2")


async def test_a_seccomp_profile_of_the_users(node: EngineNode) -> None:
    """Refused calls fail as the profile says, in the container and in an exec."""
    profile = {
        "defaultAction": "SCMP_ACT_ALLOW",
        "syscalls": [
            {"names": ["mkdir", "mkdirat"], "action": "SCMP_ACT_ERRNO", "errnoRet": 95},
            {"names": ["chmod", "fchmodat"], "action": "SCMP_ACT_KILL_PROCESS"},
        ],
    }
    host = HostConfig(security_opt=(f"seccomp={json.dumps(profile)}",), cap_add=("SYS_ADMIN",))
    script = "mkdir /x; echo $?; chmod 700 /tmp; echo $?; mount -t tmpfs none /tmp && echo mounted"
    text = await inside(node, script, host)
    assert "not supported" in text
    assert "1" in text.split()
    assert "159" in text.split()  # SIGSYS
    assert "mounted" in text
    ref = await begin(node, "sleep 100", host)
    code, output = await node.engine._execs.run(
        node.engine.find(ref), ("mkdir", "/y"), timeout_s=10, limit=1000
    )
    assert code == 1
    assert b"not supported" in output


async def test_limits(node: EngineNode) -> None:
    host = HostConfig(
        memory=64 << 20, nano_cpus=500_000_000, pids_limit=20, cpu_shares=512, cpuset_cpus="0",
        ulimits=(Ulimit(name="nofile", soft=64, hard=64),), oom_score_adj=300,
    )  # fmt: skip
    text = await inside(
        node,
        "cd /sys/fs/cgroup; cat memory/memory.limit_in_bytes cpu/cpu.cfs_quota_us pids/pids.max "
        "cpu/cpu.shares; ulimit -n; cat /proc/self/oom_score_adj; nproc",
        host,
    )
    assert text.split() == [str(64 << 20), "50000", "20", "512", "64", "300", "1"]
    bomb = "for i in $(seq 40); do sleep 5 & done; echo made"
    assert "made" not in (await inside(node, bomb, HostConfig(pids_limit=10))).splitlines()[-1:]


async def test_read_only_root_and_tmpfs(node: EngineNode) -> None:
    host = HostConfig(
        readonly_rootfs=True,
        tmpfs={"/scratch": "size=64k"},
        mounts=(
            Mount(type="tmpfs", target="/opt", tmpfs_options=TmpfsOptions(mode=0o700)),
        ),
    )  # fmt: skip
    script = (
        "touch /x || echo root-ro; touch /scratch/y && echo scratch; stat -c %a /opt; "
        "head -c 100k /dev/zero > /scratch/big || echo full"
    )
    text = await inside(node, script, host)
    words = [line for line in text.splitlines() if ":" not in line]
    assert words == ["root-ro", "scratch", "700", "full"]


async def test_binds_and_volumes(node: EngineNode, tmp_path: Path) -> None:
    source = tmp_path / "shared"
    source.mkdir()
    (source / "file").write_text("host")
    host = HostConfig(
        binds=(f"{source}:/mnt/rw", f"{source}:/mnt/ro:ro", "named:/data"),
        mounts=(Mount(type="volume", target="/srv", volume_options=VolumeOptions()),),
    )
    script = (
        "cat /mnt/rw/file; echo new > /mnt/rw/new; touch /mnt/ro/x 2>/dev/null || echo ro; "
        "echo v > /data/f; cat /srv/seed; stat -c ' %u' /srv/seed"
    )
    text = await inside(node, script, host)
    assert text.startswith("host")
    assert "ro\n" in text
    assert "from the image 1000" in text
    assert (source / "new").read_text() == "new\n"
    again = await inside(node, "cat /data/f", HostConfig(binds=("named:/data:ro",)))
    assert again == "v\n"
    anonymous = [v["Name"] for v in node.engine.volumes.list() if len(v["Name"]) == 64]
    assert len(anonymous) == 1
    users = [c for c in node.engine.list(all=True) if len(c.record.mounts) > 1]
    await node.engine.remove(users[0].id, volumes=True)
    assert [v["Name"] for v in node.engine.volumes.list()] == ["named"]


async def test_a_missing_source_and_a_bad_target_are_refused(node: EngineNode) -> None:
    async def attempt(host: HostConfig) -> None:
        await node.engine.create(
            ContainerCreate(image="busybox", cmd=("true",), host_config=host), "probe"
        )

    with pytest.raises(Invalid, match="bind source path does not exist: /no/such"):
        await attempt(HostConfig(mounts=(Mount(type="bind", source="/no/such", target="/x"),)))
    with pytest.raises(Invalid, match="must be an absolute path"):
        await attempt(HostConfig(binds=("vol:relative",)))
    with pytest.raises(Invalid, match="would cover"):
        await attempt(HostConfig(tmpfs={"/proc": ""}))
    with pytest.raises(NotImplementedHere, match="PidMode"):
        await attempt(HostConfig(pid_mode="shareable"))
    assert node.engine.list(all=True) == []
    assert node.engine.volumes.list() == []


async def test_files_of_the_network_and_extra_hosts(node: EngineNode) -> None:
    host = HostConfig(extra_hosts=("db:10.9.8.7",), sysctls={"net.ipv4.ip_forward": "1"})
    text = await inside(
        node,
        "cat /etc/hosts /etc/resolv.conf /etc/hostname /proc/sys/net/ipv4/ip_forward",
        host,
        hostname="web",
    )
    assert "10.9.8.7\tdb" in text
    assert "nameserver 127.0.0.11" in text
    assert text.endswith("web\n1\n")


async def test_init_reaps_and_passes_signals(node: EngineNode) -> None:
    body = ContainerCreate(
        image="busybox",
        cmd=(
            "sh",
            "-c",
            "(sleep 0.01 &) ; trap 'exit 9' TERM; echo $$; while :; do sleep 0.02; done",
        ),
        host_config=HostConfig(init=True),
    )
    ref = await node.engine.create(body)
    await node.engine.start(ref)
    async for line in node.engine.logs(ref, LogQuery(follow=True)):
        assert line.data == b"2\n"
        break
    await node.engine.stop(ref, timeout_s=10)
    assert node.engine.find(ref).exit_code == 9
    missing = await node.engine.create(
        ContainerCreate(image="busybox", cmd=("nosuch",), host_config=HostConfig(init=True))
    )
    with pytest.raises(Invalid, match="executable file not found"):
        await node.engine.start(missing)


async def test_a_hundred_layers(node: EngineNode, tmp_path: Path) -> None:
    layers = []
    for number in range(100):
        layer = tmp_path / f"layer-{number}"
        layer.mkdir()
        (layer / f"file-{number}").touch()
        layers.append(layer)
    root = busybox_root(tmp_path / "base")
    node.images.add("deep", (*layers, root), ImageConfig(env=("PATH=/bin",)))
    assert (await inside(node, "ls / | grep -c file-", image="deep")).strip() == "100"


async def test_the_init_shows_nothing_of_the_keeper(node: EngineNode) -> None:
    """On x86_64 it is a program of its own, of which nothing is to be hidden but its small size."""
    script = (
        "cat /proc/1/environ | wc -c; ls /proc/1/fd | wc -l; wc -l < /proc/1/maps; "
        "cat /proc/1/comm; grep -c python /proc/1/maps; readlink /proc/1/exe"
    )
    text = await inside(node, script, HostConfig(init=True))
    if platform.machine() == "x86_64":
        size, fds, maps, name, python, exe = text.splitlines()
        assert (size, fds, name, python) == ("0", "0", "shoal-init", "0")
        assert int(maps) <= 6
        assert exe.startswith("/memfd:shoal-init")
    else:
        assert text.count("Permission denied") >= 3


async def test_the_init_cannot_be_overwritten(node: EngineNode) -> None:
    text = await inside(
        node, "(echo x > /proc/1/exe) && echo ESCAPED; kill -9 1; kill -STOP 1; echo held",
        HostConfig(init=True),
    )  # fmt: skip
    assert "ESCAPED" not in text
    assert text.splitlines()[-1] == "held"


async def test_a_module_in_the_image_is_never_loaded(node: EngineNode, tmp_path: Path) -> None:
    """The child still is an interpreter when the image's files are its root."""
    root = busybox_root(tmp_path / "evil")
    folders = [path for path in sys.path if path.startswith("/")] + [os.path.dirname(os.__file__)]
    bait = ("warnings", "traceback", "linecache", "tokenize", "locale", "encodings/idna", "pwd",
            "grp", "subprocess", "selectors", "threading", "json/decoder", "ast")  # fmt: skip
    for folder in folders:
        for name in bait:
            path = root / folder.lstrip("/") / f"{name}.py"
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text("open('/OWNED', 'w')\nimport os\nos._exit(99)\n")
    node.images.add("evil", (root,), ImageConfig(env=("PATH=/bin",)))
    for host, fields in (
        (HostConfig(init=True), {}), (HostConfig(), {"user": "app:extra", "tty": True}),
    ):  # fmt: skip
        assert "OWNED" not in await inside(node, "ls /", host, image="evil", **fields)
    for command in ("nothing", "/etc/passwd", "/"):
        ref = await node.engine.create(
            ContainerCreate(image="evil", cmd=(command,), user="app", host_config=HostConfig())
        )
        with pytest.raises(Invalid, match="exec:"):
            await node.engine.start(ref)
        assert not (node.config.state_dir / "containers" / ref / "upper/OWNED").exists()
