"""Limits as files of both versions; version 2 on a fake folder."""

import struct
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from worker.runtime.cgroups import V1, V2, detect
from worker.runtime.cgroups.base import Disk, Unsupported, Write, disks
from worker.runtime.cgroups.devices import Exempt, program, reduce_rules
from worker.runtime.cgroups.v1 import device_rule, device_writes, disk_rows
from worker.runtime.cgroups.v1 import writes as writes_v1
from worker.runtime.cgroups.v2 import disk_list, weight
from worker.runtime.cgroups.v2 import writes as writes_v2

RESOURCES: dict[str, Any] = {
    "memory": {"limit": 100, "swap": 250, "reservation": 50},
    "cpu": {"shares": 1024, "quota": 50000, "period": 100000, "cpus": "0-1"},
    "pids": {"limit": 20},
    "devices": [{"allow": False}, {"allow": True, "type": "c", "major": 1, "minor": 3}],
}


def test_version_1() -> None:
    assert [(w.file, w.value) for w in writes_v1(RESOURCES)] == [
        ("memory.limit_in_bytes", "100"),
        ("memory.memsw.limit_in_bytes", "250"),
        ("memory.soft_limit_in_bytes", "50"),
        ("cpu.shares", "1024"),
        ("cpu.cfs_period_us", "100000"),
        ("cpu.cfs_quota_us", "50000"),
        ("cpuset.cpus", "0-1"),
        ("pids.max", "20"),
    ]
    assert [(w.file, w.value) for w in device_writes(RESOURCES["devices"])] == [
        ("devices.deny", "a"),
        ("devices.allow", "c 1:3 rwm"),
    ]


def test_version_2() -> None:
    assert [(w.file, w.value) for w in writes_v2(RESOURCES)] == [
        ("memory.max", "100"),
        ("memory.swap.max", "150"),
        ("memory.low", "50"),
        ("cpu.weight", "39"),
        ("cpu.max", "50000 100000"),
        ("cpuset.cpus", "0-1"),
        ("pids.max", "20"),
    ]


def test_nothing_asked_nothing_written() -> None:
    assert writes_v1({}) == writes_v2({}) == []


def test_unlimited_is_said() -> None:
    assert Write("pids", "pids.max", "max") in writes_v1({"pids": {"limit": -1}})
    assert ("memory.swap.max", "max") in [
        (w.file, w.value) for w in writes_v2({"memory": {"limit": 5, "swap": -1}})
    ]


@pytest.mark.parametrize(("shares", "expected"), [(2, 1), (1024, 39), (262144, 10000), (0, 1)])
def test_weight(shares: int, expected: int) -> None:
    assert weight(shares) == expected


def test_device_rules() -> None:
    assert device_rule({"allow": True, "type": "c", "major": 136}) == "c 136:* rwm"
    assert device_rule({"allow": True, "type": "b", "access": "m"}) == "b *:* m"


def fake_v2(root: Path) -> V2:
    """Folders that behave like a cgroup2 as far as files go."""
    (root / "cgroup.controllers").write_text("cpuset cpu memory pids")
    (root / "cgroup.subtree_control").write_text("")
    box = root / "shoal"
    box.mkdir()
    (box / "cgroup.controllers").write_text("cpu memory pids")
    (box / "cgroup.subtree_control").write_text("")
    return V2(str(root))


def test_version_2_hands_controllers_down_and_sets_limits(tmp_path: Path) -> None:
    hierarchy = fake_v2(tmp_path)
    child = tmp_path / "shoal/c1"
    child.mkdir()
    for name in ("memory.max", "pids.max"):
        (child / name).touch()
    hierarchy.create("shoal/c1", {"memory": {"limit": 4096}, "pids": {"limit": 3}})
    assert (tmp_path / "cgroup.subtree_control").read_text() == "+cpu +cpuset +memory +pids"
    assert (tmp_path / "shoal/cgroup.subtree_control").read_text() == "+cpu +memory +pids"
    assert (child / "memory.max").read_text() == "4096"
    assert (child / "pids.max").read_text() == "3"
    assert hierarchy.bind_sources("shoal/c1") == [(str(child), "")]


def test_version_2_reads(tmp_path: Path) -> None:
    hierarchy = fake_v2(tmp_path)
    child = tmp_path / "shoal/c1"
    child.mkdir()
    (child / "memory.events").write_text("low 0\noom 3\noom_kill 2\n")
    (child / "cpu.stat").write_text("usage_usec 5\nuser_usec 3\nsystem_usec 2\n")
    for name, text in {"memory.current": "77", "memory.max": "max", "memory.stat": "anon 5",
                       "pids.current": "2", "pids.max": "9"}.items():  # fmt: skip
        (child / name).write_text(text)
    assert hierarchy.oom_kills("shoal/c1") == 2
    usage = hierarchy.usage("shoal/c1")
    assert (usage.cpu_ns, usage.memory, usage.memory_limit, usage.pids_limit) == (5000, 77, 0, 9)


def test_a_missing_limit_file_is_told_unless_optional(tmp_path: Path) -> None:
    hierarchy = fake_v2(tmp_path)
    (tmp_path / "shoal/c1").mkdir()
    with pytest.raises(Unsupported, match=r"no memory\.max"):
        hierarchy.update("shoal/c1", {"memory": {"limit": 4096}})
    hierarchy.update("shoal/c1", {"memory": {"swap": 4096}})


@pytest.mark.parametrize(
    ("file", "lifted", "given"),
    [
        ("io.bfq.weight", "8:0 0", "default 500"),
        ("io.weight", "8:0 default", "default 4950"),
    ],
)
def test_weights_go_where_the_machine_has_them(
    tmp_path: Path, file: str, lifted: str, given: str
) -> None:
    """BFQ counts as the user does, io.cost otherwise; a weight of 0 is that of all disks."""
    hierarchy, place = fake_v2(tmp_path), tmp_path / "shoal/c1" / file
    place.parent.mkdir()
    disk = {"weightDevice": [{"major": 8, "minor": 0, "weight": 0}]}
    for block, expect in ((disk, lifted), ({"weight": 500}, given)):
        with pytest.raises(Unsupported, match=r"no io\.weight"):
            hierarchy.update("shoal/c1", {"blockIO": block})
        place.touch()
        hierarchy.update("shoal/c1", {"blockIO": block})
        assert place.read_text() == expect
        place.unlink()


def test_detection(tmp_path: Path) -> None:
    with pytest.raises(OSError, match="no cgroup controllers"):
        detect(str(tmp_path))
    for name in ("memory", "pids", "cpu"):
        (tmp_path / name).mkdir()
    found = detect(str(tmp_path))
    assert isinstance(found, V1)
    assert set(found.controllers) == {"memory", "pids", "cpu"}
    (tmp_path / "cgroup.controllers").touch()
    assert detect(str(tmp_path)).version == 2


def test_removing_twice_is_fine(tmp_path: Path) -> None:
    hierarchy = V2(str(tmp_path))
    (tmp_path / "a").mkdir()
    assert hierarchy.remove("a")
    assert hierarchy.remove("a")


BLOCK: dict[str, Any] = {
    "blockIO": {
        "weight": 500,
        "weightDevice": [{"major": 8, "minor": 0, "weight": 10}],
        "throttleReadBpsDevice": [{"major": 8, "minor": 0, "rate": 1000}],
        "throttleWriteIOPSDevice": [{"major": 8, "minor": 16, "rate": 7}],
    }
}


def test_block_io() -> None:
    assert [(w.file, w.value) for w in writes_v1(BLOCK)] == [
        ("blkio.bfq.weight", "500"),
        ("blkio.bfq.weight_device", "8:0 10"),
        ("blkio.throttle.read_bps_device", "8:0 1000"),
        ("blkio.throttle.write_iops_device", "8:16 7"),
    ]
    assert [(w.file, w.value) for w in writes_v2(BLOCK)] == [
        ("io.bfq.weight", "default 500"),
        ("io.bfq.weight", "8:0 10"),
        ("io.max", "8:0 rbps=1000"),
        ("io.max", "8:16 wiops=7"),
    ]


def test_what_was_read_and_written() -> None:
    one = disk_rows("bytes", "254:0 Read 10\n254:0 Write 20\n254:0 Total 30\nTotal 30\n")
    two = disk_rows("ios", "254:0 Read 1\n254:0 Write 2\n")
    assert disks(one + two) == disk_list("254:0 rbytes=10 wbytes=20 rios=1 wios=2 dbytes=0\n")
    assert disks(one + two) == (Disk(254, 0, 10, 20, 1, 2),)


def test_memory_is_raised_with_swap_first() -> None:
    memory = {"memory": {"limit": 100, "swap": 200}}
    files = [w.file for w in writes_v1(memory, swap_first=True)]
    assert files == ["memory.memsw.limit_in_bytes", "memory.limit_in_bytes"]


def test_what_version_2_does_not_have_is_refused() -> None:
    with pytest.raises(Unsupported, match="disableOOMKiller"):
        writes_v2({"memory": {"disableOOMKiller": True}})
    assert writes_v2({"memory": {"disableOOMKiller": False}}) == []
    with pytest.raises(Unsupported, match="swappiness"):
        writes_v2({"memory": {"swappiness": 0}})


def test_a_period_alone_is_said() -> None:
    """Without a quota it is kept for one that may come; a negative quota is none."""
    for cpu, expect in (({"period": 50000}, "max 50000"), ({"quota": -1}, "max 100000")):
        assert writes_v2({"cpu": cpu}) == [Write("cpu", "cpu.max", expect)]


def rule(allow: bool, kind: str = "", access: str = "", *numbers: int) -> dict[str, Any]:
    numbered = dict(zip(("major", "minor"), numbers, strict=False))
    return {"allow": allow, "type": kind, "access": access, **numbered}


def test_device_rules_come_to_a_default_and_exceptions() -> None:
    rules = [
        rule(True, "c", "rwm", 9, 9),  # before everything is denied: without effect
        rule(False),
        rule(True, "c", "m"),
        rule(True, "c", "rw", 1, 3),
        rule(True, "c", "m", 1, 3),
        rule(False, "c", "w", 1, 3),
    ]
    assert reduce_rules(rules) == (False, [Exempt("c", -1, -1, 1), Exempt("c", 1, 3, 3)])
    assert reduce_rules([]) == (True, [])
    assert reduce_rules([rule(False, "b", "rwm", 8)]) == (True, [Exempt("b", 8, -1, 7)])


def run(code: bytes, kind: str, access: str, major: int, minor: int) -> bool:
    """What the kernel would do with the program: enough of eBPF for it."""
    words = [(_kinds[kind] | sum(_access[a] for a in access) << 16), major, minor]
    registers, steps = [0] * 11, [code[i : i + 8] for i in range(0, len(code), 8)]
    here = 0
    while True:
        opcode, both, offset, value = struct.unpack("<BBhi", steps[here])
        to, source = both & 15, both >> 4
        here += 1
        if opcode == 0x95:
            return bool(registers[0])
        if opcode == 0x61:
            registers[to] = words[offset // 4]
        elif opcode == 0x54:
            registers[to] &= value
        elif opcode == 0x74:
            registers[to] >>= value
        elif opcode in (0xBC, 0xB4):
            registers[to] = registers[source] if opcode == 0xBC else value
        else:
            jumps = {0x55: registers[to] != value, 0x15: registers[to] == value}
            taken = jumps.get(opcode, registers[to] != registers[source])
            here += offset if taken else 0


_kinds, _access = {"b": 1, "c": 2}, {"m": 1, "r": 2, "w": 4}


@given(
    st.lists(
        st.builds(
            lambda allow, kind, access, *n: rule(allow, kind, access, *(x for x in n if x >= 0)),
            st.booleans(),
            st.sampled_from("abc"),
            st.sampled_from(["r", "rw", "rwm", "m"]),
            st.integers(0, 2),
            st.integers(-1, 2),
        ),
        max_size=6,
    ),
    st.sampled_from("bc"),
    st.sampled_from(["r", "w", "m", "rw"]),
    st.integers(0, 2),
    st.integers(0, 2),
)
def test_the_program_decides_as_the_rules_say(
    rules: list[dict[str, Any]], kind: str, access: str, major: int, minor: int
) -> None:
    default, exceptions = reduce_rules(rules)
    wanted = sum(_access[letter] for letter in access)
    covering = [
        e.access & wanted
        for e in exceptions
        if e.kind == kind and e.major in (-1, major) and e.minor in (-1, minor)
    ]
    expected = not any(covering) if default else any(bits == wanted for bits in covering)
    assert run(program(rules), kind, access, major, minor) is expected
