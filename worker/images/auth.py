"""What a registry's challenge asks for, and the answer: basic authentication or a token.

The token protocol: the distribution project's "Token Authentication Specification".
"""

import base64
import re
from urllib.parse import urlsplit

import msgspec

from common.errors import Forbidden
from common.model.image import RegistryAuth

_PARAMETER = re.compile(r'([a-zA-Z_]+)\s*=\s*"([^"]*)"|([a-zA-Z_]+)\s*=\s*([^\s,"]+)')


class Challenge(msgspec.Struct, frozen=True):
    """One `WWW-Authenticate` header."""

    scheme: str  # "basic" or "bearer"; others cannot be met
    realm: str = ""
    service: str = ""
    scope: str = ""


class TokenAnswer(msgspec.Struct, frozen=True):
    """What a token server says; which name it uses for the token differs."""

    token: str = ""
    access_token: str = ""
    expires_in: float = 60

    @property
    def value(self) -> str:
        return self.token or self.access_token


def challenge(header: str) -> Challenge:
    """Read a `WWW-Authenticate` header."""
    scheme, _, rest = header.strip().partition(" ")
    values = {
        (first or second).lower(): quoted or plain
        for first, quoted, second, plain in _PARAMETER.findall(rest)
    }
    return Challenge(
        scheme.lower(),
        values.get("realm", ""),
        values.get("service", ""),
        values.get("scope", ""),
    )


def basic(auth: RegistryAuth) -> str:
    """The value of an Authorization header; "" without a user name."""
    if auth.username:
        plain = f"{auth.username}:{auth.password}".encode()
        return "Basic " + base64.b64encode(plain).decode()
    return f"Basic {auth.auth}" if auth.auth else ""


def check_realm(realm: str, registry: str, insecure: bool) -> None:
    """Credentials go only over TLS, or to a registry that is reached without. Raises Forbidden."""
    parts = urlsplit(realm)
    if parts.scheme == "https" and parts.hostname:
        return
    if parts.scheme == "http" and insecure and parts.hostname:
        return
    raise Forbidden(
        f"registry {registry} sends to {realm!r} for a token, which is not reached by https"
    )
