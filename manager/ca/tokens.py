"""Join tokens: `SWMTKN-1-<digest of the root, 50>-<secret, 25>`, both in base 36.

The digest lets the joiner know the cluster, the secret lets the cluster know the joiner.
"""

import hmac
import random
import re

import msgspec

from common.errors import Invalid
from common.ids import Ids
from common.tls import root_digest

_DIGITS = "0123456789abcdefghijklmnopqrstuvwxyz"
_DIGEST_LENGTH = 50  # 256 bits in base 36
_FORM = re.compile(r"^SWMTKN-1-([0-9a-z]{50})-([0-9a-z]{25})$")


class Token(msgspec.Struct, frozen=True):
    digest: str
    secret: str


def new_token(root: bytes, rng: random.Random) -> str:
    """A token for the cluster of `root` (PEM) with a new secret."""
    return f"SWMTKN-1-{digest(root)}-{Ids(rng).new()}"


def parse(text: str) -> Token:
    """Raises Invalid for what is not a join token; the text is not repeated in the message."""
    match = _FORM.match(text.strip())
    if match is None:
        raise Invalid(
            "this is not a join token (SWMTKN-1-…); get one with: shoal swarm join-token worker"
        )
    return Token(match[1], match[2])


def digest(root: bytes) -> str:
    """The first part of a token, for a root certificate given as PEM."""
    number = int.from_bytes(root_digest(root), "big")
    digits = []
    for _ in range(_DIGEST_LENGTH):
        number, digit = divmod(number, 36)
        digits.append(_DIGITS[digit])
    return "".join(reversed(digits))


def matches(given: str, expected: str) -> bool:
    """Whether two tokens are the same, in a time that does not tell where they differ."""
    return hmac.compare_digest(given.encode(), expected.encode())
