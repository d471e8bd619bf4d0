"""Who has which port of the node: sandboxes (host mode), services (ingress), other processes.

A process that has a port keeps it: DNAT would take its callers away without a word.

A port we hand on by DNAT has no listener, so nothing would stop a process from taking it and
wondering why nobody calls. Each one is therefore held by a bound socket that never listens.
"""

import errno
import random
import socket
from typing import NamedTuple

from common.errors import Invalid, PortTaken, Unavailable
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
        """`wanted` with its number, now `owner`'s. Raises PortTaken, Invalid.

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
            except PortTaken:
                continue
            return HostPort(
                protocol=wanted.protocol,
                published=claim.port,
                target=wanted.target,
                host_ip=wanted.host_ip,
            )
        raise Unavailable(f"no free {wanted.protocol} port was found on this node")

    def publish(self, protocol: str, port: int) -> str:
        """Have the port for the service that publishes it; "" or who has it instead."""
        owner, claim = _service(protocol, port), Claim(protocol, port, "")
        if self._claims.get(claim, ("", None))[0] == owner:
            return ""
        try:
            self._take(owner, claim, force=False)
        except PortTaken as error:
            return str(error)
        return ""

    def unpublish(self, protocol: str, port: int) -> None:
        claim = Claim(protocol, port, "")
        if self._claims.get(claim, ("", None))[0] == _service(protocol, port):
            self._drop(claim)

    def release_services(self) -> None:
        """Give back all published ports."""
        for owner in {who for who, _ in self._claims.values() if who.startswith("service:")}:
            self.release(owner)

    def release(self, owner: str) -> None:
        """Give back all that `owner` has."""
        for claim in [claim for claim, (who, _) in self._claims.items() if who == owner]:
            self._drop(claim)

    def close(self) -> None:
        for claim in list(self._claims):
            self._drop(claim)

    def _drop(self, claim: Claim) -> None:
        _, sock = self._claims.pop(claim)
        if sock is not None:
            sock.close()

    def _take(self, owner: str, claim: Claim, force: bool) -> None:
        for other, (holder, _) in self._claims.items():
            if other[:2] == claim[:2] and (
                not other.address or not claim.address or other.address == claim.address
            ):
                raise _allocated(claim, holder)
        self._claims[claim] = (owner, _hold(claim, force))


def _service(protocol: str, port: int) -> str:
    return f"service:{protocol}:{port}"


def _allocated(claim: Claim, holder: str) -> PortTaken:
    whose = "a published service" if holder.startswith("service:") else f"container {holder[:12]}"
    return PortTaken(
        f"Bind for {claim.address or '0.0.0.0'}:{claim.port}/{claim.protocol} failed: "
        f"port is already allocated to {whose}"
    )


def _hold(claim: Claim, force: bool) -> socket.socket | None:
    """Raises PortTaken, Invalid; with `force` None instead of PortTaken."""
    try:
        try:
            return _bound(claim, reuse=False)
        except OSError as error:
            if error.errno != errno.EADDRINUSE or claim.protocol != "tcp":
                raise
            # Perhaps only connections of a process that has ended are left; who listens, or
            # holds the port in another way, is in the way of this as well.
            return _bound(claim, reuse=True)
    except OSError as error:
        if force:
            return None
        if error.errno == errno.EADDRNOTAVAIL:
            raise Invalid(f"host address {claim.address} is not one of this node's") from error
        raise PortTaken(
            f"failed to bind host port {claim.address or '0.0.0.0'}:{claim.port}/{claim.protocol}: "
            f"{(error.strerror or str(error)).lower()} by a process of this node"
        ) from error


def _bound(claim: Claim, *, reuse: bool) -> socket.socket:
    sock = socket.socket(socket.AF_INET, _KINDS[claim.protocol] | socket.SOCK_CLOEXEC)
    try:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, reuse)
        sock.bind((claim.address or "0.0.0.0", claim.port))
    except OSError:
        sock.close()
        raise
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
