"""The secrets and configs of this node's tasks: in memory only, and only while a task needs them.

Managers send them with the tasks. After a start of the daemon they come with the first complete
set of assignments; until then a task that has to be started waits for them.
"""

import asyncio
from collections.abc import Iterable, Mapping
from typing import NamedTuple

from common.errors import Invalid
from common.model.node import NodeDescription
from common.model.secret import Config, Secret
from common.model.task import CONFIGS, SECRETS, FileTarget, Task
from common.protocol.dispatcher import Assign
from common.templates import Context, context, expand


class Wanted(NamedTuple):
    """A file in a task's container: which object it holds, and where."""

    id: str
    target: FileTarget
    path: str


def wanted(task: Task) -> list[Wanted]:
    """The files of `task` in a fixed order."""
    spec = task.spec.container_spec
    if spec is None:
        return []
    secrets = [(item.secret_id, item.file, SECRETS) for item in spec.secrets]
    configs = [(item.config_id, item.file, CONFIGS) for item in spec.configs]
    return [
        Wanted(id, file, file.path(folder))
        for id, file, folder in (*secrets, *configs)
        if file is not None
    ]


class TaskFiles:
    """What the managers have sent."""

    def __init__(self) -> None:
        self._found: dict[str, Secret | Config] = {}
        self._news = asyncio.Event()  # replaced whenever something came

    def take(self, assign: Assign, tasks: Iterable[Task]) -> None:
        """Keep what came with `assign`, and of all only what `tasks` refer to."""
        came: tuple[Secret | Config, ...] = (*assign.secrets, *assign.configs)
        for file in came:
            self._found[file.id] = file
        if self._found:
            used = {file.id for task in tasks for file in wanted(task)}
            for id in [id for id in self._found if id not in used]:
                del self._found[id]
        if came:
            news, self._news = self._news, asyncio.Event()
            news.set()

    async def ready(self, task: Task) -> None:
        """Until all that `task` refers to is here."""
        while any(file.id not in self._found for file in wanted(task)):
            await self._news.wait()

    def contents(self, task: Task, node: NodeDescription) -> list[bytes]:
        """What the files of `task` hold, in the order of `wanted`; templates are filled in.

        Raises Invalid for a template that cannot be filled in, KeyError before `ready`.
        """
        files = wanted(task)
        names: Context | None = None
        found = []
        for file in files:
            spec = self._found[file.id].spec
            if spec.templating is None or not spec.templating.name:
                found.append(spec.data)
                continue
            names = names or self._context(task, node)
            found.append(expand(_text(spec.name, spec.data), names).encode())
        return found

    def _context(self, task: Task, node: NodeDescription) -> Context:
        spec = task.spec.container_spec
        assert spec is not None
        plain = context(task, node)
        lines = [expand(line, plain) for line in spec.env]
        calls = {
            "env": dict(line.partition("=")[::2] for line in lines),
            "secret": self._texts((item.secret_id, item.file) for item in spec.secrets),
            "config": self._texts((item.config_id, item.file) for item in spec.configs),
        }
        return Context(plain.fields, plain.labels, calls)

    def _texts(self, files: Iterable[tuple[str, FileTarget | None]]) -> Mapping[str, str]:
        """The data of other files by the name of their target."""
        texts = {}
        for id, target in files:
            if target is not None:
                texts[target.name] = self._found[id].spec.data.decode(errors="surrogateescape")
        return texts


def _text(name: str, data: bytes) -> str:
    try:
        return data.decode()
    except UnicodeDecodeError as error:
        raise Invalid(f"{name} is a template, but no text in UTF-8") from error
