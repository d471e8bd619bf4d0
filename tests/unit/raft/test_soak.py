"""Updating again and again makes neither log nor disk nor store grow: `bench.soak` in small."""

from pathlib import Path

import pytest

from bench.soak import SERVICES, Soak
from manager.raft.config import RaftConfig

pytestmark = pytest.mark.real_time

CONFIG = RaftConfig(snapshot_entries=50, keep_entries=20)
SEGMENT_BYTES = 64 << 10
SEGMENTS_MAX = 12  # with snapshots and spares; what is written would fill forty
STEP = 1_200
STEPS = 3


@pytest.mark.parametrize("members", [1, 3])
async def test_updates_leave_nothing_behind(tmp_path: Path, members: int) -> None:
    soak = Soak(tmp_path, members, CONFIG, SEGMENT_BYTES)
    steps = [held async for held in soak.run(STEPS * STEP, STEP, writers=4)]
    assert [len(held) for held in steps] == [members] * STEPS
    for one in [one for held in steps for one in held]:
        # The next snapshot may be due while one is being written.
        assert one.log_entries <= 3 * CONFIG.snapshot_entries + CONFIG.keep_entries
        assert one.disk_bytes <= SEGMENTS_MAX * SEGMENT_BYTES
        assert one.disk_files <= SEGMENTS_MAX + 5
        assert one.snapshot_bytes < 1_000 * SERVICES
        assert one.objects == 2 * SERVICES
