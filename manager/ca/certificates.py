"""Makes certificates: the cluster's root, and a node's from its request.

Pure apart from the keys' own randomness. The rules are SwarmKit's: P-256, a root of twenty years,
node certificates back-dated by an hour so that clocks may differ.
"""

import datetime as dt
from typing import TYPE_CHECKING

from common.errors import Invalid
from common.keys import new_request
from common.tls import Identity

if TYPE_CHECKING:  # loaded at the first call: most daemons restart without signing anything
    from cryptography import x509
    from cryptography.hazmat.primitives.asymmetric import ec

ROOT_LIFE = dt.timedelta(days=20 * 365)
NODE_LIFE = dt.timedelta(days=90)
MIN_NODE_LIFE = dt.timedelta(hours=1)
BACK_DATE = dt.timedelta(hours=1)
REQUEST_LIMIT = 16 * 1024  # bytes; a P-256 request takes half of one KiB


def new_root(cluster_id: str, now: dt.datetime) -> tuple[bytes, bytes]:
    """A self-signed root certificate and its key, both PEM."""
    from cryptography import x509
    from cryptography.hazmat.primitives import hashes, serialization
    from cryptography.hazmat.primitives.asymmetric import ec

    key = ec.generate_private_key(ec.SECP256R1())
    name = _name(common_name="shoal-ca", organization=cluster_id)
    certificate = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - BACK_DATE)
        .not_valid_after(now + ROOT_LIFE)
        .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
        .add_extension(_usage(signs=True), critical=True)
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(key.public_key()), critical=False)
        .sign(key, hashes.SHA256())
    )
    pem = serialization.Encoding.PEM
    key_pem = key.private_bytes(
        pem, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )
    return certificate.public_bytes(pem), key_pem


def sign(
    root: bytes,
    root_key: bytes,
    request: bytes,
    identity: Identity,
    now: dt.datetime,
    life: dt.timedelta = NODE_LIFE,
) -> bytes:
    """The certificate, PEM, of `identity` for the key in `request`.

    Nothing else of the request is used: names, role and organisation are the server's. Raises
    Invalid for a request that is damaged, too large, or not signed by its own key.
    """
    from cryptography import x509
    from cryptography.hazmat.primitives import hashes, serialization
    from cryptography.hazmat.primitives.asymmetric import ec

    public_key = _requested_key(request)
    issuer = x509.load_pem_x509_certificate(root)
    issuer_key = serialization.load_pem_private_key(root_key, password=None)
    assert isinstance(issuer_key, ec.EllipticCurvePrivateKey)
    names = [x509.DNSName(identity.node_id), x509.DNSName(identity.role)]
    certificate = (
        x509.CertificateBuilder()
        .subject_name(_name(identity.node_id, identity.cluster_id, identity.role))
        .issuer_name(issuer.subject)
        .public_key(public_key)
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - BACK_DATE)
        .not_valid_after(now + max(life, MIN_NODE_LIFE))
        .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
        .add_extension(_usage(signs=False), critical=True)
        .add_extension(x509.SubjectAlternativeName(names), critical=False)
        .add_extension(_both_ends(), critical=False)
        .add_extension(
            x509.AuthorityKeyIdentifier.from_issuer_public_key(issuer_key.public_key()),
            critical=False,
        )
        .sign(issuer_key, hashes.SHA256())
    )
    return certificate.public_bytes(serialization.Encoding.PEM)


def first(identity: Identity, now: dt.datetime) -> tuple[bytes, bytes, bytes, bytes]:
    """(root, root's key, certificate, its key), PEM, for a new cluster and its first node."""
    root, root_key = new_root(identity.cluster_id, now)
    key, request = new_request()
    return root, root_key, sign(root, root_key, request, identity, now), key


def _requested_key(request: bytes) -> "ec.EllipticCurvePublicKey":
    from cryptography import x509
    from cryptography.exceptions import InvalidSignature
    from cryptography.hazmat.primitives.asymmetric import ec

    if len(request) > REQUEST_LIMIT:
        raise Invalid(f"the certificate request has {len(request)} bytes, more than any real one")
    try:
        parsed = x509.load_pem_x509_csr(request)
        key = parsed.public_key()
        signed = parsed.is_signature_valid
    except (ValueError, TypeError, InvalidSignature) as error:
        raise Invalid("the certificate request is damaged") from error
    if not isinstance(key, ec.EllipticCurvePublicKey) or not isinstance(key.curve, ec.SECP256R1):
        raise Invalid("the certificate request's key is not an ECDSA P-256 key")
    if not signed:
        raise Invalid("the certificate request is not signed with its own key")
    return key


def _name(common_name: str, organization: str, unit: str = "") -> "x509.Name":
    from cryptography import x509
    from cryptography.x509.oid import NameOID

    parts = [
        x509.NameAttribute(NameOID.ORGANIZATION_NAME, organization),
        *([x509.NameAttribute(NameOID.ORGANIZATIONAL_UNIT_NAME, unit)] if unit else []),
        x509.NameAttribute(NameOID.COMMON_NAME, common_name),
    ]
    return x509.Name(parts)


def _usage(*, signs: bool) -> "x509.KeyUsage":
    from cryptography import x509

    return x509.KeyUsage(
        digital_signature=not signs,
        content_commitment=False,
        key_encipherment=False,
        data_encipherment=False,
        key_agreement=False,
        key_cert_sign=signs,
        crl_sign=signs,
        encipher_only=False,
        decipher_only=False,
    )


def _both_ends() -> "x509.ExtendedKeyUsage":
    from cryptography import x509
    from cryptography.x509.oid import ExtendedKeyUsageOID as Usage

    return x509.ExtendedKeyUsage([Usage.SERVER_AUTH, Usage.CLIENT_AUTH])
