"""Who was killed for want of memory, by the kernel's log."""

import os
from pathlib import Path

import pytest

from worker.engine import oom
from worker.runtime.oomlog import Killed, OomLog, parse

KILL = (
    "6,812,23595392,-;oom-kill:constraint=CONSTRAINT_MEMCG,nodemask=(null),cpuset=/,"
    "mems_allowed=0,oom_memcg=/{0},task_memcg=/{0},task={1},pid={2},uid=0\n"
)
EVERYWHERE = (
    "6,813,23595399,-;oom-kill:constraint=CONSTRAINT_NONE,nodemask=(null),cpuset=c1,"
    "mems_allowed=0,global_oom,task_memcg=/shoal/c1,task=web,pid=77,uid=1000\n"
)


@pytest.mark.parametrize(
    ("record", "found"),
    [
        (KILL.format("shoal/c1", "tail", 5), ("/shoal/c1", Killed("tail", 5))),
        (EVERYWHERE, ("/shoal/c1", Killed("web", 77))),
        (KILL.format("shoal/c1", "a,pid=1,uid=0", 5), ("/shoal/c1", Killed("a,pid=1,uid=0", 5))),
        (KILL.format("shoal/c1", r"a\x0a\x1b[1m", 5), ("/shoal/c1", Killed("a??[1m", 5))),
        ("6,1,2,-;shoal0: port 1 entered disabled state\n", None),
        ("6,1,2,-;tail invoked oom-killer: gfp_mask=0xcc0\n", None),
        ("", None),
    ],
)
def test_a_record_names_the_killed(record: str, found: tuple[str, Killed] | None) -> None:
    assert parse(record) == found


def test_each_container_gets_its_own(tmp_path: Path) -> None:
    """Also those below it; a name that begins alike is another's."""
    path = tmp_path / "kmsg"
    os.mkfifo(path)
    log = OomLog(str(path))
    assert log.take("shoal/c1") == []  # a pipe cannot be sought: this machine has no such log
    path.unlink()
    path.write_text("")
    log = OomLog(str(path))
    with path.open("a") as kernel:
        for group, pid in (("shoal/c1", 1), ("shoal/c12", 2), ("shoal/c1/inner", 3)):
            kernel.write(KILL.format(group, "sh", pid))
            kernel.flush()
            log.take("shoal/nobody")  # reads on: a record of the kernel is one read
    assert log.take("shoal/c1") == [Killed("sh", 1), Killed("sh", 3)]
    assert log.take("shoal/c1") == []
    assert log.take("shoal/c12") == [Killed("sh", 2)]
    log.close()
    assert log.take("shoal/c1") == []


def test_without_a_log_nothing_is_known(tmp_path: Path) -> None:
    assert OomLog(str(tmp_path / "none")).take("shoal/c1") == []


def test_what_users_read() -> None:
    assert oom.reason({"oom_process": "web", "oom_pid": 7}) == (
        "out of memory: process web (pid 7) was killed"
    )
    assert oom.reason({}) == "out of memory: one of its processes was killed"
    assert oom.attributes({"process": "web", "pid": 7}) == {"process": "web", "pid": "7"}
    assert oom.attributes({}) == {}
