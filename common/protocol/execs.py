"""What a manager and an agent say to each other of a process that is run in a task's container.

    manager                                agent
      ExecRequest(task, command)  ──────►
      ExecInput(data) …           ──────►  ◄──────  ExecTaken: so many of them were written
      ExecCredit                  ──────►  ◄──────  ExecOutput(stream, data) …
      ExecResize, ExecCancel      ──────►  ◄──────  ExecEnd(exit code, or why there is none)

Neither end may have more messages of data under way than the other has given leave for.
"""

import msgspec

CREDIT = 16  # messages of output that may be under way at the beginning
INPUT_CREDIT = 16  # the same for input
PIECE = 32 * 1024  # bytes of data in one message at most


class ExecRequest(msgspec.Struct, frozen=True, kw_only=True, tag="exec"):
    """Run a command beside the process of a task. `env` goes on top of the task's own."""

    request_id: str
    task_id: str
    command: tuple[str, ...]
    env: tuple[str, ...] = ()
    user: str = ""
    workdir: str = ""
    tty: bool = False
    stdin: bool = False
    detach: bool = False
    privileged: bool = False
    size: tuple[int, int] | None = None  # rows and columns of the terminal


class ExecInput(msgspec.Struct, frozen=True, kw_only=True, tag="exec-in"):
    """For its standard input; no data: there is no more."""

    request_id: str
    data: bytes = b""


class ExecCredit(msgspec.Struct, frozen=True, kw_only=True, tag="exec-credit"):
    """The reader has taken a message of output: one more may be sent."""

    request_id: str


class ExecResize(msgspec.Struct, frozen=True, kw_only=True, tag="exec-size"):
    request_id: str
    rows: int
    columns: int


class ExecCancel(msgspec.Struct, frozen=True, kw_only=True, tag="exec-cancel"):
    """Nobody reads any more. The process goes on."""

    request_id: str


class ExecOutput(msgspec.Struct, frozen=True, kw_only=True, tag="exec-out"):
    request_id: str
    stream: int  # 1 stdout, 2 stderr
    data: bytes


class ExecTaken(msgspec.Struct, frozen=True, kw_only=True, tag="exec-taken"):
    """A message of input was written: one more may be sent."""

    request_id: str


class ExecEnd(msgspec.Struct, frozen=True, kw_only=True, tag="exec-end"):
    """`exit_code` is None for a detached process, and if there is none because of `error`."""

    request_id: str
    exit_code: int | None = None
    error: str = ""


ToAgentExec = ExecRequest | ExecInput | ExecCredit | ExecResize | ExecCancel
FromAgentExec = ExecOutput | ExecTaken | ExecEnd
