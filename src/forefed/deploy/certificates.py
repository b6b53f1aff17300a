"""Keys and certificates: a private authority for one server, and a key pair for every site.

Elliptic curve P-384 throughout (the node authentication of Flower wants a NIST curve). Private keys
and secrets are readable by their owner only. The authority is good for ten years, a server's
certificate for two, so that they do not end on one day; both are written anew over the same key of
the authority, so that sites go on to believe the server.
"""

from __future__ import annotations

import base64
import hashlib
import ipaddress
import secrets
from collections.abc import Sequence
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any

from forefed.core.errors import UserError
from forefed.core.files import write_atomic

if TYPE_CHECKING:
    from cryptography import x509
    from cryptography.hazmat.primitives.asymmetric.ec import EllipticCurvePrivateKey

AUTHORITY_DAYS, SERVER_DAYS = 3650, 730
PRIVATE = 0o600


def write_authority(certificate: Path, key: Path, days: float = AUTHORITY_DAYS) -> None:
    """An authority, which signs the server's certificate and nothing else; over its key, where
    there is one already."""
    from cryptography import x509

    own = _read_key(key) if key.exists() else _new_key()
    name = _name("Forefed private authority")
    builder = _certificate(name, name, own, days).add_extension(
        x509.BasicConstraints(ca=True, path_length=0), critical=True
    )
    builder = builder.add_extension(_usage(sign=True), critical=True)
    _write_private(key, own)
    _write_certificate(certificate, builder, own)


def write_server(
    certificate: Path,
    key: Path,
    hosts: Sequence[str],
    authority: Path,
    authority_key: Path,
    days: float = SERVER_DAYS,
) -> None:
    """A certificate for a server that is reached under these names or addresses.

    Raises:
        UserError: the authority's files cannot be read.
    """
    from cryptography import x509

    issuer = read_certificate(authority)
    signer = _read_key(authority_key)
    own = _new_key()
    names = x509.SubjectAlternativeName([_alternative(host) for host in hosts])
    builder = (
        _certificate(_name(hosts[0]), issuer.subject, own, days)
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


def read_certificate(path: Path) -> x509.Certificate:
    """The certificate in a file (of several, the first).

    Raises:
        UserError: there is none in it.
    """
    from cryptography import x509

    try:
        return x509.load_pem_x509_certificate(path.read_bytes())
    except (OSError, ValueError):
        raise UserError(f"{path}: holds no certificate in PEM form") from None


def read_authority(path: Path) -> x509.Certificate:
    """The certificate of an authority, as a site receives it.

    Raises:
        UserError: none in the file, another one than an authority's, or one that has ended.
    """
    from cryptography import x509

    found = read_certificate(path)
    try:
        signs = found.extensions.get_extension_for_class(x509.BasicConstraints).value.ca
    except (x509.ExtensionNotFound, ValueError):
        signs = False
    if not signs:
        raise UserError(f"{path}: no authority's certificate; the server's operator has it: ca.crt")
    if days_left(found) <= 0:
        raise UserError(
            f"{path}: this certificate ended on {end_of(found)}; ask the server's operator for the "
            "new one (forefed server renew)"
        )
    return found


def end_of(certificate: x509.Certificate) -> str:
    """The last day of its life."""
    return str(certificate.not_valid_after_utc.date())


def days_left(certificate: x509.Certificate) -> float:
    """Of its life; not above zero: it has ended."""
    return (certificate.not_valid_after_utc - datetime.now(UTC)).total_seconds() / 86400


def fingerprint(key: Path) -> str:
    """Of a public key in the form of OpenSSH, as ``ssh-keygen -l`` shows it.

    Raises:
        UserError: the file holds no such key.
    """
    from cryptography.exceptions import UnsupportedAlgorithm
    from cryptography.hazmat.primitives.asymmetric.ec import EllipticCurvePublicKey
    from cryptography.hazmat.primitives.serialization import load_ssh_public_key

    try:
        line = key.read_bytes()
        if not isinstance(load_ssh_public_key(line), EllipticCurvePublicKey):
            raise ValueError("no key over an elliptic curve")
        blob = base64.b64decode(line.split()[1])
    except (OSError, ValueError, IndexError, UnsupportedAlgorithm):
        raise UserError(f"{key}: no public key of a site; it is node.pub in its folder") from None
    return "SHA256:" + base64.b64encode(hashlib.sha256(blob).digest()).decode().rstrip("=")


def write_secret(path: Path) -> None:
    """What Flower's processes of one machine prove to each other that they belong together."""
    write_atomic(path, secrets.token_bytes(48).hex().encode(), PRIVATE)


def _new_key() -> EllipticCurvePrivateKey:
    from cryptography.hazmat.primitives.asymmetric import ec

    return ec.generate_private_key(ec.SECP384R1())


def _read_key(path: Path) -> Any:
    from cryptography.hazmat.primitives import serialization

    try:
        return serialization.load_pem_private_key(path.read_bytes(), None)
    except (OSError, ValueError, TypeError):
        raise UserError(f"{path}: holds no private key") from None


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
    subject: x509.Name, issuer: x509.Name, key: EllipticCurvePrivateKey, days: float
) -> x509.CertificateBuilder:
    from cryptography import x509

    now = datetime.now(UTC)
    return x509.CertificateBuilder(
        issuer_name=issuer,
        subject_name=subject,
        public_key=key.public_key(),
        serial_number=x509.random_serial_number(),
        not_valid_before=min(now, now + timedelta(days=days)) - timedelta(minutes=5),
        not_valid_after=now + timedelta(days=days),
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
