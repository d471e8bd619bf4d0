"""What a new cluster is made of, and what is asked of one that makes or joins it.

Pure, but for keys.
"""

import datetime as dt
import random

import msgspec

from common.apart import run_apart
from common.config import DaemonConfig
from common.errors import Invalid
from common.model.base import Model
from common.model.cluster import Cluster, ClusterSpec, EncryptionConfig, RootCA
from common.model.node import Availability, Node, NodeSpec, Role
from common.tls import MANAGER, Credentials, Identity
from manager.api.cluster import check
from manager.ca import certificates, tokens
from manager.raft.keyring import new_unlock_key
from node.identity import NodeState
from node.pools import check_pools


class InitRequest(Model, frozen=True, kw_only=True):
    """The body of `POST /swarm/init`."""

    listen_addr: str = ""
    advertise_addr: str = ""
    data_path_addr: str = ""
    data_path_port: int = 0
    default_addr_pool: tuple[str, ...] = ()
    subnet_size: int = 0
    force_new_cluster: bool = False
    auto_lock_managers: bool = False
    availability: str = ""
    spec: ClusterSpec = msgspec.field(default_factory=ClusterSpec)


class JoinRequest(Model, frozen=True, kw_only=True):
    """The body of `POST /swarm/join`."""

    listen_addr: str = ""
    advertise_addr: str = ""
    data_path_addr: str = ""
    remote_addrs: tuple[str, ...] = ()
    join_token: str = ""
    availability: str = ""


def check_init(asked: InitRequest) -> None:
    """Raises NotImplementedHere or Invalid for what cannot be had."""
    check(asked.spec)
    availability(asked.availability)
    if asked.data_path_port and not 1024 <= asked.data_path_port <= 49151:
        raise Invalid(f"data path port {asked.data_path_port} is not between 1024 and 49151")
    check_pools(asked.default_addr_pool, asked.subnet_size or 24)


def unlock_key(asked: InitRequest, rng: random.Random) -> str:
    """That of a new cluster; "" if its managers are not to be locked."""
    encryption = asked.spec.encryption_config
    return new_unlock_key(rng) if asked.auto_lock_managers or encryption.auto_lock_managers else ""


def availability(text: str) -> Availability:
    try:
        return Availability(text or "active")
    except ValueError as error:
        raise Invalid(f"availability {text!r} is not active, pause or drain") from error


async def first_certificate(
    state: NodeState, now: dt.datetime, rng: random.Random
) -> tuple[Credentials, RootCA]:
    """The first node's credentials, and the authority that made them."""
    identity = Identity(state.node_id, MANAGER, state.cluster_id)
    root, root_key, certificate, key = await run_apart(certificates.first, identity, now)
    ca = RootCA(
        certificate=root.decode(),
        key=root_key.decode(),
        join_token_worker=tokens.new_token(root, rng),
        join_token_manager=tokens.new_token(root, rng),
    )
    return Credentials(root=root, certificate=certificate, key=key), ca


def first_cluster(
    asked: InitRequest, state: NodeState, root: RootCA, config: DaemonConfig, unlock_key: str
) -> Cluster:
    return Cluster(
        id=state.cluster_id,
        spec=msgspec.structs.replace(
            asked.spec,
            name=asked.spec.name or "default",
            encryption_config=EncryptionConfig(auto_lock_managers=bool(unlock_key)),
        ),
        unlock_key=unlock_key,
        root_ca=root,
        default_addr_pool=asked.default_addr_pool or (config.overlay_pool,),
        subnet_size=asked.subnet_size or 24,
        data_path_port=asked.data_path_port or config.data_path_port,
        node_pool=config.node_pool,
    )


def first_node(asked: InitRequest, state: NodeState, now: dt.datetime) -> Node:
    spec = NodeSpec(role=Role.MANAGER, availability=availability(asked.availability))
    return Node(
        id=state.node_id, spec=spec, role=Role.MANAGER, certificate_issued_at=now.isoformat()
    )
