"""The nf_tables table of the bridges that users made: apart from each other, and the way out.

Published ports lead in by the machine's own table (`ingress.py`); this one lets pass what was
translated there. A packet that nobody asked for reaches no container from outside its bridge.

    chain forward: established flows; what leaves an internal network; what goes to a bridge (from
    itself, or translated); what a bridge sends to the node's own one. All else is none of ours.
"""

from collections.abc import Sequence
from ipaddress import IPv4Network
from typing import NamedTuple

from worker.network.netlink import nft
from worker.network.netlink.codec import Message

_FOLLOWS = 2 | 4  # ct state established, related


class BridgeRule(NamedTuple):
    """What the rules need to know of a bridge."""

    link: str
    subnet: IPv4Network
    internal: bool = False
    talk: bool = True
    masquerade: bool = True


def ruleset(table: str, bridges: Sequence[BridgeRule], own: Sequence[str]) -> list[Message]:
    """The whole table. `own`: the node's bridge and mesh, which these bridges' containers may only
    reach by published ports."""
    return [
        *nft.fresh_table(table),
        *(nft.add_map(table, name, [(nft.IFNAME, 16)], [(nft.VERDICT, 16)]) for name in _MAPS),
        *_guard(table, bridges),
        *_chains(table, bridges, own),
        nft.add_base_chain(table, "fwd", "filter", nft.FORWARD, nft.FILTER),
        nft.add_rule(table, "fwd", *nft.ct_bit(nft.CT_STATE, _FOLLOWS), nft.verdict(nft.ACCEPT)),
        nft.add_rule(table, "fwd", nft.meta(6, 0), nft.lookup_verdict("sealed", 0)),
        nft.add_rule(table, "fwd", nft.meta(7, 0), nft.lookup_verdict("to", 0)),
        nft.add_rule(table, "fwd", nft.meta(6, 0), nft.lookup_verdict("from", 0)),
        *_elements(table, bridges),
        nft.add_base_chain(table, "post", "nat", nft.POSTROUTING, nft.SRCNAT),
        *(rule for bridge in bridges for rule in _leave(table, bridge, own)),
    ]


_MAPS = ("sealed", "to", "from")


def _guard(table: str, bridges: Sequence[BridgeRule]) -> list[Message]:
    """As for the node's bridge: loopback is routed on the link, but not for who is outside."""
    loopback = [nft.ip_destination(0), nft.mask(0, b"\xff\0\0\0"), nft.compare(0, b"\x7f\0\0\0")]
    return [
        nft.add_base_chain(table, "guard", "filter", nft.PREROUTING, nft.RAW),
        *(
            nft.add_rule(
                table, "guard", *nft.incoming(bridge.link), *loopback, nft.verdict(nft.DROP)
            )
            for bridge in bridges
        ),
    ]


def _chains(table: str, bridges: Sequence[BridgeRule], own: Sequence[str]) -> list[Message]:
    translated = nft.ct_bit(nft.CT_STATUS, nft.STATUS_DNAT)
    accept, drop = nft.verdict(nft.ACCEPT), nft.verdict(nft.DROP)
    found = [
        nft.add_chain(table, "away"),
        nft.add_rule(table, "away", *translated, accept),
        *(nft.add_rule(table, "away", *nft.outgoing(name), drop) for name in own),
    ]
    for bridge in bridges:
        to, sealed = f"to-{bridge.link}", f"sealed-{bridge.link}"
        found.append(nft.add_chain(table, to))
        if bridge.talk:
            found.append(nft.add_rule(table, to, *nft.incoming(bridge.link), accept))
        if bridge.internal:
            found.append(nft.add_chain(table, sealed))
            if bridge.talk:
                found.append(nft.add_rule(table, sealed, *nft.outgoing(bridge.link), accept))
            found.append(nft.add_rule(table, sealed, drop))
        else:
            found.append(nft.add_rule(table, to, *translated, accept))
        found.append(nft.add_rule(table, to, drop))
    return found


def _elements(table: str, bridges: Sequence[BridgeRule]) -> list[Message]:
    def entries(prefix: str, wanted: Sequence[BridgeRule]) -> list[nft.Element]:
        return [nft.Element(_name(one.link), f"{prefix}-{one.link}") for one in wanted]

    sealed = [bridge for bridge in bridges if bridge.internal]
    return [
        *nft.add_elements(table, "sealed", entries("sealed", sealed)),
        *nft.add_elements(table, "to", entries("to", bridges)),
        *nft.add_elements(
            table, "from", [nft.Element(_name(bridge.link), "away") for bridge in bridges]
        ),
    ]


def _leave(table: str, bridge: BridgeRule, own: Sequence[str]) -> list[Message]:
    """Flows that would not find back get the bridge's address, and what leaves the node the node's;
    the mesh finds back by itself."""
    translated = nft.ct_bit(nft.CT_STATUS, nft.STATUS_DNAT)
    to_bridge, masquerade = nft.outgoing(bridge.link), nft.masquerade()
    found = [
        nft.add_rule(
            table, "post", *translated, *nft.incoming(bridge.link), *to_bridge, masquerade
        ),
        nft.add_rule(table, "post", *translated, *nft.local(source=True), *to_bridge, masquerade),
    ]
    if bridge.masquerade:
        inside = [
            nft.ip_source(0),
            nft.mask(0, bridge.subnet.netmask.packed),
            nft.compare(0, bridge.subnet.network_address.packed),
        ]
        elsewhere = [
            part for name in (bridge.link, *own[1:]) for part in nft.outgoing(name, unequal=True)
        ]
        found.append(nft.add_rule(table, "post", *inside, *elsewhere, masquerade))
    return found


def _name(link: str) -> bytes:
    return link.encode().ljust(16, b"\0")
