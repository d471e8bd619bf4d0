"""A node's key and its request for a certificate.

`cryptography` is loaded at the first call: a daemon that only restarts does without its megabytes.
"""


def new_request() -> tuple[bytes, bytes]:
    """A new P-256 key and a request for its certificate, both PEM.

    The request names nobody: the authority decides what the certificate says.
    """
    from cryptography import x509
    from cryptography.hazmat.primitives import hashes, serialization
    from cryptography.hazmat.primitives.asymmetric import ec

    key = ec.generate_private_key(ec.SECP256R1())
    request = x509.CertificateSigningRequestBuilder().subject_name(x509.Name([]))
    pem = serialization.Encoding.PEM
    key_pem = key.private_bytes(
        pem, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )
    return key_pem, request.sign(key, hashes.SHA256()).public_bytes(pem)
