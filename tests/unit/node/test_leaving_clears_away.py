"""What a node keeps when it has left its cluster."""

import random
from pathlib import Path
from types import SimpleNamespace

from common.clock import SystemClock
from common.config import DaemonConfig
from node.worker import Worker


class Machine:
    """Engine and networks of a worker, as far as leaving goes."""

    def __init__(self) -> None:
        self.containers = {"mine": "", "task-1": "task-1", "task-2": "task-2"}  # id -> owner
        self.volumes_too: list[bool] = []
        self.in_networks = True

    def list(self, *, all: bool) -> list[SimpleNamespace]:
        assert all, "stopped ones go as well"
        return [SimpleNamespace(id=id, owner=owner) for id, owner in self.containers.items()]

    async def remove(self, id: str, *, force: bool, volumes: bool) -> None:
        assert force, "running ones too"
        self.volumes_too.append(volumes)
        del self.containers[id]

    async def leave(self) -> None:
        assert list(self.containers) == ["mine"], "first who uses them"
        self.in_networks = False


async def test_the_clusters_containers_go_and_others_stay(tmp_path: Path) -> None:
    """NOD 229."""
    config = DaemonConfig(state_dir=tmp_path, run_dir=tmp_path / "run")
    worker, machine = Worker(config, "1", SystemClock(), random.Random(1)), Machine()
    worker.engine = worker.networks = machine  # type: ignore[assignment]
    journal = tmp_path / "agent" / "journal.db"
    journal.parent.mkdir()
    journal.touch()
    await worker.forget_cluster()
    assert machine.containers == {"mine": ""}
    assert not machine.in_networks
    assert not journal.exists()
