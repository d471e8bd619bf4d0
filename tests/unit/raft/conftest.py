"""Files of the log, in memory where that can be: thousands of damaged ones are written here."""

import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest


@pytest.fixture
def tmp_path(tmp_path: Path) -> Iterator[Path]:
    memory = Path("/dev/shm")
    folder = tempfile.mkdtemp(dir=memory if memory.is_dir() else tmp_path)
    yield Path(folder)
    shutil.rmtree(folder)
