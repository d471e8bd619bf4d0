"""Where a node is reached now: a machine may come back with another address. Pure.

What was asked for decides: an interface's name is followed; an address that this machine had and
has lost gives way to the one that leads to the managers; an address that never was on it, as
behind a translating router, stays. That all managers move at once is not provided for: nobody
would be left to tell.
"""

import ipaddress
from collections.abc import Callable, Sequence

from msgspec.structs import replace

from common.config import DaemonConfig
from common.errors import Invalid
from node.address import Interface, advertised, join_address, split_port
from node.identity import NodeState


def moved(
    state: NodeState,
    config: DaemonConfig,
    interfaces: Sequence[Interface],
    towards_managers: Callable[[], str],
) -> NodeState:
    """`state` with the addresses that are right now; the same where nothing changed.

    `towards_managers` tells from which address of this machine the managers are reached; it and
    this raise Invalid where there is no address to choose.
    """
    host, port = split_port(state.address, config.listen_port, "advertise address")
    here = {address for one in interfaces for address in one.addresses}
    lost = state.data_address == host and not _is_here(host, here)
    new_host, new_port = host, port
    if config.advertise_addr or _is_interface(state.advertise, interfaces):
        given = config.advertise_addr or state.advertise
        new_host, new_port = advertised(given, port, interfaces)
    elif lost:
        new_host = towards_managers()
    return replace(
        state,
        address=join_address(new_host, new_port),
        data_address=_data_address(state, config, interfaces, new_host, towards_managers),
        listen=_listen(state.listen, host, new_host, here),
        managers=tuple(
            replace(one, address=join_address(new_host, new_port))
            if one.node_id == state.node_id
            else one
            for one in state.managers
        ),
    )


def _data_address(
    state: NodeState,
    config: DaemonConfig,
    interfaces: Sequence[Interface],
    new_host: str,
    towards_managers: Callable[[], str],
) -> str:
    here = {address for one in interfaces for address in one.addresses}
    given = config.data_path_addr or state.data_path
    if config.data_path_addr or _is_interface(given, interfaces):
        return advertised(given, 1, interfaces, "data path address")[0]
    followed = state.data_address == state.address.rpartition(":")[0]
    if followed and _is_here(new_host, here):
        return new_host
    if _is_here(state.data_address, here):
        return state.data_address
    if given:
        raise Invalid(
            f"data path address {given} is no longer on this machine; start shoald with another "
            "--data-path-addr"
        )
    return towards_managers()


def _listen(listen: str, host: str, new_host: str, here: set[str]) -> str:
    bound, port = split_port(listen, 1, "listen address")
    return join_address(new_host, port) if bound == host and bound not in here else listen


def _is_interface(given: str, interfaces: Sequence[Interface]) -> bool:
    name = given.rpartition(":")[0] or given
    return any(interface.name in (given, name) for interface in interfaces)


def _is_here(address: str, here: set[str]) -> bool:
    try:
        return address in here or ipaddress.ip_address(address).is_loopback
    except ValueError:
        return False  # a name
