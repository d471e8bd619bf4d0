"""The agent's memory on disk: its tasks and what it last said of them.

What matters is a hint for the time without a manager: the truth is the manager's assignments and
the engine's containers, so a write may be lost in a power cut but never block anything. Writes are
collected and done in a thread.
"""

import asyncio
import logging
import sqlite3
from pathlib import Path

import msgspec

from common.model.task import Task, TaskStatus

log = logging.getLogger(__name__)

_FORMAT = 1
_SCHEMA = """
CREATE TABLE IF NOT EXISTS tasks (id TEXT PRIMARY KEY, task BLOB NOT NULL, status BLOB NOT NULL);
CREATE TABLE IF NOT EXISTS facts (name TEXT PRIMARY KEY, value TEXT NOT NULL);
"""
_encoder = msgspec.msgpack.Encoder()
_task = msgspec.msgpack.Decoder(Task)
_status = msgspec.msgpack.Decoder(TaskStatus)


class Entry(msgspec.Struct, frozen=True):
    """A task as last assigned, and as last reported."""

    task: Task
    status: TaskStatus


class Journal:
    """Open it, read it once, then write as things change. `run` does the writing."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._db: sqlite3.Connection | None = None
        self._entries: dict[str, Entry | None] = {}  # to write; None: delete
        self._facts: dict[str, str] = {}
        self._news = asyncio.Event()

    async def open(self) -> tuple[list[Entry], dict[str, str]]:
        """All tasks and facts. A file that cannot be read is put aside: the manager knows the
        tasks and the engine the containers, so that nothing but time is lost."""
        try:
            return await asyncio.to_thread(self._open)
        except (sqlite3.DatabaseError, msgspec.MsgspecError, ValueError) as error:
            log.warning("the agent's journal %s is damaged and put aside: %s", self._path, error)
            self._close()
            await asyncio.to_thread(self._put_aside)
            return await asyncio.to_thread(self._open)

    def put(self, task: Task, status: TaskStatus) -> None:
        self._entries[task.id] = Entry(task, status)
        self._news.set()

    def drop(self, task_id: str) -> None:
        self._entries[task_id] = None
        self._news.set()

    def put_fact(self, name: str, value: str) -> None:
        self._facts[name] = value
        self._news.set()

    async def run(self) -> None:
        """Write what there is, until cancelled."""
        while True:
            await self._news.wait()
            await self.flush()

    async def flush(self) -> None:
        """Write what is waiting. An error of the disk is logged; the agent goes on."""
        self._news.clear()
        entries, self._entries = self._entries, {}
        facts, self._facts = self._facts, {}
        try:
            await asyncio.to_thread(self._write, entries, facts)
        except sqlite3.Error as error:
            log.error("cannot write the agent's journal %s: %s", self._path, error)

    async def close(self) -> None:
        """Write the rest and close."""
        if self._db is not None:
            await self.flush()
            self._close()

    def _open(self) -> tuple[list[Entry], dict[str, str]]:
        self._path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        # One thread at a time uses it: the threads of `to_thread`, each awaited.
        self._db = sqlite3.connect(self._path, check_same_thread=False)
        self._db.execute("PRAGMA journal_mode = WAL")
        self._db.execute("PRAGMA synchronous = NORMAL")
        found = self._db.execute("PRAGMA user_version").fetchone()[0]
        if found not in (0, _FORMAT):
            raise ValueError(f"it has format {found}; this version reads {_FORMAT}")
        self._db.executescript(_SCHEMA)
        self._db.execute(f"PRAGMA user_version = {_FORMAT}")
        entries = [
            Entry(_task.decode(task), _status.decode(status))
            for task, status in self._db.execute("SELECT task, status FROM tasks ORDER BY id")
        ]
        return entries, dict(self._db.execute("SELECT name, value FROM facts"))

    def _put_aside(self) -> None:
        self._path.replace(self._path.with_suffix(".damaged"))
        for suffix in ("-wal", "-shm"):
            self._path.with_name(self._path.name + suffix).unlink(missing_ok=True)

    def _write(self, entries: dict[str, Entry | None], facts: dict[str, str]) -> None:
        assert self._db is not None
        with self._db:
            self._db.executemany(
                "INSERT OR REPLACE INTO tasks VALUES (?, ?, ?)",
                [
                    (id, _encoder.encode(entry.task), _encoder.encode(entry.status))
                    for id, entry in entries.items()
                    if entry is not None
                ],
            )
            self._db.executemany(
                "DELETE FROM tasks WHERE id = ?",
                [(id,) for id, entry in entries.items() if entry is None],
            )
            self._db.executemany("INSERT OR REPLACE INTO facts VALUES (?, ?)", facts.items())

    def _close(self) -> None:
        if self._db is not None:
            self._db.close()
            self._db = None
