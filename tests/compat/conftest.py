"""The compatibility tests use the integration tests' clusters."""

import os

import pytest

from tests.integration.conftest import cluster, lab_allowed
from tests.support.docker_cli import CLIENTS

__all__ = ["cluster", "lab_allowed"]


@pytest.fixture(scope="session")
def debian(lab_allowed: None) -> str:
    """The distribution's own client."""
    return _program(CLIENTS[0] if CLIENTS else None)


@pytest.fixture(scope="module", params=CLIENTS or [None], ids=lambda path: str(path).strip("/"))
def program(request: pytest.FixtureRequest, lab_allowed: None) -> str:
    return _program(request.param)


def _program(path: str | None) -> str:
    if path is None:
        if os.environ.get("CI"):
            pytest.fail("CI must have the docker command: apt-get install docker.io")
        pytest.skip("the docker command is not installed")
    return path
