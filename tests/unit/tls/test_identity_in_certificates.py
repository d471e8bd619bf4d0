"""Certificates say who a node is, and nothing that the node wrote itself."""

import datetime as dt

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec, rsa
from cryptography.x509.oid import NameOID

from common.errors import Forbidden, Invalid
from common.keys import new_request
from common.tls import Credentials, Identity, inspect, require, root_digest
from manager.ca import certificates

NOW = dt.datetime.now(dt.UTC)
CLUSTER = "c" * 25
NODE = Identity("n" * 25, "worker", CLUSTER)


@pytest.fixture(scope="module")
def root() -> tuple[bytes, bytes]:
    return certificates.new_root(CLUSTER, NOW)


def issued(root: tuple[bytes, bytes], now: dt.datetime = NOW, **life: float) -> Credentials:
    key, request = new_request()
    lives = dt.timedelta(**life) if life else certificates.NODE_LIFE
    certificate = certificates.sign(*root, request, NODE, now, lives)
    return Credentials(root=root[0], certificate=certificate, key=key)


def test_a_certificate_names_node_role_and_cluster(root: tuple[bytes, bytes]) -> None:
    found = inspect(issued(root))
    assert found.identity == NODE
    assert found.not_before <= NOW - dt.timedelta(minutes=59)
    assert abs(found.not_after - NOW - dt.timedelta(days=90)) < dt.timedelta(seconds=2)


def test_the_root_lives_twenty_years_and_signs_only(root: tuple[bytes, bytes]) -> None:
    parsed = x509.load_pem_x509_certificate(root[0])
    assert parsed.not_valid_after_utc - NOW > dt.timedelta(days=19 * 365)
    assert parsed.extensions.get_extension_for_class(x509.BasicConstraints).value.ca
    assert isinstance(parsed.public_key(), ec.EllipticCurvePublicKey)


def test_what_a_node_asks_to_be_called_is_ignored(root: tuple[bytes, bytes]) -> None:
    """SEC 206: the request names a manager, another cluster and a host; none comes through."""
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name(
        [
            x509.NameAttribute(NameOID.COMMON_NAME, "somebody"),
            x509.NameAttribute(NameOID.ORGANIZATIONAL_UNIT_NAME, "manager"),
            x509.NameAttribute(NameOID.ORGANIZATION_NAME, "elsewhere"),
        ]
    )
    request = (
        x509.CertificateSigningRequestBuilder()
        .subject_name(name)
        .add_extension(x509.SubjectAlternativeName([x509.DNSName("manager")]), critical=False)
        .add_extension(x509.BasicConstraints(ca=True, path_length=None), critical=True)
        .sign(key, hashes.SHA256())
        .public_bytes(serialization.Encoding.PEM)
    )
    parsed = x509.load_pem_x509_certificate(certificates.sign(*root, request, NODE, NOW))
    texts = {attribute.value for attribute in parsed.subject}
    assert texts == {NODE.node_id, "worker", CLUSTER}
    names = parsed.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    assert names.get_values_for_type(x509.DNSName) == [NODE.node_id, "worker"]
    assert not parsed.extensions.get_extension_for_class(x509.BasicConstraints).value.ca


def _request_of(key: "rsa.RSAPrivateKey | ec.EllipticCurvePrivateKey") -> bytes:
    builder = x509.CertificateSigningRequestBuilder().subject_name(x509.Name([]))
    return builder.sign(key, hashes.SHA256()).public_bytes(serialization.Encoding.PEM)


def test_bad_requests_are_refused(root: tuple[bytes, bytes]) -> None:
    """SEC 207."""
    good = new_request()[1]
    damaged = bytearray(good)
    damaged[120] ^= 1  # inside the key, and no line end
    for request in (
        b"",
        b"-----BEGIN CERTIFICATE REQUEST-----\n!\n-----END CERTIFICATE REQUEST-----\n",
        bytes(damaged),
        root[0],
        good + b"x" * certificates.REQUEST_LIMIT,
        _request_of(rsa.generate_private_key(65537, 2048)),
        _request_of(ec.generate_private_key(ec.SECP384R1())),
    ):
        with pytest.raises(Invalid, match="certificate request"):
            certificates.sign(*root, request, NODE, NOW)


def test_an_expired_certificate_is_refused_at_load(root: tuple[bytes, bytes]) -> None:
    """SEC 210."""
    with pytest.raises(Invalid, match="has expired: make the node leave"):
        inspect(issued(root, NOW - dt.timedelta(days=91)))
    with pytest.raises(Invalid, match="not valid yet: check this machine's clock"):
        inspect(issued(root, NOW + dt.timedelta(hours=2)))


def test_key_certificate_and_root_must_fit(root: tuple[bytes, bytes]) -> None:
    good, other = issued(root), issued(root)
    foreign, _ = certificates.new_root("d" * 25, NOW)
    with pytest.raises(Invalid, match="does not belong to its cluster's root"):
        inspect(Credentials(root=foreign, certificate=good.certificate, key=good.key))
    with pytest.raises(Invalid, match="damaged"):
        inspect(Credentials(root=root[0], certificate=good.certificate, key=other.key))
    with pytest.raises(Invalid, match="damaged"):
        inspect(Credentials(root=root[0], certificate=good.certificate[:300], key=good.key))


def test_no_certificate_lives_less_than_an_hour(root: tuple[bytes, bytes]) -> None:
    assert inspect(issued(root, seconds=1)).not_after - NOW > dt.timedelta(minutes=59)


@pytest.mark.parametrize(
    ("identity", "says"),
    [
        pytest.param(None, "needs a certificate", id="nobody"),
        pytest.param(Identity("n", "manager", "other"), "another cluster", id="a foreigner"),
        pytest.param(Identity("n", "worker", CLUSTER), "a worker may not", id="the wrong role"),
    ],
)
def test_who_is_refused(identity: Identity | None, says: str) -> None:
    with pytest.raises(Forbidden, match=says):
        require(identity, CLUSTER, "manager")


def test_a_digest_needs_a_certificate(root: tuple[bytes, bytes]) -> None:
    assert root_digest(root[0]) == root_digest(root[0] + b"\n")
    with pytest.raises(Invalid, match="not a certificate"):
        root_digest(b"<html>")
