"""What the API has to know of the managers: who leads, and who can be reached."""

from collections.abc import Callable, Sequence

import msgspec

from manager.raft.status import RaftStatus


class ManagerInfo(msgspec.Struct, frozen=True):
    """One member of the Raft group. `reachability`: reachable, unreachable, or unknown: to all
    but the leader, and while the member catches up and has no vote."""

    node_id: str
    raft_id: str
    address: str
    leader: bool
    reachability: str
    votes: bool = True


Managers = Callable[[], Sequence[ManagerInfo]]


def managers_of(status: RaftStatus) -> list[ManagerInfo]:
    """The managers as a member of `status` sees them."""
    reach = {
        follower.id: "reachable" if follower.recently_active else "unreachable"
        for follower in status.followers
    }
    reach |= {
        member.id: "unknown"
        for member in status.members
        if member.learner and reach.get(member.id) == "reachable"
    }
    if status.leader_id:
        reach[status.leader_id] = "reachable"
    return [
        ManagerInfo(
            node_id=member.node_id,
            raft_id=member.id,
            address=member.address,
            leader=member.id == status.leader_id,
            reachability=reach.get(member.id, "unknown"),
            votes=not member.learner,
        )
        for member in status.members
    ]
