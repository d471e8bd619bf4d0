"""The agent's memory on disk."""

from pathlib import Path

import pytest

from common.model.task import TaskState, TaskStatus
from tests.support import build
from worker.agent.journal import Entry, Journal

RUNNING = TaskStatus(state=TaskState.RUNNING)


async def reopened(path: Path) -> tuple[list[Entry], dict[str, str]]:
    journal = Journal(path)
    found = await journal.open()
    await journal.close()
    return found


async def test_what_was_put_is_there_again(tmp_path: Path) -> None:
    """AGT 237."""
    path = tmp_path / "agent" / "journal.db"
    journal = Journal(path)
    assert await journal.open() == ([], {})
    one, two = build.task(id="one"), build.task(id="two")
    journal.put(one, one.status)
    journal.put(one, RUNNING)
    journal.put(two, RUNNING)
    journal.put_fact("boot", "b1")
    await journal.flush()
    journal.drop("two")
    await journal.close()
    assert await reopened(path) == ([Entry(one, RUNNING)], {"boot": "b1"})


async def test_a_kill_after_a_flush_loses_nothing(tmp_path: Path) -> None:
    path = tmp_path / "journal.db"
    journal = Journal(path)
    await journal.open()
    journal.put(build.task(id="one"), RUNNING)
    await journal.flush()
    entries, _ = await reopened(path)  # without a close of the first
    assert [entry.task.id for entry in entries] == ["one"]
    await journal.close()


@pytest.mark.parametrize("damage", [b"garbage" * 999, b""])
async def test_a_damaged_file_is_put_aside(tmp_path: Path, damage: bytes) -> None:
    path = tmp_path / "journal.db"
    path.write_bytes(damage)
    assert await reopened(path) == ([], {})
    assert (tmp_path / "journal.damaged").exists() is bool(damage)
