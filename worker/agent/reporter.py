"""Which statuses the manager does not have yet. Pure.

Only the newest status of a task is sent, one report at a time: what happens while a report is on
its way goes together into the next. What was sent but not stored is sent again in the next session.
"""

from common.model.task import TaskStatus
from common.protocol.dispatcher import StatusReport, TaskStatusUpdate

UPDATES_MAX = 1024


class Reporter:
    """The statuses to be sent, and those that wait to be stored."""

    def __init__(self) -> None:
        self._pending: dict[str, TaskStatus] = {}
        self._sent: dict[str, TaskStatus] = {}
        self._number = 0

    def note(self, task_id: str, status: TaskStatus) -> None:
        """This is the newest status of the task."""
        self._pending[task_id] = status

    def drop(self, task_id: str) -> None:
        """The task is no longer this node's."""
        self._pending.pop(task_id, None)
        self._sent.pop(task_id, None)

    def begin_session(self) -> None:
        """Nothing of the last session's reports is sure any more."""
        self._pending = self._sent | self._pending
        self._sent = {}
        self._number = 0

    def next(self) -> StatusReport | None:
        """The next report, if there is something to say and the last one is stored."""
        if self._sent or not self._pending:
            return None
        self._sent = dict(list(self._pending.items())[:UPDATES_MAX])
        for id in self._sent:
            del self._pending[id]
        self._number += 1
        updates = (TaskStatusUpdate(task_id=id, status=s) for id, s in self._sent.items())
        return StatusReport(number=self._number, updates=tuple(updates))

    def stored(self, number: int) -> None:
        """The manager has committed all reports up to `number`."""
        if number >= self._number:
            self._sent = {}

    def is_stored(self, number: int) -> bool:
        """Whether report `number` of this session is."""
        return number < self._number or not self._sent

    @property
    def idle(self) -> bool:
        """Whether the manager has it all."""
        return not self._pending and not self._sent
