"""Mount targets, copy-up and cgroups on the real kernel."""

import contextlib
import os
import signal
import stat
from collections.abc import Iterator
from pathlib import Path

import pytest

from worker.runtime import cgroups, targets
from worker.runtime import syscalls as sc
from worker.volumes.copyup import copy_up

pytestmark = pytest.mark.root
GROUP = f"shoal-kernel-{os.getpid()}"


@pytest.fixture
def root(tmp_path: Path) -> Iterator[tuple[int, Path]]:
    """A hostile root: links that point out of it, beside a folder that must stay empty."""
    inner, outside = tmp_path / "root", tmp_path / "outside"
    inner.mkdir()
    outside.mkdir()
    (inner / "abs").symlink_to(outside)
    (inner / "rel").symlink_to("../outside")
    (inner / "loop").symlink_to("loop")
    (inner / "proc").symlink_to("abs")
    fd = os.open(inner, os.O_PATH | os.O_DIRECTORY)
    yield fd, outside
    os.close(fd)
    assert list(outside.iterdir()) == []


@pytest.mark.parametrize("path", ["/abs/new", "/rel/new", "/rel/a/b/c", "/../../outside/x", "/abs"])
@pytest.mark.parametrize("directory", [True, False])
def test_targets_stay_inside(root: tuple[int, Path], path: str, directory: bool) -> None:
    """The fixture checks that nothing came to be outside."""
    with contextlib.suppress(NotADirectoryError, IsADirectoryError):
        fd = targets.open_target(root[0], path, directory)
        assert stat.S_ISDIR(os.fstat(fd).st_mode) is directory or path == "/abs"
        os.close(fd)


@pytest.mark.parametrize("directory", [True, False])
def test_a_target_is_made_where_it_is_missing(
    root: tuple[int, Path], tmp_path: Path, directory: bool
) -> None:
    (tmp_path / "root/etc").mkdir()
    (tmp_path / "root/etc/dangling").symlink_to("made")
    for path, made in (("/etc/hosts", "hosts"), ("/etc/dangling", "made")):
        fd = targets.open_target(root[0], path, directory)
        assert os.readlink(f"/proc/self/fd/{fd}") == f"{tmp_path}/root/etc/{made}"
        assert os.fstat(fd).st_mode == (stat.S_IFDIR | 0o755 if directory else stat.S_IFREG | 0o644)
        os.close(fd)


def test_a_loop_and_a_linked_proc_are_refused(root: tuple[int, Path]) -> None:
    with pytest.raises(OSError, match="symbolic link"):
        targets.open_target(root[0], "/loop/x", True)
    with pytest.raises(OSError, match="symbolic link"):
        targets.open_target(root[0], "/proc", True)


def test_magic_links_are_refused(tmp_path: Path) -> None:
    (tmp_path / "x").symlink_to("/proc/self/root")
    fd = os.open("/", os.O_PATH | os.O_DIRECTORY)
    try:
        with pytest.raises(OSError, match="symbolic link"):
            targets.open_target(fd, f"{tmp_path}/x/tmp", True)
    finally:
        os.close(fd)


def test_copy_up_of_a_hostile_image(tmp_path: Path) -> None:
    lower, upper, volume = tmp_path / "lower", tmp_path / "upper", tmp_path / "volume"
    for folder in (lower / "data/sub", upper / "data", volume):
        folder.mkdir(parents=True)
    (lower / "data/sub/file").write_text("below")
    (lower / "data/gone").write_text("removed by the layer above")
    os.mknod(upper / "data/gone", stat.S_IFCHR, 0)  # a whiteout
    (upper / "data/link").symlink_to("/etc/passwd")
    os.mknod(upper / "data/disk", stat.S_IFBLK | 0o666, os.makedev(254, 0))
    (upper / "data/top").write_text("above")
    os.chown(upper / "data/top", 5, 6)
    os.chmod(upper / "data/top", 0o4750)
    assert copy_up((upper, lower), "/data", volume)
    assert sorted(os.listdir(volume)) == ["link", "sub", "top"]
    assert (volume / "sub/file").read_text() == "below"
    assert os.readlink(volume / "link") == "/etc/passwd"
    info = (volume / "top").stat()
    assert (info.st_uid, info.st_gid, stat.S_IMODE(info.st_mode)) == (5, 6, 0o4750)
    assert not copy_up((upper, lower), "/data", volume)  # it is not empty any more
    assert not copy_up((upper, lower), "/missing", tmp_path / "upper/data/..")
    assert "overlay" not in Path("/proc/self/mounts").read_text().split(str(tmp_path))[-1]


def test_a_link_as_volume_path_stays_in_the_image(tmp_path: Path) -> None:
    lower, volume = tmp_path / "lower", tmp_path / "volume"
    (lower / "etc").mkdir(parents=True)
    (lower / "etc/mine").touch()
    volume.mkdir()
    (lower / "data").symlink_to("/etc")
    assert copy_up((lower,), "/data", volume)
    assert os.listdir(volume) == ["mine"]


def spawn(hierarchy: cgroups.Hierarchy, path: str) -> tuple[int, int]:
    """A process that waits in the cgroup."""
    into = hierarchy.clone_fd(path)
    pid = os.fork() if into < 0 else sc.clone3(0, into)[0]
    if pid == 0:
        try:
            if into < 0:
                hierarchy.join(path)
            while True:
                signal.pause()
        finally:
            os._exit(1)
    return pid, into


def hierarchies() -> list[cgroups.Hierarchy]:
    found: list[cgroups.Hierarchy] = [cgroups.detect()]
    if os.path.exists(f"{cgroups.ROOT}/unified/cgroup.controllers"):
        found.append(cgroups.V2(f"{cgroups.ROOT}/unified"))
    return found


@pytest.mark.parametrize("hierarchy", hierarchies(), ids=lambda h: f"v{h.version}")
def test_join_freeze_and_remove(hierarchy: cgroups.Hierarchy) -> None:
    path = f"{GROUP}/c1"
    hierarchy.create(path, {})
    pid = 0
    try:
        pid, into = spawn(hierarchy, path)
        while pid not in hierarchy.pids(path):
            os.sched_yield()
        hierarchy.freeze(path, True)
        assert hierarchy.remove(path) is False
        hierarchy.freeze(path, False)
        if into >= 0:
            os.close(into)
    finally:
        if pid:
            os.kill(pid, signal.SIGKILL)
            os.waitpid(pid, 0)
        while not hierarchy.remove(path):
            os.sched_yield()
        hierarchy.discard_empty(GROUP)
    assert hierarchy.remove(path)
