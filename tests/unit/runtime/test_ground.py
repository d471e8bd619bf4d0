"""What of a start can be done before it is known which container it is for."""

from typing import Any

import pytest

from worker.runtime import syscalls as sc
from worker.runtime.child import Held, Stage
from worker.runtime.plan import plan
from worker.runtime.spare import pack, unpack
from worker.runtime.steps import Plan, ground

PROC = {"destination": "/proc", "type": "proc"}
DEV = {"destination": "/dev", "type": "tmpfs"}
SHM = {"destination": "/dev/shm", "type": "tmpfs", "options": ["size=1k"]}
SYS = {"destination": "/sys", "type": "sysfs"}
OVER_PROC = {"destination": "/proc/bus", "type": "bind", "source": "/s"}
MINE = {"destination": "/dev/shm", "type": "bind", "source": "/s", "options": ["bind"]}
PTS = {"destination": "/dev/pts", "type": "devpts"}


def made(*mounts: dict[str, Any], namespaces: tuple[dict[str, str], ...] = ()) -> Plan:
    return plan(
        {
            "root": {"path": "/r"},
            "process": {"args": ["a"]},
            "mounts": list(mounts),
            "linux": {
                "namespaces": [{"type": "mount"}, *namespaces],
                "cgroupsPath": "/p/c",
                "maskedPaths": ["/proc/keys", "/sys/firmware"],
                "readonlyPaths": ["/proc/sys"],
            },
        }
    )


@pytest.mark.parametrize(
    ("mounts", "count"),
    [
        ((PROC, DEV, SHM, SYS), 3),
        ((PROC, SHM, DEV), 1),  # it would be below another /dev
        ((PROC, DEV, MINE, PTS), 2),  # the order stays
        ((DEV, DEV, PROC), 1),
        ((SYS, PROC, DEV), 0),
        ((), 0),
    ],
)
def test_the_first_mounts_of_the_kernel_are_ground(
    mounts: tuple[dict[str, Any], ...], count: int
) -> None:
    steps = made(*mounts)
    assert ground(steps).mounts == steps.mounts[:count]


@pytest.mark.parametrize(
    ("mounts", "early"),
    [((PROC, DEV), True), ((PROC,), False), ((PROC, DEV, OVER_PROC), False)],
)
def test_what_is_mounted_later_is_hidden_as_well(
    mounts: tuple[dict[str, Any], ...], early: bool
) -> None:
    found = ground(made(*mounts))
    assert found.masked == (("/proc/keys",) if early else ())
    assert found.read_only == (("/proc/sys",) if early else ())


def test_a_network_makes_no_difference_but_another_namespace_does() -> None:
    network = {"type": "network", "path": "/netns/a"}
    processes = {"type": "pid", "path": "/proc/7/ns/pid"}
    assert ground(made(PROC, namespaces=(network,))) == ground(made(PROC))
    assert ground(made(PROC, namespaces=(processes,))).joins[0].kind == sc.CLONE_NEWPID


def test_a_stage_finds_its_descriptors_in_another_process() -> None:
    steps = made(PROC, DEV)
    held = Held(9, 4, 5, 6, -1, -1, 7, -1)
    stage = Stage(steps, ground(steps), b"filter", held, True)
    data, fds = pack(stage)
    assert fds == [9, 4, 5, 6, 7]
    assert unpack(data, [20, 21, 22, 23, 24]) == stage._replace(
        held=Held(20, 21, 22, 23, -1, -1, 24, -1)
    )
