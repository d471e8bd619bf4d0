"""What a manager asks agents of what tasks use, for scaling by it."""

import msgspec

TASKS_MAX = 2000  # of one request


class UsageRequest(msgspec.Struct, frozen=True, kw_only=True, tag="usage"):
    """Say what these tasks use."""

    task_ids: tuple[str, ...]


class TaskUsage(msgspec.Struct, frozen=True, kw_only=True):
    """`cpu_ns`: all CPU time since its start. `memory`: bytes, without what the kernel can drop."""

    task_id: str
    cpu_ns: int
    memory: int


class UsageReport(msgspec.Struct, frozen=True, kw_only=True, tag="usage-is"):
    """Of those that run here. `at_ns` is of the node's own clock that never jumps."""

    at_ns: int
    tasks: tuple[TaskUsage, ...]
