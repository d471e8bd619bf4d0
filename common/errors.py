"""The kinds of error a caller can act on.

    ShoalError
    ├── Invalid             400  the request is wrong; the message names field, value and remedy
    ├── Unauthorized        401  the key or password given is not the right one
    ├── Forbidden           403  the caller may not do this
    ├── NotFound            404  no such object
    ├── Conflict            409  the object's state or another object stands in the way
    ├── NotImplementedHere  501  Docker has it, Shoal does not (yet)
    └── Unavailable         503  try again later, or elsewhere
        ├── NotManager           this node is not a manager of a cluster
        ├── Locked               its keys are locked until somebody gives the unlock key
        ├── NotLeader            another manager leads; nothing was written
        └── ProposalUncertain    leadership was lost while writing; the write may have happened

Only `node/api` turns them into HTTP; the status stands here so that every part means the same.
"""

from typing import ClassVar


class ShoalError(Exception):
    """Base of all errors whose message is meant for a user."""

    http_status: ClassVar[int] = 500


class Invalid(ShoalError):
    """The request is wrong and will be wrong when repeated."""

    http_status = 400


class Unauthorized(ShoalError):
    """What the caller gave to prove its right is wrong."""

    http_status = 401


class Forbidden(ShoalError):
    """The caller's identity or role does not allow this."""

    http_status = 403


class NotFound(ShoalError):
    """No object of that name or id."""

    http_status = 404


class Conflict(ShoalError):
    """The object's present state, or another object, stands in the way."""

    http_status = 409


class PortTaken(Conflict):
    """A port of this node that another container, a service or a process has.

    One of `WORDS` is in its text: by them a task's error is known again elsewhere.
    """

    WORDS: ClassVar = ("address already in use", "port is already allocated")


class NotImplementedHere(ShoalError):
    """A documented capability that Shoal refuses rather than ignores."""

    http_status = 501


class Unavailable(ShoalError):
    """Not now: no quorum, no leader, a peer that does not answer in time."""

    http_status = 503


class NotManager(Unavailable):
    """This node is not a manager of a cluster, so it cannot serve cluster requests."""


class Locked(Unavailable):
    """This manager's keys are locked: nothing of the cluster can be read before `swarm unlock`."""

    def __init__(
        self,
        message: str = "Swarm is encrypted and needs to be unlocked before it can be used. "
        'Please use "docker swarm unlock" to unlock it.',
    ) -> None:
        super().__init__(message)


class NotLeader(Unavailable):
    """Another manager leads, or none does. Nothing was written.

    `leader_address` is "host:port" of the leader's cluster listener, or "" when none is known.
    """

    def __init__(self, message: str, leader_address: str = "") -> None:
        super().__init__(message)
        self.leader_address = leader_address


class ProposalUncertain(Unavailable):
    """Leadership or the deadline was lost while a write was under way: it may have happened."""
