"""Limits as files of both versions; version 2 on a fake folder."""

from pathlib import Path

import pytest

from worker.runtime.cgroups import V1, V2, Write, detect, device_rule, weight, writes_v1, writes_v2

RESOURCES = {
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
    with pytest.raises(FileNotFoundError):
        hierarchy.update("shoal/c1", {"memory": {"limit": 4096}})
    hierarchy.update("shoal/c1", {"memory": {"swap": 4096}})


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
