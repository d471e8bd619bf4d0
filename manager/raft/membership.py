"""Changes of the membership, one member at a time (thesis 4.1, 4.2).

Two configurations that differ in one voter have majorities that overlap, so each change is
safe by itself if it starts only after the one before is committed. This module says what
the next configuration is, or why there is none; when it may start is the leader's business.
"""

import ipaddress
from collections.abc import Callable

import msgspec

from common.errors import Conflict, Invalid, NotFound
from manager.raft import quorum
from manager.raft.message import MEMBERS_MAX, Configuration, Member


class AddLearner(msgspec.Struct, frozen=True):
    """Let `member` receive the log. It gets its vote with Promote, once it has caught up."""

    member: Member


class Promote(msgspec.Struct, frozen=True):
    """Give the learner `id` its vote."""

    id: str


class Remove(msgspec.Struct, frozen=True):
    """Take out member `id`, for good: its id cannot come back."""

    id: str


class UpdateAddress(msgspec.Struct, frozen=True):
    """Member `id` is reached at `address` ("host:port") from here on."""

    id: str
    address: str


Change = AddLearner | Promote | Remove | UpdateAddress


class Standing(msgspec.Struct, frozen=True):
    """What the leader can say about its members."""

    leader_id: str
    active: Callable[[str], bool]  # heard from within an election time-out; the leader is
    caught_up: Callable[[str], bool]  # lacks so little that its vote would not slow us down


def next_configuration(
    configuration: Configuration, change: Change, standing: Standing
) -> Configuration:
    """`configuration` after `change`; the same object if nothing has to change.

    Raises NotFound, Invalid or Conflict, saying why the change is refused.
    """
    match change:
        case AddLearner(member):
            return _add(configuration, member)
        case Promote(member_id):
            return _promote(configuration, _known(configuration, member_id), standing)
        case Remove(member_id):
            return _remove(configuration, member_id, standing)
        case UpdateAddress(member_id, address):
            member = _known(configuration, member_id)
            return _replace(configuration, msgspec.structs.replace(member, address=address))


def _add(configuration: Configuration, member: Member) -> Configuration:
    if not member.id or not member.node_id:
        raise Invalid("a manager needs a raft id and a node id to join")
    if member.id in configuration.removed:
        raise Conflict(
            f"manager {member.id} was removed from this cluster and cannot come back under the "
            "same raft id; let the node leave and join again"
        )
    if present := configuration.find(member.id):
        # Joining again, perhaps from another address; it keeps the vote it has.
        return _replace(configuration, msgspec.structs.replace(present, address=member.address))
    for other in configuration.members:
        if other.node_id == member.node_id:
            raise Conflict(
                f"node {member.node_id} is already manager {other.id}; remove that member first"
            )
    if len(configuration.members) >= MEMBERS_MAX:
        raise Conflict(f"the cluster has {MEMBERS_MAX} managers, which is the most it can have")
    return _replace(configuration, msgspec.structs.replace(member, learner=True))


def _promote(configuration: Configuration, member: Member, standing: Standing) -> Configuration:
    if not member.learner:
        return configuration
    if not standing.active(member.id) or not standing.caught_up(member.id):
        raise Conflict(f"manager {member.id} has not caught up; try again later")
    promoted = _replace(configuration, msgspec.structs.replace(member, learner=False))
    _keep_quorum(promoted, standing, f"promoting manager {member.id}")
    return promoted


def _remove(configuration: Configuration, member_id: str, standing: Standing) -> Configuration:
    if member_id in configuration.removed:
        return configuration
    member = _known(configuration, member_id)
    if member_id == standing.leader_id:
        raise Conflict(f"manager {member_id} leads; transfer leadership before removing it")
    rest = Configuration(
        tuple(other for other in configuration.members if other.id != member_id),
        (*configuration.removed, member_id),
    )
    if not member.learner:
        _keep_quorum(rest, standing, f"removing manager {member_id}")
    return rest


def _keep_quorum(configuration: Configuration, standing: Standing, what: str) -> None:
    voters = configuration.voters
    if not quorum.reached(voters, standing.active):
        active = sum(map(standing.active, voters))
        raise Conflict(
            f"{what} would leave {active} reachable of {len(voters)} managers, which is no "
            "majority; bring other managers back first"
        )


def _known(configuration: Configuration, member_id: str) -> Member:
    if member := configuration.find(member_id):
        return member
    raise NotFound(f"no manager has the raft id {member_id}")


def _replace(configuration: Configuration, member: Member) -> Configuration:
    """`configuration` with `member` in the place of the one with its id, or added."""
    _check_address(member.address)
    members = {other.id: other for other in configuration.members}
    if members.get(member.id) == member:
        return configuration
    for other in configuration.members:
        if other.address == member.address and other.id != member.id:
            raise Conflict(f"address {member.address} belongs to manager {other.id}")
    return Configuration(tuple((members | {member.id: member}).values()), configuration.removed)


def _check_address(address: str) -> None:
    host, _, port = address.rpartition(":")
    plain = host.removeprefix("[").removesuffix("]")
    valid = bool(plain) and port.isascii() and port.isdigit() and 0 < int(port) < 65536
    if valid and ":" in plain:
        try:
            ipaddress.IPv6Address(plain)
        except ValueError:
            valid = False
    if not valid or len(address) > 300:
        raise Invalid(f"manager address {address!r} is not HOST:PORT")
