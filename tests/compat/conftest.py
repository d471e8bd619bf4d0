"""The compatibility tests use the integration tests' clusters."""

from tests.integration.conftest import cluster, lab_allowed

__all__ = ["cluster", "lab_allowed"]
