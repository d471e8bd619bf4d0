"""What a manager's dispatcher and an agent say to each other. Data only.

One stream per agent, opened by the agent, one MessagePack message per frame.

    agent                                   dispatcher
      Hello(protocol, description)  ──────►   (identity from the certificate)
                                    ◄──────   Welcome(session, …) or Redirect(leader)
                                    ◄──────   Assign(sequence n, complete)
      Applied(sequence n)           ──────►
      StatusReport(statuses)        ──────►   ◄──────  StatusStored(through)
      Heartbeat(digest)             ──────►   ◄──────  Alive
                                    ◄──────   Assign(sequence n + 1, increment)
      Resync(reason)                ──────►   ◄──────  Assign(complete)
                                    ◄──────   SessionUpdate(role, managers, heartbeat)
                                    ◄──────   LogRequest(…) / LogCancel
      LogChunk / LogEnd             ──────►   ◄──────  LogCredit
    and what execs.py and usage.py have
"""

import msgspec

from common.model.node import NodeDescription
from common.model.secret import Config, Secret
from common.model.task import Task, TaskStatus
from common.protocol.execs import FromAgentExec, ToAgentExec
from common.protocol.network import NetworkChange
from common.protocol.usage import UsageReport, UsageRequest

PROTOCOL_VERSION = 1


class Manager(msgspec.Struct, frozen=True, kw_only=True):
    """A manager an agent may connect to: HOST:PORT of its cluster listener."""

    node_id: str
    address: str


class Hello(msgspec.Struct, frozen=True, kw_only=True, tag="hello"):
    protocol: int = PROTOCOL_VERSION
    description: NodeDescription
    address: str  # the node's own address on the underlay (VTEP)
    boot_id: str = ""  # changes when the machine starts anew


class Welcome(msgspec.Struct, frozen=True, kw_only=True, tag="welcome"):
    session_id: str
    node_id: str
    heartbeat_s: float
    role: str  # "worker" or "manager", as the operator wants it
    managers: tuple[Manager, ...]
    node_index: int
    node_pool: str  # CIDR, cut into a /22 for each node index
    data_path_port: int


class Redirect(msgspec.Struct, frozen=True, kw_only=True, tag="redirect"):
    """This manager does not lead. `leader` is None while none is known."""

    leader: Manager | None


class Refused(msgspec.Struct, frozen=True, kw_only=True, tag="refused"):
    """The node may not join (removed, wrong protocol, too many registrations)."""

    reason: str
    removed: bool = False  # the node was removed from the cluster: do not come back


class Assign(msgspec.Struct, frozen=True, kw_only=True, tag="assign"):
    """What the node should have. A complete one replaces everything, an increment follows the
    message with `sequence` less by one. Apply `network` before `tasks`. A complete one may have
    any `sequence`: it goes on from the node's session before."""

    sequence: int
    complete: bool = False
    tasks: tuple[Task, ...] = ()
    removed_tasks: tuple[str, ...] = ()
    secrets: tuple[Secret, ...] = ()  # what tasks of this message may need to start
    configs: tuple[Config, ...] = ()
    network: NetworkChange = NetworkChange()
    digest: str = ""  # of the network table that the node should have after this message
    tasks_digest: str = ""  # of the `task_mark`s of its tasks


class Applied(msgspec.Struct, frozen=True, kw_only=True, tag="applied"):
    """The node's kernel now agrees with the network part up to `sequence`."""

    sequence: int


class TaskStatusUpdate(msgspec.Struct, frozen=True, kw_only=True):
    task_id: str
    status: TaskStatus


class StatusReport(msgspec.Struct, frozen=True, kw_only=True, tag="status"):
    number: int  # counts reports in this session
    updates: tuple[TaskStatusUpdate, ...]


class StatusStored(msgspec.Struct, frozen=True, kw_only=True, tag="stored"):
    """All reports up to `number` are committed."""

    number: int


class Heartbeat(msgspec.Struct, frozen=True, kw_only=True, tag="beat"):
    sequence: int  # last assignment applied
    digest: str = ""  # of the network table after it


class Alive(msgspec.Struct, frozen=True, kw_only=True, tag="alive"):
    """The answer to a heartbeat: the manager is there too."""


class Resync(msgspec.Struct, frozen=True, kw_only=True, tag="resync"):
    """The agent's assignments do not add up: it wants a complete set.

    `digest`: it has applied all it was sent, and its table or tasks are not what they should be.
    """

    reason: str
    digest: bool = False


class SessionUpdate(msgspec.Struct, frozen=True, kw_only=True, tag="session"):
    role: str
    managers: tuple[Manager, ...]
    heartbeat_s: float


class LogRequest(msgspec.Struct, frozen=True, kw_only=True, tag="logs"):
    """Send log lines of these tasks. Times are nanoseconds since 1970; 0: no bound."""

    request_id: str
    task_ids: tuple[str, ...]
    follow: bool = False
    tail: int = -1  # lines of each task; -1: all
    since_ns: int = 0
    until_ns: int = 0
    stdout: bool = True
    stderr: bool = True
    credit: int = 8  # chunks that may be sent before the first LogCredit


class LogCredit(msgspec.Struct, frozen=True, kw_only=True, tag="logs-credit"):
    """The reader has taken `chunks` more: so many more may be sent."""

    request_id: str
    chunks: int = 1


class LogCancel(msgspec.Struct, frozen=True, kw_only=True, tag="logs-cancel"):
    request_id: str


class LogLine(msgspec.Struct, frozen=True, kw_only=True):
    task_id: str
    stream: int  # 1 stdout, 2 stderr
    time_ns: int
    data: bytes


class LogChunk(msgspec.Struct, frozen=True, kw_only=True, tag="log"):
    request_id: str
    lines: tuple[LogLine, ...]


class LogEnd(msgspec.Struct, frozen=True, kw_only=True, tag="log-end"):
    request_id: str
    error: str = ""


FromAgent = (
    Hello
    | Applied
    | StatusReport
    | Heartbeat
    | Resync
    | LogChunk
    | LogEnd
    | FromAgentExec
    | UsageReport
)
ToAgent = (
    Welcome
    | Redirect
    | Refused
    | Assign
    | Alive
    | StatusStored
    | SessionUpdate
    | LogRequest
    | LogCredit
    | LogCancel
    | ToAgentExec
    | UsageRequest
)

_encoder = msgspec.msgpack.Encoder()
_from_agent: msgspec.msgpack.Decoder[FromAgent] = msgspec.msgpack.Decoder(FromAgent)
_to_agent: msgspec.msgpack.Decoder[ToAgent] = msgspec.msgpack.Decoder(ToAgent)


def task_mark(task: Task) -> tuple[str, str]:
    """What both ends digest of a task: that it is there, and how far it should go."""
    return task.id, task.desired_state.value


def encode(message: FromAgent | ToAgent) -> bytes:
    return _encoder.encode(message)


def decode_from_agent(data: bytes) -> FromAgent:
    """Raises msgspec.DecodeError on hostile bytes."""
    return _from_agent.decode(data)


def decode_to_agent(data: bytes) -> ToAgent:
    """Raises msgspec.DecodeError on hostile bytes."""
    return _to_agent.decode(data)
