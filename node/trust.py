"""A node's certificate while it is in use: connections made with it, and its renewal."""

import asyncio
import datetime as dt
import logging
import random
import ssl
from collections.abc import Callable, Sequence
from typing import TypeVar

from common import rpc, tls
from common.apart import run_apart
from common.clock import Clock
from common.errors import Invalid, ShoalError, Unavailable
from common.keys import new_request
from common.model.node import TLSInfo
from common.protocol.ca import Issued, RenewRequest
from common.tls import Certificate, Credentials
from node.identity import IdentityFiles

log = logging.getLogger(__name__)

T = TypeVar("T")

RENEWAL_RETRY_S = 60.0
CLOCK_LOOK_S = 3600.0  # wall clocks jump: look again at least so often


def renewal_moment(certificate: Certificate, rng: random.Random) -> dt.datetime:
    """When to ask for the next certificate: at a random 50-80 % of this one's life (SEC 211)."""
    life = certificate.not_after - certificate.not_before
    return certificate.not_before + life * rng.uniform(0.5, 0.8)


class Trust:
    """Who this node is, and calls to managers in its name.

    One pair of TLS contexts serves for good: a renewed certificate is loaded into them.
    """

    def __init__(
        self,
        credentials: Credentials,
        files: IdentityFiles,
        managers: Callable[[], Sequence[str]],
        clock: Clock,
        rng: random.Random,
    ) -> None:
        """`managers` tells where to look for managers, HOST:PORT.

        Raises Invalid if the credentials are no good, as when they have expired (SEC 210).
        """
        self.certificate = tls.inspect(credentials)
        self._credentials = credentials
        self._files = files
        self._managers = managers
        self._clock = clock
        self._rng = rng
        self._client_context = tls.client_context(credentials.root, credentials)
        self.server_context: ssl.SSLContext = tls.server_context(credentials)
        self.client = rpc.Client(self._client_context)
        self.renewed = asyncio.Event()  # replaced at each renewal

    @property
    def role(self) -> str:
        """By certificate."""
        return self.certificate.identity.role

    @property
    def root(self) -> bytes:
        return self._credentials.root

    @property
    def credentials(self) -> Credentials:
        return self._credentials

    @property
    def tls_info(self) -> TLSInfo:
        """What `node inspect` shows of this node's trust."""
        return TLSInfo(trust_root=self.root.decode())

    async def ask(self, kind: type[T], path: str, body: object) -> T:
        """The answer of the first manager that can give one.

        A refusal is an answer, and is raised. Raises Unavailable if nobody could be asked.
        """
        trouble: ShoalError = Unavailable("no manager of the cluster is known")
        for address in self._managers():
            try:
                return await self.client.ask(kind, address, path, body)
            except Unavailable as error:
                trouble = error
        raise trouble

    async def renew(self) -> None:
        """A new key and certificate, with the role the cluster gives. Raises ShoalError."""
        key, request = await run_apart(new_request)
        issued = await self.ask(Issued, "/ca/renew", RenewRequest(request=request.decode()))
        credentials = Credentials(root=self.root, certificate=issued.certificate.encode(), key=key)
        certificate = tls.inspect(credentials)
        before = self.certificate.identity
        if certificate.identity.node_id != before.node_id:
            raise Invalid("a manager answered with another node's certificate")
        await self._save(credentials, certificate)
        self.certificate, self._credentials = certificate, credentials
        for context in (self._client_context, self.server_context):
            tls.load_chain(context, credentials)
        renewed, self.renewed = self.renewed, asyncio.Event()
        renewed.set()
        log.info("certificate renewed", extra={"role": self.role, "role_before": before.role})

    async def seal(self) -> None:
        """See to it that a manager's key is not on disk in the clear, as it was before sealing."""
        if self.role == tls.MANAGER and not await asyncio.to_thread(lambda: self._files.are_sealed):
            await self._save(self._credentials, self.certificate)

    async def _save(self, credentials: Credentials, certificate: Certificate) -> None:
        """Raises Unavailable, as when the disk is full."""
        sealed = certificate.identity.role == tls.MANAGER
        try:
            await asyncio.to_thread(self._files.save_credentials, credentials, sealed=sealed)
        except OSError as error:
            raise Unavailable(f"cannot save the certificate: {error}") from error

    async def renew_in_time(self) -> None:
        """Renew again and again, until cancelled."""
        while True:
            current = self.certificate
            moment = renewal_moment(current, self._rng)
            while self.certificate is current and self._clock.now() < moment:
                left_s = (moment - self._clock.now()).total_seconds()
                await asyncio.sleep(max(min(left_s, CLOCK_LOOK_S), 0))
            if self.certificate is current:
                await self._renew_or_wait()

    async def _renew_or_wait(self) -> None:
        try:
            await self.renew()
        except ShoalError as error:
            ends = self.certificate.not_after.isoformat()
            log.warning(
                "cannot renew the certificate", extra={"reason": str(error), "expires": ends}
            )
            await asyncio.sleep(RENEWAL_RETRY_S)

    def new_client(self) -> rpc.Client:
        """For calls in this node's name after `close`."""
        return rpc.Client(self._client_context)

    async def close(self) -> None:
        await self.client.close()
