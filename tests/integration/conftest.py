"""Clusters of lab machines. They need root; a machine that cannot have them says why."""

import os
import shutil
from collections.abc import Iterator

import pytest

from lab import leaks
from lab.cluster import Cluster


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
        cluster.down()
    assert leaks.difference(before, leaks.snapshot(prefix)) == []
