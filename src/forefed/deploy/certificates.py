"""Keys and certificates: a private authority for one server, and a key pair for every site.

Elliptic curve P-384 throughout (the node authentication of Flower wants a NIST curve). Private keys
and secrets are readable by their owner only.
"""

from __future__ import annotations

import ipaddress
import secrets
from collections.abc import Sequence
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any

from forefed.core.files import write_atomic

if TYPE_CHECKING:
    from cryptography import x509
    from cryptography.hazmat.primitives.asymmetric.ec import EllipticCurvePrivateKey

YEARS = 5
PRIVATE = 0o600


def write_authority(certificate: Path, key: Path) -> None:
    """A new authority, which signs the server's certificate and nothing else."""
    from cryptography import x509

    own = _new_key()
    name = _name("Forefed private authority")
    builder = _certificate(name, name, own).add_extension(
        x509.BasicConstraints(ca=True, path_length=0), critical=True
    )
    builder = builder.add_extension(_usage(sign=True), critical=True)
    _write_private(key, own)
    _write_certificate(certificate, builder, own)


def write_server(
    certificate: Path, key: Path, hosts: Sequence[str], authority: Path, authority_key: Path
) -> None:
    """A certificate for a server that is reached under these names or addresses."""
    from cryptography import x509
    from cryptography.hazmat.primitives import serialization

    issuer = x509.load_pem_x509_certificate(authority.read_bytes())
    signer: Any = serialization.load_pem_private_key(authority_key.read_bytes(), None)
    own = _new_key()
    names = x509.SubjectAlternativeName([_alternative(host) for host in hosts])
    builder = (
        _certificate(_name(hosts[0]), issuer.subject, own)
        .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
        .add_extension(names, critical=False)
        .add_extension(_usage(sign=False), critical=True)
    )
    _write_private(key, own)
    _write_certificate(certificate, builder, signer)


def write_key_pair(private: Path, public: Path, comment: str) -> None:
    """A site's identity, in the form of OpenSSH."""
    from cryptography.hazmat.primitives import serialization

    own = _new_key()
    form = serialization.PrivateFormat.OpenSSH
    data = own.private_bytes(serialization.Encoding.PEM, form, serialization.NoEncryption())
    write_atomic(private, data, PRIVATE)
    line = own.public_key().public_bytes(
        serialization.Encoding.OpenSSH, serialization.PublicFormat.OpenSSH
    )
    write_atomic(public, line + b" " + comment.encode() + b"\n")


def write_secret(path: Path) -> None:
    """What Flower's processes of one machine prove to each other that they belong together."""
    write_atomic(path, secrets.token_bytes(48).hex().encode(), PRIVATE)


def _new_key() -> EllipticCurvePrivateKey:
    from cryptography.hazmat.primitives.asymmetric import ec

    return ec.generate_private_key(ec.SECP384R1())


def _name(text: str) -> x509.Name:
    from cryptography import x509
    from cryptography.x509.oid import NameOID

    return x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, text)])


def _alternative(host: str) -> x509.GeneralName:
    from cryptography import x509

    try:
        return x509.IPAddress(ipaddress.ip_address(host))
    except ValueError:
        return x509.DNSName(host)


def _certificate(
    subject: x509.Name, issuer: x509.Name, key: EllipticCurvePrivateKey
) -> x509.CertificateBuilder:
    from cryptography import x509

    now = datetime.now(UTC)
    return x509.CertificateBuilder(
        issuer_name=issuer,
        subject_name=subject,
        public_key=key.public_key(),
        serial_number=x509.random_serial_number(),
        not_valid_before=now - timedelta(minutes=5),
        not_valid_after=now + timedelta(days=365 * YEARS),
    )


def _usage(sign: bool) -> x509.KeyUsage:
    from cryptography import x509

    return x509.KeyUsage(
        digital_signature=not sign,
        key_cert_sign=sign,
        crl_sign=sign,
        content_commitment=False,
        key_encipherment=False,
        data_encipherment=False,
        key_agreement=False,
        encipher_only=False,
        decipher_only=False,
    )


def _write_private(path: Path, key: EllipticCurvePrivateKey) -> None:
    from cryptography.hazmat.primitives import serialization

    form = serialization.PrivateFormat.PKCS8
    data = key.private_bytes(serialization.Encoding.PEM, form, serialization.NoEncryption())
    write_atomic(path, data, PRIVATE)


def _write_certificate(
    path: Path, builder: x509.CertificateBuilder, signer: EllipticCurvePrivateKey
) -> None:
    from cryptography.hazmat.primitives import hashes, serialization

    signed = builder.sign(signer, hashes.SHA384())
    write_atomic(path, signed.public_bytes(serialization.Encoding.PEM))
