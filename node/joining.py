"""How a machine that is in no cluster is introduced to one: by a join token, and nothing else.

The token's digest tells the joiner that the root certificate it was sent is the cluster's; what
is then sent over TLS checked against that root, the token's secret with it, only a manager reads.
"""

from common import rpc, tls
from common.errors import Forbidden, ShoalError, Unavailable
from common.protocol.ca import Issued, IssueRequest
from manager.ca import tokens


async def introduce(
    remotes: list[str], token: tokens.Token, body: IssueRequest
) -> tuple[str, bytes, Issued]:
    """(manager, root certificate, what it issued) from the first manager that answers."""
    trouble: ShoalError = Unavailable("no manager answered")
    for remote in remotes:
        try:
            root = await _download_root(remote, token)
            return remote, root, await _issue(remote, root, body)
        except Unavailable as error:
            trouble = error
    raise trouble


async def _download_root(remote: str, token: tokens.Token) -> bytes:
    """The root certificate of `remote`, which nothing vouches for but the token's digest."""
    client = rpc.Client(tls.unverified_context())
    try:
        root = await client.call(remote, "GET", "/ca/root", host=None)
    finally:
        await client.close()
    if not tokens.matches(tokens.digest(root), token.digest):
        raise Forbidden(
            f"the join token is not valid for the cluster of {remote}; get a new one there "
            "with: shoal swarm join-token worker"
        )
    return root


async def _issue(remote: str, root: bytes, body: IssueRequest) -> Issued:
    client = rpc.Client(tls.client_context(root))
    try:
        return await client.ask(Issued, remote, "/ca/issue", body)
    finally:
        await client.close()
