"""Requests to a registry: scheme, redirects, authentication, and what to do when it is busy."""

import asyncio
import contextlib
import ipaddress
import ssl
from collections.abc import AsyncIterator, Sequence
from urllib.parse import urljoin, urlsplit

import aiohttp
import msgspec

from common.errors import Forbidden, Unavailable
from common.model.image import RegistryAuth
from common.references import DEFAULT_HOST
from worker.images import auth as authentication
from worker.images.auth import Challenge, TokenAnswer

_HUB = "registry-1.docker.io"
_TIMEOUT = aiohttp.ClientTimeout(total=None, sock_connect=10, sock_read=30)
_MAX_REDIRECTS = 5
_REDIRECTS = (301, 302, 303, 307, 308)
_MAX_TOKEN = 1024 * 1024
_BUSY = (429, 502, 503, 504)
_TRIES = 5
_FIRST_PAUSE_S, _LONGEST_PAUSE_S = 0.25, 10.0


class Connection:
    """One registry, for one user and one repository. `session` is shared."""

    def __init__(
        self,
        session: aiohttp.ClientSession,
        host: str,
        scope: str,
        auth: RegistryAuth | None,
        insecure: Sequence[str],
    ) -> None:
        self._session = session
        self._host = host
        self._scope = scope
        self._auth = auth or RegistryAuth()
        self._local = is_loopback(host)
        self._plain = host in insecure or _in_networks(host, insecure)
        self._bases = self._candidates()
        self._authorization = ""
        if self._auth.registrytoken:
            self._authorization = f"Bearer {self._auth.registrytoken}"
        self._login = asyncio.Lock()

    @contextlib.asynccontextmanager
    async def get(
        self, path: str, headers: dict[str, str] | None = None
    ) -> AsyncIterator[aiohttp.ClientResponse]:
        """The answer to GET, whatever its status; not yet read.

        Raises Unavailable when nobody answers, Forbidden for a redirect that is not followed.
        """
        response = await self._authorized(path, headers or {})
        try:
            yield response
        finally:
            response.close()

    async def _authorized(self, path: str, headers: dict[str, str]) -> aiohttp.ClientResponse:
        used = self._authorization
        response = await self._patiently(path, headers)
        if response.status != 401:
            return response
        wanted = [
            authentication.challenge(value)
            for value in response.headers.getall("WWW-Authenticate", [])
        ]
        async with self._login:
            if self._authorization == used and not await self._answer(wanted):
                return response
        response.close()
        return await self._patiently(path, headers)

    async def _answer(self, wanted: list[Challenge]) -> bool:
        """Whether there is an answer to the registry's challenge that was not tried yet."""
        before = self._authorization
        for challenge in wanted:
            if challenge.scheme == "bearer":
                self._authorization = f"Bearer {await self._token(challenge)}"
            elif challenge.scheme == "basic" and (value := authentication.basic(self._auth)):
                self._authorization = value
        return self._authorization not in ("", before)

    async def _token(self, challenge: Challenge) -> str:
        insecure = self._plain or self._local
        authentication.check_realm(challenge.realm, self._host, insecure)
        fields = {"service": challenge.service, "scope": challenge.scope or self._scope}
        try:
            if self._auth.identitytoken:
                fields |= {"grant_type": "refresh_token", "client_id": "shoal"}
                fields["refresh_token"] = self._auth.identitytoken
                request = self._session.post(
                    challenge.realm, data=fields, allow_redirects=False, timeout=_TIMEOUT
                )
            else:
                value = authentication.basic(self._auth)
                headers = {"Authorization": value} if value else {}
                request = self._session.get(
                    challenge.realm,
                    params=fields,
                    headers=headers,
                    allow_redirects=False,
                    timeout=_TIMEOUT,
                )
            async with request as response:
                return await self._read_token(response)
        except (aiohttp.ClientError, TimeoutError, OSError) as error:
            raise Unavailable(
                f"the token server of registry {self._host} does not answer: {_reason(error)}"
            ) from error

    async def _read_token(self, response: aiohttp.ClientResponse) -> str:
        if response.status in (400, 401, 403):
            raise Forbidden(f"registry {self._host}: unauthorized: incorrect username or password")
        data = await response.content.read(_MAX_TOKEN)
        try:
            answer = msgspec.json.decode(data, type=TokenAnswer)
        except msgspec.DecodeError as error:
            raise Unavailable(
                f"the token server of registry {self._host} answers with status "
                f"{response.status} and no token"
            ) from error
        return answer.value

    async def _patiently(self, path: str, headers: dict[str, str]) -> aiohttp.ClientResponse:
        """Again after a pause while the registry is busy or the connection fails."""
        pause = _FIRST_PAUSE_S
        for left in range(_TRIES - 1, -1, -1):
            try:
                response = await self._anywhere(path, headers)
            except Unavailable as error:
                if left == 0 or isinstance(error.__cause__, aiohttp.ClientConnectorError):
                    raise  # a name that is not known, a port that is closed: the caller decides
            else:
                if response.status not in _BUSY or left == 0:
                    return response
                pause = max(pause, _retry_after(response))
                response.close()
            await asyncio.sleep(min(pause, _LONGEST_PAUSE_S))
            pause *= 2
        raise AssertionError("unreachable")

    async def _anywhere(self, path: str, headers: dict[str, str]) -> aiohttp.ClientResponse:
        """By TLS, or without where that is allowed; the way that worked is kept."""
        error: Exception | None = None
        for base in self._bases:
            try:
                response = await self._follow(base + path, headers)
            except (aiohttp.ClientError, TimeoutError, OSError) as failed:
                error = error or failed
            else:
                self._bases = [base]
                return response
        assert error is not None
        raise Unavailable(f"cannot reach registry {self._host}: {_reason(error)}") from error

    async def _follow(self, url: str, headers: dict[str, str]) -> aiohttp.ClientResponse:
        origin = urlsplit(url)
        for _ in range(_MAX_REDIRECTS + 1):
            here = urlsplit(url)
            sent = dict(headers)
            same = (here.scheme, here.netloc) == (origin.scheme, origin.netloc)
            if same and self._authorization:  # credentials stay with the registry
                sent["Authorization"] = self._authorization
            response = await self._session.get(
                url, headers=sent, allow_redirects=False, timeout=_TIMEOUT, ssl=self._tls(same)
            )
            if response.status not in _REDIRECTS:
                return response
            url = urljoin(url, response.headers.get("Location", ""))
            response.close()
            self._check_redirect(here.scheme, url)
        raise Forbidden(f"registry {self._host} redirects more than {_MAX_REDIRECTS} times")

    def _check_redirect(self, scheme: str, url: str) -> None:
        """A registry may send to a store, but neither out of TLS nor to our own services."""
        target = urlsplit(url)
        if target.scheme not in ("http", "https") or not target.hostname:
            raise Forbidden(f"registry {self._host} redirects to {url!r}, which is no web address")
        if scheme == "https" and target.scheme != "https":
            raise Forbidden(f"registry {self._host} redirects from https to {url!r}")
        if not self._local and _is_private(target.hostname):
            raise Forbidden(f"registry {self._host} redirects to {url!r}, on this machine")

    def _tls(self, same: bool) -> ssl.SSLContext | bool:
        """Loopback is trusted without a certificate, as Docker does."""
        return not (same and self._local)

    def _candidates(self) -> list[str]:
        name = _HUB if self._host == DEFAULT_HOST else self._host
        if self._plain:
            return [f"http://{name}"]
        return [f"https://{name}", f"http://{name}"] if self._local else [f"https://{name}"]


def is_loopback(host: str) -> bool:
    """Whether `host[:port]` is this machine by its name."""
    name = _name(host)
    if name == "localhost":
        return True
    with contextlib.suppress(ValueError):
        return ipaddress.ip_address(name).is_loopback
    return False


def _is_private(name: str) -> bool:
    """Loopback, or link-local, where clouds keep their machines' credentials."""
    if name == "localhost" or name.endswith(".localhost"):
        return True
    with contextlib.suppress(ValueError):
        address = ipaddress.ip_address(name)
        return address.is_loopback or address.is_link_local or address.is_unspecified
    return False


def _in_networks(host: str, networks: Sequence[str]) -> bool:
    with contextlib.suppress(ValueError):
        address = ipaddress.ip_address(_name(host))
        for text in networks:
            with contextlib.suppress(ValueError):
                if address in ipaddress.ip_network(text):
                    return True
    return False


def _name(host: str) -> str:
    if host.startswith("["):
        return host[1:].partition("]")[0]
    return host.partition(":")[0]


def _retry_after(response: aiohttp.ClientResponse) -> float:
    text = response.headers.get("Retry-After", "")
    return float(text) if text.isdecimal() else 0.0


def _reason(error: BaseException) -> str:
    if isinstance(error, TimeoutError):
        return "it does not answer in time"
    if isinstance(error, aiohttp.ClientConnectorCertificateError):
        return f"its certificate is not trusted: {error.certificate_error}"
    if isinstance(error, aiohttp.ClientConnectorError):
        return error.os_error.strerror or str(error.os_error)
    return str(error) or type(error).__name__
