"""`swarm init --force-new-cluster`: what it does to this node's files and addresses."""

from collections.abc import Sequence

from msgspec.structs import replace

from common.clock import Clock
from common.config import DaemonConfig
from common.errors import Invalid
from common.protocol.dispatcher import Manager
from manager.raft.disk import FileDisk
from manager.raft.message import Member
from manager.recovery import make_survivor
from node.address import Interface, advertised, data_address, join_address, listening, split_port
from node.founding import InitRequest
from node.identity import IdentityFiles, NodeState

DEFAULT_LISTEN = "0.0.0.0:2377"  # what docker sends when nobody asked


def check_force(asked: InitRequest) -> None:
    """Raises Invalid for what a cluster that goes on cannot change."""
    for field, given in (
        ("DefaultAddrPool", asked.default_addr_pool),
        ("DataPathPort", asked.data_path_port),
        ("AutoLockManagers", asked.auto_lock_managers),
        ("Availability", asked.availability not in ("", "active")),
    ):
        if given:
            raise Invalid(
                f"{field} cannot be changed by force-new-cluster, which keeps the cluster as it "
                "was; leave it out and change it afterwards"
            )


def readdressed(
    asked: InitRequest, state: NodeState, config: DaemonConfig, interfaces: Sequence[Interface]
) -> NodeState:
    """`state` with the addresses that are asked for. Raises Invalid."""
    host, port = split_port(state.address, config.listen_port, "address")
    if asked.listen_addr not in ("", DEFAULT_LISTEN):
        listen = listening(asked.listen_addr, config.listen_port, interfaces)
        state = replace(state, listen=join_address(*listen))
    if asked.advertise_addr:
        before, (host, port) = host, advertised(asked.advertise_addr, port, interfaces)
        state = replace(state, address=join_address(host, port), advertise=asked.advertise_addr)
        if state.data_address == before and not asked.data_path_addr:
            state = replace(state, data_address=data_address("", host, interfaces))
    if asked.data_path_addr:
        overlay = data_address(asked.data_path_addr, host, interfaces)
        state = replace(state, data_address=overlay, data_path=asked.data_path_addr)
    return replace(state, managers=(Manager(node_id=state.node_id, address=state.address),))


async def go_on_alone(files: IdentityFiles, state: NodeState, clock: Clock) -> None:
    """Make this node's log that of a cluster with `state` as its only manager.

    Nobody else uses the log meanwhile. Raises ShoalError; then the log is as it was.
    """
    disk = FileDisk(files.raft_folder, state.raft_id, keyring=files.keyring)
    await make_survivor(disk, Member(state.raft_id, state.node_id, state.address), clock)
