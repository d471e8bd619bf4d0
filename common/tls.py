"""TLS between the daemons of one cluster: contexts, and who is at the other end.

Trust is the cluster's own root and nothing else. A certificate says three things: the node's id
(CN), its role (OU) and its cluster (O). Node id and role also stand in it as host names, so a
client that asks for the host `manager` has the role checked before it has sent a byte.

Making and signing certificates is elsewhere (`common.keys`, `manager.ca`): this module needs no
more than the standard library.
"""

import datetime as dt
import hashlib
import os
import ssl
from collections.abc import Mapping
from typing import Any, cast

import msgspec

from common.errors import Forbidden, Invalid

MANAGER = "manager"
WORKER = "worker"
ROLES = (MANAGER, WORKER)


class Identity(msgspec.Struct, frozen=True):
    """What a verified certificate says of a node."""

    node_id: str
    role: str
    cluster_id: str


class Credentials(msgspec.Struct, frozen=True, kw_only=True):
    """What a node needs to prove who it is. All PEM."""

    root: bytes
    certificate: bytes
    key: bytes


class Certificate(msgspec.Struct, frozen=True, kw_only=True):
    """A node's own certificate, as checked by `inspect`."""

    identity: Identity
    not_before: dt.datetime
    not_after: dt.datetime


def server_context(credentials: Credentials) -> ssl.SSLContext:
    """For a listener. Callers without a certificate get in: each route says what it needs."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.minimum_version = ssl.TLSVersion.TLSv1_3
    context.verify_mode = ssl.CERT_OPTIONAL
    context.num_tickets = 0  # a resumed session would outlive its certificate's renewal
    context.load_verify_locations(cadata=credentials.root.decode())
    load_chain(context, credentials)
    return context


def client_context(root: bytes, credentials: Credentials | None = None) -> ssl.SSLContext:
    """For connections to other daemons; name the role or node id wanted as `server_hostname`."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.minimum_version = ssl.TLSVersion.TLSv1_3
    context.load_verify_locations(cadata=root.decode())
    if credentials is not None:
        load_chain(context, credentials)
    return context


def unverified_context() -> ssl.SSLContext:
    """Only for fetching a root certificate, whose digest is then compared with the join token."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.minimum_version = ssl.TLSVersion.TLSv1_3
    context.check_hostname = False
    context.verify_mode = ssl.CERT_NONE
    return context


def load_chain(context: ssl.SSLContext, credentials: Credentials) -> None:
    """Use `credentials` for handshakes from now on; open connections stay as they are."""
    # The ssl module reads files only. A file in memory keeps the key off the disk.
    descriptor = os.memfd_create("credentials", os.MFD_CLOEXEC)
    try:
        with os.fdopen(os.dup(descriptor), "wb") as file:
            file.write(credentials.certificate + b"\n" + credentials.key)
        context.load_cert_chain(f"/proc/self/fd/{descriptor}")
    finally:
        os.close(descriptor)


def inspect(credentials: Credentials) -> Certificate:
    """The certificate's contents, once key, certificate and root are seen to fit together.

    A handshake with oneself is the check: it is made by the same code that others will use.
    Raises Invalid when the certificate has expired, is another cluster's, or is damaged.
    """
    try:
        return _contents(_handshake(credentials))
    except ssl.SSLCertVerificationError as error:
        raise Invalid(f"this node's certificate {_trouble(error)}") from error
    except (ssl.SSLError, ValueError) as error:
        raise Invalid(f"this node's certificate or key is damaged: {error}") from error


def _handshake(credentials: Credentials) -> dict[str, Any]:
    to_server, to_client = ssl.MemoryBIO(), ssl.MemoryBIO()
    verifying = client_context(credentials.root)
    verifying.check_hostname = False  # what it says is what we want to know
    client = verifying.wrap_bio(to_client, to_server)
    server = server_context(credentials).wrap_bio(to_server, to_client, server_side=True)
    for _ in range(4):
        for side in (client, server):
            try:
                side.do_handshake()
            except ssl.SSLWantReadError:
                continue
    return cast(dict[str, Any], client.getpeercert() or {})


def _trouble(error: ssl.SSLCertVerificationError) -> str:
    match error.verify_code:
        case 10:
            return "has expired: make the node leave the cluster and join it again"
        case 9:
            return "is not valid yet: check this machine's clock"
        case _:
            return f"does not belong to its cluster's root: {error.verify_message}"


def _contents(peer: Mapping[str, Any]) -> Certificate:
    identity = _identity(peer)
    if identity is None:
        raise ValueError("its subject does not name node, role and cluster")
    return Certificate(
        identity=identity, not_before=_time(peer["notBefore"]), not_after=_time(peer["notAfter"])
    )


def _time(text: str) -> dt.datetime:
    return dt.datetime.fromtimestamp(ssl.cert_time_to_seconds(text), dt.UTC)


def _identity(peer: Mapping[str, Any]) -> Identity | None:
    subject = {name: value for names in peer.get("subject", ()) for name, value in names}
    identity = Identity(
        subject.get("commonName", ""),
        subject.get("organizationalUnitName", ""),
        subject.get("organizationName", ""),
    )
    whole = identity.node_id and identity.cluster_id and identity.role in ROLES
    return identity if whole else None


def peer_identity(connection: ssl.SSLObject | ssl.SSLSocket | None) -> Identity | None:
    """Who is at the other end of `connection`; None if it sent no certificate of a node."""
    peer = connection.getpeercert() if connection is not None else None
    return _identity(peer) if peer else None


def require(identity: Identity | None, cluster_id: str, *roles: str) -> Identity:
    """`identity`, if it is of this cluster and of one of `roles`. Raises Forbidden."""
    if identity is None:
        raise Forbidden("this call needs a certificate of the cluster; join it first")
    if identity.cluster_id != cluster_id:
        raise Forbidden(f"node {identity.node_id} belongs to another cluster")
    if identity.role not in roles:
        raise Forbidden(f"a {identity.role} may not do this; it takes a {' or '.join(roles)}")
    return identity


def root_digest(root: bytes) -> bytes:
    """SHA-256 of a root certificate given as PEM. Raises Invalid if it is not one."""
    try:
        return hashlib.sha256(ssl.PEM_cert_to_DER_cert(root.decode("ascii").strip())).digest()
    except ValueError as error:
        raise Invalid(f"not a certificate: {error}") from error
