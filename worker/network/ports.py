"""Who has which port of the node: sandboxes (host mode), services (ingress), other processes.

A port we hand on by DNAT has no listener, so nothing would stop a process from taking it and
wondering why nobody calls. Each one is therefore held by a bound socket that never listens.
"""

import errno
import random
import socket
from typing import NamedTuple

from common.errors import Conflict, Invalid, Unavailable
from worker.network.model import HostPort

_CHOSEN = (32768, 60999)  # where Linux has its own ephemeral ports
_ATTEMPTS = 200
_KINDS = {"tcp": socket.SOCK_STREAM, "udp": socket.SOCK_DGRAM}


class Claim(NamedTuple):
    protocol: str
    port: int
    address: str  # "" all


class Ports:
    """Claims on ports of the machine's namespace. For the helper thread (it makes sockets)."""

    def __init__(self, rng: random.Random) -> None:
        self._rng = rng
        self._claims: dict[Claim, tuple[str, socket.socket | None]] = {}

    def claim(self, owner: str, wanted: HostPort, force: bool = False) -> HostPort:
        """`wanted` with its number, now `owner`'s. Raises Conflict, Invalid.

        `force`: a foreign process having it is no obstacle (the port was ours before).
        """
        _check(wanted)
        if wanted.published:
            self._take(owner, Claim(wanted.protocol, wanted.published, wanted.host_ip), force)
            return wanted
        for _ in range(_ATTEMPTS):
            claim = Claim(wanted.protocol, self._rng.randint(*_CHOSEN), wanted.host_ip)
            try:
                self._take(owner, claim, force)
            except Conflict:
                continue
            return HostPort(
                protocol=wanted.protocol,
                published=claim.port,
                target=wanted.target,
                host_ip=wanted.host_ip,
            )
        raise Unavailable(f"no free {wanted.protocol} port was found on this node")

    def holder(self, protocol: str, port: int) -> str:
        """Who has the port on all addresses, or on any; "" if nobody of ours."""
        for claim, (owner, _) in self._claims.items():
            if claim[:2] == (protocol, port):
                return owner
        return ""

    def held(self, protocol: str, port: int) -> bool:
        """Whether our claim keeps other processes away; not if one had the port before us."""
        return self._claims.get(Claim(protocol, port, ""), ("", None))[1] is not None

    def release_services(self) -> None:
        """Give back all published ports."""
        for owner in {who for who, _ in self._claims.values() if who.startswith("service:")}:
            self.release(owner)

    def release(self, owner: str) -> None:
        """Give back all that `owner` has."""
        for claim in [claim for claim, (who, _) in self._claims.items() if who == owner]:
            self._drop(claim)

    def release_one(self, owner: str, protocol: str, port: int) -> None:
        claim = Claim(protocol, port, "")
        if self._claims.get(claim, ("", None))[0] == owner:
            self._drop(claim)

    def close(self) -> None:
        for claim in list(self._claims):
            self._drop(claim)

    def _drop(self, claim: Claim) -> None:
        _, sock = self._claims.pop(claim)
        if sock is not None:
            sock.close()

    def _take(self, owner: str, claim: Claim, force: bool) -> None:
        for other in self._claims:
            if other[:2] == claim[:2] and (
                not other.address or not claim.address or other.address == claim.address
            ):
                raise _in_use(claim)
        self._claims[claim] = (owner, _hold(claim, force))


def _in_use(claim: Claim) -> Conflict:
    where = f"{claim.address}:" if claim.address else ""
    return Conflict(f"port {where}{claim.port}/{claim.protocol} is in use on this node")


def _hold(claim: Claim, force: bool) -> socket.socket | None:
    sock = socket.socket(socket.AF_INET, _KINDS[claim.protocol] | socket.SOCK_CLOEXEC)
    try:
        sock.bind((claim.address or "0.0.0.0", claim.port))
    except OSError as error:
        sock.close()
        if force:
            return None
        if error.errno == errno.EADDRNOTAVAIL:
            raise Invalid(f"host address {claim.address} is not one of this node's") from error
        raise _in_use(claim) from error
    return sock


def _check(wanted: HostPort) -> None:
    if wanted.protocol not in _KINDS:
        raise Invalid(f"protocol {wanted.protocol!r} cannot be published: use tcp or udp")
    if not 0 <= wanted.published <= 65535:
        raise Invalid(f"published port {wanted.published} is not between 1 and 65535")
    if not 1 <= wanted.target <= 65535:
        raise Invalid(f"target port {wanted.target} is not between 1 and 65535")
    if wanted.host_ip:
        try:
            socket.inet_pton(socket.AF_INET, wanted.host_ip)
        except OSError as error:
            raise Invalid(f"host address {wanted.host_ip!r} is not an IPv4 address") from error
