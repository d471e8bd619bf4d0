"""What a node and a manager say to each other about certificates and membership. Data only.

JSON bodies of HTTP calls to a manager's cluster listener; followers hand them to the leader.

    GET  /ca/root                                   the root certificate, PEM; no certificate needed
    POST /ca/issue    IssueRequest    -> Issued     a new node, by join token; none needed
    POST /ca/renew    RenewRequest    -> Issued     any node of the cluster
    POST /ca/abandon  (empty)                       a node whose join did not come to an end
    POST /raft/join   RaftJoin        -> RaftJoined a manager wants the log
    POST /raft/leave  (empty)                       a manager wants to be a worker
"""

import msgspec

from common.model.node import Availability


class IssueRequest(msgspec.Struct, frozen=True, kw_only=True):
    token: str
    request: str  # PEM; only its key is used
    availability: Availability = Availability.ACTIVE


class RenewRequest(msgspec.Struct, frozen=True, kw_only=True):
    request: str


class Issued(msgspec.Struct, frozen=True, kw_only=True):
    """Everything in the certificate was decided by the manager."""

    node_id: str
    cluster_id: str
    role: str
    certificate: str  # PEM


class RaftJoin(msgspec.Struct, frozen=True, kw_only=True):
    """`address` is HOST:PORT of the caller's listener, which must answer already.

    `raft_id` is "" for a member without a log: one that is new, or has lost its disk.
    """

    address: str
    raft_id: str = ""


class ReadIndex(msgspec.Struct, frozen=True, kw_only=True):
    """Who has applied the log up to `index` holds every write acknowledged before the question."""

    index: int


class RaftJoined(msgspec.Struct, frozen=True, kw_only=True):
    """A place in the log; and for a new one, how to lock the keyring before it has any entry.

    `lock_version` is the version of the cluster object that has the `unlock_key`; "": not locked.
    """

    raft_id: str
    unlock_key: str = ""
    lock_version: int = 0
