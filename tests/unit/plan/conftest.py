"""Plans are tested in the orchestrators' cluster, with the real allocator and scheduler."""

from tests.unit.orchestrator.conftest import whole

__all__ = ["whole"]
