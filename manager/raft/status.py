"""How a member stands, for those who use it."""

import msgspec

from manager.raft.core import Raft
from manager.raft.message import Member
from manager.raft.work import Role


class FollowerStatus(msgspec.Struct, frozen=True):
    """How the leader sees one of the others."""

    id: str
    match: int  # entries it has for sure
    mode: str  # probe, replicate or snapshot
    recently_active: bool


class RaftStatus(msgspec.Struct, frozen=True):
    """How a member stands. `followers` is known to the leader only."""

    role: str  # follower, pre-candidate, candidate or leader
    term: int
    leader_id: str  # "" while none is known
    members: tuple[Member, ...]
    commit: int
    applied: int
    followers: tuple[FollowerStatus, ...] = ()
    removed: bool = False  # the cluster has taken this member out, for good

    @property
    def is_leader(self) -> bool:
        return self.role == Role.LEADER.value

    @property
    def leader(self) -> Member | None:
        return next((member for member in self.members if member.id == self.leader_id), None)

    def is_silent(self, node_id: str) -> bool:
        """Whether the leader no longer hears the member on that node; False where there is none."""
        ids = {member.id for member in self.members if member.node_id == node_id}
        return any(one.id in ids and not one.recently_active for one in self.followers)


Identity = tuple[str, int, str, tuple[Member, ...], bool]


def identity(raft: Raft) -> Identity:
    """What `wait_change` watches."""
    members = raft.log.configuration.members
    return (raft.role.value, raft.term, raft.leader_id, members, raft.removed)


def status_of(raft: Raft, applied: int) -> RaftStatus:
    """The status of `raft`, whose machine holds the state after entry `applied`."""
    return RaftStatus(
        role=raft.role.value,
        term=raft.term,
        leader_id=raft.leader_id,
        members=raft.log.configuration.members,
        commit=raft.log.commit,
        applied=applied,
        followers=_followers(raft),
        removed=raft.removed,
    )


def _followers(raft: Raft) -> tuple[FollowerStatus, ...]:
    leadership = raft.leadership
    if leadership is None:
        return ()
    return tuple(
        FollowerStatus(member, progress.match, progress.mode.value, leadership.is_active(member))
        for member, progress in leadership.progress.items()
    )
