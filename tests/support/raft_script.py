"""Scripted conversations between Raft cores: commands in, state out, readable as documentation.

In a script, a line that starts with `> ` is a command; indented lines after it are what it must
print; all else is prose for the reader. Entries are written index/term.

    cluster abc a=2,3 b=2@4      three members; behind the configuration, entries of these terms,
                                 and after @ the term that the member is in
    learner d                    a new member with an empty log starts and waits
    tick a 10                    time passes for a alone
    elect a                      a runs into its time-out, the others' leases end; then `settle`
    deliver                      deliver one round of messages, printing each
    settle                       deliver until nobody has anything to say
    lose                         all that is on its way is lost
    part a b 2                   an append of a's that ends at entry 2 reaches b
    cut ab                       what crosses between a, b and the others is lost from now on
    heal                         nothing is lost any more
    crash a                      a starts again with what is on its disk
    propose a text               a client's write
    add|promote|remove a d       a membership change, asked of a
    transfer a b                 a is to hand leadership to b
    read a 1                     a linearizable read, numbered 1, asked of a
    reads                        which reads were answered, and from which index
    snapshot a 5                 a saves a snapshot at entry 5 and forgets the log before it
    state                        all members
    data b                       what b's state machine has applied
"""

import zlib
from collections.abc import Callable, Iterable, Iterator

import msgspec

from common.errors import ShoalError
from manager.raft.core import Raft
from manager.raft.log import Log
from manager.raft.membership import AddLearner, Change, Promote, Remove
from manager.raft.message import (
    AnyMessage,
    Append,
    AppendReply,
    Entry,
    EntryKind,
    HardState,
    Heartbeat,
    HeartbeatReply,
    Removed,
    SnapshotChunk,
    SnapshotMeta,
    SnapshotReply,
    TimeoutNow,
    Vote,
    VoteReply,
)
from tests.support.raft_cores import CONFIG, Cores, core
from tests.support.raft_world import member

INDENT = "    "
SCRIPT_CONFIG = msgspec.structs.replace(CONFIG, keep_entries=0)


def rewrite(script: str) -> str:
    """`script` with what its commands print now."""
    conversation = _Conversation()
    lines: list[str] = []
    after_command = False
    for line in script.splitlines():
        if line.startswith("> "):
            lines.append(line)
            lines.extend(INDENT + printed for printed in conversation.run(line[2:]))
            after_command = True
        elif not (after_command and line.startswith(INDENT)):
            lines.append(line)
            after_command = False
    return "\n".join(lines) + "\n"


class _Conversation:
    """The members of one script."""

    def __init__(self) -> None:
        self._cores = Cores()
        self._side = ""  # of the cut
        self._commands: dict[str, Callable[..., Iterable[str] | None]] = {
            name.removeprefix("_do_"): getattr(self, name)
            for name in dir(self)
            if name.startswith("_do_")
        }

    def run(self, line: str) -> Iterator[str]:
        """Do one command; what it prints. A refusal by the core is printed, too."""
        name, *words = line.split()
        try:
            yield from self._commands[name](*words) or ()
        except ShoalError as error:
            yield f"refused: {error}"
        self._cores.work()

    def _keep(self, message: AnyMessage) -> bool:
        return (message.source in self._side) == (message.target in self._side)

    # Members and time

    def _do_cluster(self, members: str, *logs: str) -> None:
        given = {log[0]: log[2:] for log in logs}
        self._cores = Cores(*(_member(m, members, given.get(m, "")) for m in members))
        self._side = ""

    def _do_learner(self, name: str) -> None:
        self._put(core(name, "", config=SCRIPT_CONFIG))
        self._cores.applied[name] = []

    def _put(self, raft: Raft) -> None:
        self._cores.rafts[raft.id] = raft

    def _do_crash(self, name: str) -> None:
        """All is on disk: `work` syncs at once. What was on its way from here still arrives."""
        old = self._cores[name]
        log, base = old.log, old.log.base_index
        entries = log.slice(base + 1, log.stable)
        fresh = Log(base, log.base_term, log.configuration_at(base), entries)
        state = HardState(old.term, old.voted_for)
        rng = core(name)._rng
        self._put(Raft(name, SCRIPT_CONFIG, rng, fresh, state, old.snapshot))
        del self._cores.applied[name][:]

    def _do_tick(self, name: str, count: str) -> None:
        self._cores.tick(name, int(count))

    def _do_elect(self, name: str) -> None:
        self._cores.elect(name, self._keep)

    # Network

    def _do_deliver(self) -> list[str]:
        self._cores.work()
        lines = [
            f"{m.source} -> {m.target}  {describe(m)}{'' if self._keep(m) else '  (lost)'}"
            for m in self._cores.messages
        ]
        self._cores.deliver(self._keep)
        return lines

    def _do_settle(self) -> None:
        self._cores.settle(self._keep)

    def _do_lose(self) -> None:
        self._cores.work()
        self._cores.messages.clear()

    def _do_part(self, source: str, target: str, last: str) -> None:
        """What a leader with a smaller limit for one message would have sent."""
        raft = self._cores[source]
        before = raft.log.base_index + 1
        entries = raft.log.slice(before + 1, int(last))
        term = raft.log.term(before) or 0
        commit = raft.log.commit
        self._cores[target].step(Append(source, target, raft.term, before, term, commit, entries))

    def _do_cut(self, side: str) -> None:
        self._side = side

    def _do_heal(self) -> None:
        self._side = ""

    # Requests

    def _do_propose(self, name: str, data: str) -> Iterator[str]:
        yield f"entry {self._cores[name].propose(data.encode())}"

    def _change(self, name: str, change: Change) -> Iterator[str]:
        yield f"entry {self._cores[name].propose_change(change)}"

    def _do_add(self, name: str, new: str) -> Iterator[str]:
        return self._change(name, AddLearner(member(new)))

    def _do_promote(self, name: str, learner: str) -> Iterator[str]:
        return self._change(name, Promote(learner))

    def _do_remove(self, name: str, gone: str) -> Iterator[str]:
        return self._change(name, Remove(gone))

    def _do_transfer(self, name: str, target: str = "") -> Iterator[str]:
        yield f"to {self._cores[name].transfer(target)}"

    def _do_read(self, name: str, token: str) -> None:
        self._cores[name].read_index(int(token))

    def _do_reads(self) -> list[str]:
        done, self._cores.reads = self._cores.reads, []
        return [f"read {token} at {index}" for token, index in done] or ["none"]

    def _do_snapshot(self, name: str, index: str) -> None:
        log, at = self._cores[name].log, int(index)
        data = b"state after %d" % at
        term = log.term(at)
        assert term is not None
        assert at <= log.applied
        meta = SnapshotMeta(at, term, log.configuration_at(at), len(data), zlib.crc32(data))
        self._cores.snapshots[name] = data
        self._cores[name].snapshot_saved(meta)

    # What is

    def _do_state(self) -> list[str]:
        return [state(raft) for raft in self._cores.rafts.values()]

    def _do_data(self, name: str) -> list[str]:
        applied = [e.data for e in self._cores.applied[name] if e.kind is EntryKind.DATA]
        return [" ".join(data.decode() for data in applied) or "nothing"]


def _member(name: str, members: str, given: str) -> Raft:
    log, _, term = given.partition("@")
    terms = [int(entry) for entry in log.split(",") if entry]
    state = HardState(int(term), "", 1) if term else None
    return core(name, members, terms, hard_state=state, config=SCRIPT_CONFIG)


def state(raft: Raft) -> str:
    """One member in one line; `|` is the end of what it knows to be committed."""
    log = raft.log
    base = [f"..{log.base_index}/{log.base_term}"] if log.base_index else []
    if log.base_index and log.commit <= log.base_index:
        base.append("|")
    for entry in log.slice(log.base_index + 1, log.last_index):
        base.append(_entry(entry))
        if entry.index == log.commit:
            base.append("|")
    removed = " removed" if raft.removed else ""
    members = "".join(f"({m.id})" if m.learner else m.id for m in log.configuration.members)
    return (
        f"{raft.id} {raft.role.value}{removed}, term {raft.term}, vote {raft.voted_for or '-'}, "
        f"follows {raft.leader_id or '-'}, members {members or '-'}: {' '.join(base) or 'empty'}"
    )


def _entry(entry: Entry) -> str:
    mark = {EntryKind.DATA: "", EntryKind.NOOP: "n", EntryKind.CONFIGURATION: "m"}
    return f"{entry.index}/{entry.term}{mark[entry.kind]}"


def describe(message: AnyMessage) -> str:
    """A message in a few words."""
    term = f"term {message.term}"
    match message:
        case Vote(pre=pre, last_index=index, last_term=last_term, transfer=transfer):
            what = "would you vote for me" if pre else "vote for me"
            return f"{term}: {what}{', our leader wants it' * transfer}, I have {index}/{last_term}"
        case VoteReply(pre=pre, granted=granted):
            return f"{term}: {'I would' if pre else 'vote'} {'granted' if granted else 'refused'}"
        case Append(previous_index=index, previous_term=previous, entries=entries, commit=commit):
            sent = " ".join(map(_entry, entries)) or "nothing"
            return f"{term}: after {index}/{previous} comes {sent}, commit {commit}"
        case AppendReply(rejected=True, index=index, hint_index=hint, hint_term=hint_term):
            return f"{term}: no {index} here, try {hint}/{hint_term}"
        case AppendReply(index=index):
            return f"{term}: have all to {index}"
        case Heartbeat(round=number, commit=commit):
            return f"{term}: I lead, round {number}, commit {commit}"
        case HeartbeatReply(round=number):
            return f"{term}: I follow, round {number}"
        case SnapshotChunk(meta=meta, offset=offset, data=data):
            return (
                f"{term}: snapshot {meta.index}/{meta.term}, bytes {offset} to {offset + len(data)}"
            )
        case SnapshotReply(index=index, offset=offset):
            return f"{term}: snapshot {index}, go on at {offset}"
        case TimeoutNow():
            return f"{term}: stand for election now"
        case Removed():
            return f"{term}: you were removed"
