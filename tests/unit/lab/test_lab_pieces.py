"""The lab's small parts: what is written down and found again."""

import os
import tomllib
from pathlib import Path

import pytest

from lab import cgroups, leaks, process
from lab.api import Api, Unreachable, wait_until
from lab.box import LabError
from lab.cluster import Cluster
from lab.files import toml, write_atomically
from lab.leaks import Snapshot


def test_settings_come_back_from_toml() -> None:
    settings: dict[str, object] = {
        "hostname": 'm"1\\',
        "listen_port": 2377,
        "stop_grace_s": 0.5,
        "yes": True,
        "hosts": ["a", "b"],
        "raft": {"heartbeat_ms": 100},
        "labels": {"disk type": "ssd"},
    }
    assert tomllib.loads(toml(settings)) == settings


def test_a_process_is_known_by_its_start_too(tmp_path: Path) -> None:
    me = process.of(os.getpid())
    assert me is not None
    assert me.alive
    process.record(tmp_path / "p", me)
    assert process.recorded(tmp_path / "p") == me
    later = process.Process(me.pid, me.started + 1)
    assert not later.alive
    later.signal(9)  # somebody else's process by now: nothing may happen
    assert later.wait(0)
    process.record(tmp_path / "p", later)
    assert process.recorded(tmp_path / "p") is None
    (tmp_path / "p").write_text("{")
    assert process.recorded(tmp_path / "p") is None
    assert process.of(2**22 - 1) is None


def test_files_are_replaced_whole(tmp_path: Path) -> None:
    path = tmp_path / "new" / "f"
    write_atomically(path, b"1")
    write_atomically(path, b"2")
    assert path.read_bytes() == b"2"
    assert os.listdir(path.parent) == ["f"]


@pytest.mark.parametrize("prefix", ["", "A", "a/b", "..", "a" * 25, "a b"])
def test_a_prefix_that_would_escape_is_refused(prefix: str, tmp_path: Path) -> None:
    with pytest.raises(LabError, match="prefix"):
        Cluster(prefix, root=tmp_path)


@pytest.mark.parametrize("name", ["", "/", "../x", "a/../.."])
def test_only_cgroups_below_the_hierarchies_are_removed(name: str) -> None:
    with pytest.raises(ValueError, match="below the hierarchies"):
        cgroups.remove(name)


def test_a_lab_that_is_not_there_can_be_removed(tmp_path: Path) -> None:
    cluster = Cluster("nothing-here", root=tmp_path)
    cluster.down()
    assert not cluster.exists
    with pytest.raises(LabError, match="run `up` first"):
        cluster.machine("m1")


def test_a_socket_nobody_listens_at(tmp_path: Path) -> None:
    with pytest.raises(Unreachable, match="no answer from"):
        Api(tmp_path / "s").get("/_ping")
    with pytest.raises(LabError, match="not within 0 s: it"):
        wait_until(lambda: False, "it", 0)


def test_a_difference_names_what_is_new() -> None:
    def snapshot(*links: str) -> Snapshot:
        nothing: frozenset[str] = frozenset()
        return Snapshot(nothing, nothing, nothing, frozenset(links), nothing, nothing)

    assert leaks.difference(snapshot("lo"), snapshot("lo", "veth0")) == ["links: veth0"]
    assert leaks.difference(snapshot("lo", "veth0"), snapshot("lo")) == []
