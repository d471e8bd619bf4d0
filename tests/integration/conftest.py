"""Clusters of lab machines. They need root; a machine that cannot have them says why."""

import os
import shutil
from collections.abc import Iterator

import pytest

from lab import leaks
from lab.cluster import Cluster
from lab.machine import Machine

# What stays zero unless somebody breaks what is ours, or we make a mistake.
COUNTERS = ("shoal_network_differences", "shoal_network_repairs", "shoal_dispatcher_table")


def why_not() -> str:
    """Why no lab can run here; empty when it can."""
    if os.geteuid() != 0:
        return "lab machines need root"
    if shutil.which("busybox") is None:
        return "lab images need busybox-static"
    return ""


@pytest.fixture(scope="session")
def lab_allowed() -> None:
    reason = why_not()
    if reason and os.environ.get("CI"):
        pytest.fail(f"CI must run these tests: {reason}")
    if reason:
        pytest.skip(reason)


def differing(machine: Machine) -> list[str]:
    """Where the kernel of a machine is, or was, not what its endpoint table wants."""
    if machine.daemon is None:
        return []
    found = [f"{machine.name}: {line}" for line in machine.api.post("/shoal/network/audit")]
    for line in machine.api.get("/metrics").splitlines():
        name, _, value = line.rpartition(" ")
        if not line.startswith("#") and name.startswith(COUNTERS) and value != "0":
            found.append(f"{machine.name}: {line}")
    return found


@pytest.fixture(scope="module")
def cluster(request: pytest.FixtureRequest, lab_allowed: None) -> Iterator[Cluster]:
    """Three machines with daemons, in no cluster yet. Nothing may be left of them afterwards."""
    prefix = f"t{os.getpid()}-{request.module.__name__.rpartition('.')[2][5:17].replace('_', '-')}"
    before = leaks.snapshot(prefix)
    cluster = Cluster(prefix)
    cluster.down()
    try:
        yield cluster
    finally:
        if request.session.testsfailed:
            for machine in cluster.machines:
                print(f"--- {machine.name}\n{machine.log_tail(60)}")  # noqa: T201
        differences = [line for machine in cluster.machines for line in differing(machine)]
        cluster.down()
    assert differences == []
    assert leaks.difference(before, leaks.snapshot(prefix)) == []
