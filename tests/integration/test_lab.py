"""Machines of the lab: joined, cut off, without power; and nothing remains of them."""

import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from lab import leaks
from lab.api import wait_until
from lab.box import LabError
from lab.cluster import Cluster
from lab.machine import DaemonEnded, Machine

pytestmark = pytest.mark.root
BOOT_ID = "/proc/sys/kernel/random/boot_id"
PREFIX = f"t-lab-{os.getpid()}"


@pytest.fixture
def cluster() -> Iterator[Cluster]:
    """Two machines without daemons."""
    before = leaks.snapshot(PREFIX)
    made = Cluster(PREFIX)
    try:
        made.prepare(2)
        made.each(Machine.boot)
        yield made
    finally:
        Cluster(PREFIX).down()
    assert leaks.difference(before, leaks.snapshot(PREFIX)) == []


def reaches(source: Machine, target: str) -> bool:
    argv = ["busybox", "ping", "-c", "1", "-W", "1", target]
    return source.run(argv, check=False).returncode == 0


def test_machines_have_their_own_everything_and_reach_each_other(cluster: Cluster) -> None:
    one, two = cluster.machines
    assert one.exec("hostname").strip() == "m1"
    assert sorted(one.exec("ls", "/sys/class/net").split()) == ["eth0", "lo"]
    wait_until(lambda: reaches(one, two.ip), "m2 is reached", 10)
    wait_until(lambda: reaches(two, one.ip), "m1 is reached", 10)
    assert cluster.switch.run(["busybox", "ping", "-c", "1", one.ip]).returncode == 0
    one.exec("mount", "-t", "tmpfs", "none", "/mnt")
    assert " /mnt " in one.exec("cat", "/proc/mounts")
    for elsewhere in (two.exec("cat", "/proc/mounts"), Path("/proc/mounts").read_text()):
        assert " /mnt " not in elsewhere
    assert "memory" in one.exec("ls", "/sys/fs/cgroup") or Path(
        "/sys/fs/cgroup/cgroup.controllers"
    ).exists()  # fmt: skip


def test_a_pulled_cable_and_one_way_loss(cluster: Cluster) -> None:
    one, two = cluster.machines
    two.cut()
    assert cluster.switch.is_cut("m2")
    assert not reaches(one, two.ip)
    two.heal()
    wait_until(lambda: reaches(one, two.ip), "the link is up again", 10)
    for direction in ("in", "out"):
        two.cut(direction)  # type: ignore[arg-type]
        two.cut(direction)  # type: ignore[arg-type]
        assert cluster.switch.is_cut("m2")
        assert not cluster.switch.is_cut("m1")
        assert not reaches(one, two.ip)
        two.heal()
        two.heal()
        assert not cluster.switch.is_cut("m2")
        wait_until(lambda: reaches(one, two.ip), "nothing is lost any more", 10)


def test_without_power_all_its_processes_end_and_its_disk_remains(cluster: Cluster) -> None:
    one, two = cluster.machines
    (one.state_dir / "kept").write_text("1")
    (one.run_dir / "lost").write_text("1")
    one.exec("setsid", "--fork", "sh", "-c", "exec sleep 1000 >/dev/null 2>&1")
    sleeping = [process for pid, process in one.processes.items() if pid != 1]
    assert sleeping
    boot = one.exec("cat", BOOT_ID)
    assert boot != Path(BOOT_ID).read_text()
    one.kill()
    assert not any(process.alive for process in sleeping)
    assert (one.state_dir / "kept").exists()
    assert not (one.run_dir / "lost").exists()
    with pytest.raises(LabError, match="m1 is not up"):
        one.exec("true")
    one.kill()
    one.boot()
    assert one.exec("cat", BOOT_ID) not in (boot, Path(BOOT_ID).read_text())
    wait_until(lambda: reaches(two, one.ip), "m1 is reached again", 10)


def test_cgroups_and_what_runs_in_them_are_removed(cluster: Cluster) -> None:
    (one, _) = cluster.machines
    hierarchy = "pids" if Path("/sys/fs/cgroup/pids").is_dir() else "."
    group = Path("/sys/fs/cgroup", hierarchy, one.cgroup_parent, "payload")
    one.exec("mkdir", "-p", str(group))
    script = f"echo $$ > {group}/cgroup.procs; exec sleep 1000 >/dev/null 2>&1"
    one.exec("setsid", "--fork", "sh", "-c", script)
    wait_until(lambda: bool((group / "cgroup.procs").read_text()), "it has joined", 5)
    assert any("payload" in line for line in leaks.snapshot(PREFIX).cgroups)
    one.kill()
    assert not group.exists()


def test_a_new_process_finds_and_removes_everything(cluster: Cluster) -> None:
    """As after a crash of the lab: only what is on disk is known."""
    found = Cluster(PREFIX)
    assert found.exists
    assert [machine.init for machine in found.machines] == [
        machine.init for machine in cluster.machines
    ]
    (found.folder / "lab.json").unlink()  # even that may be lost
    argv = [sys.executable, "-m", "lab", "--prefix", PREFIX, "down"]
    done = subprocess.run(argv, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "")
    assert leaks.snapshot(PREFIX).processes == frozenset()
    assert not found.folder.exists()


def test_a_machine_whose_first_process_died_is_made_again(cluster: Cluster) -> None:
    one, two = cluster.machines
    init = one.init
    assert init is not None
    init.signal(signal.SIGKILL)
    assert init.wait(10)
    assert one.init is None
    one.boot()
    wait_until(lambda: reaches(two, one.ip), "m1 is reached again", 10)


STAND_IN = """
import http.server, os, socketserver, sys, tomllib
path = sys.argv[sys.argv.index("--host") + 1].removeprefix("unix://")
config = tomllib.load(open(sys.argv[sys.argv.index("--config") + 1], "rb"))
if config["labels"].get("broken"):
    sys.exit("it is broken")
class Handler(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        self.send_response(200)
        self.end_headers()
        self.wfile.write(b'{"pid": %d}' % os.getpid())
    def address_string(self):
        return ""
if os.path.exists(path):
    os.unlink(path)
socketserver.UnixStreamServer(path, Handler).serve_forever()
"""


@pytest.fixture
def stand_in(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A daemon that only answers."""
    (tmp_path / "node").mkdir()
    (tmp_path / "node" / "__init__.py").touch()
    (tmp_path / "node" / "main.py").write_text(STAND_IN)
    monkeypatch.setattr("lab.machine._PROJECT", tmp_path)


def test_a_daemon_is_started_found_again_killed_and_stopped(
    cluster: Cluster, stand_in: None
) -> None:
    one = cluster.machines[0]
    one._settings = {"labels": {"disk": "ssd"}}
    one.start_daemon()
    first = one.daemon
    assert first is not None
    assert one.processes[one.api.get("/info")["pid"]] == first
    assert Cluster(PREFIX).machine("m1").daemon == first
    one.start_daemon()
    assert one.daemon == first, "it ran already"
    for end in (one.kill_daemon, one.stop_daemon, one.kill):
        running = one.daemon
        assert running is not None
        end()
        assert not running.alive
        assert one.daemon is None
        one.start_daemon()
    one.kill_daemon()
    one._settings = {"labels": {"broken": "yes"}}
    with pytest.raises(DaemonEnded, match="it is broken"):
        one.start_daemon()


def test_errors_of_the_command_are_one_line() -> None:
    argv = [sys.executable, "-m", "lab", "--prefix", f"{PREFIX}-none"]
    for command in (["status"], ["cut", "m1"], ["kill", "m9"], ["start", "m1"]):
        done = subprocess.run([*argv, *command], capture_output=True, text=True, check=False)
        assert done.returncode == 1
        assert done.stderr.startswith("lab: ")
        assert done.stderr.count("\n") == 1
