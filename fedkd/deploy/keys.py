"""Certificates and keys, as Flower 1.41 reads them: pure functions from facts to PEM texts.

The certificate authority signs nothing but servers of its own deployment. A SuperNode has no certificate: it signs the
time with an elliptic-curve key (P-384, in OpenSSH's format), whose public half is registered at the SuperLink.
"""

import ipaddress
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Final

from cryptography import x509
from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import (
    Encoding,
    NoEncryption,
    PrivateFormat,
    PublicFormat,
    load_pem_private_key,
)
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from fedkd.deploy.transport import Address
from fedkd.errors import UserError

CA_DAYS: Final = 3650
SERVER_DAYS: Final = 365
_EARLIER: Final = timedelta(minutes=10)  # so that a machine whose clock is a little behind accepts it at once
_HERE: Final = ("localhost", "127.0.0.1", "::1")


@dataclass(frozen=True)
class Pair:
    """A private key, and what may be shown of it.

    Attributes:
        private: PEM of the private key, not encrypted.
        public: PEM of a certificate, or the line of a public key in OpenSSH's format.
    """

    private: bytes
    public: bytes


def make_authority(now: datetime, days: int = CA_DAYS) -> Pair:
    """Return a certificate authority that may sign servers, and no further authorities.

    Args:
        now: beginning of its time, with a time zone.
        days: how long it is valid.
    """
    key = ec.generate_private_key(ec.SECP384R1())
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, f"fedkd deployment {now:%Y-%m-%d %H:%M}")])
    certificate = (
        _builder(key.public_key(), name, name, now, days)
        .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
        .add_extension(_usage(signs_certificates=True), critical=True)
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(key.public_key()), critical=False)
        .sign(key, hashes.SHA384())
    )
    return Pair(_private_pem(key), certificate.public_bytes(Encoding.PEM))


def make_server(authority: Pair, names: Sequence[str], now: datetime, days: int = SERVER_DAYS) -> Pair:
    """Return a server's key, and its certificate signed by the authority.

    Every certificate also names this machine itself: where a SuperLink listens on all addresses, its own ServerApp
    reaches it by 127.0.0.1, over TLS.

    Args:
        authority: of the deployment.
        names: DNS names and IP addresses by which others reach the server; the first one becomes its common name.
        now: beginning of its time, with a time zone.
        days: how long it is valid; not beyond the authority's end.

    Raises:
        UserError: the authority has expired or ends before, or what is given is none.
    """
    issuer, signer = _read_authority(authority)
    if issuer.not_valid_after_utc < now + timedelta(days=days):
        raise UserError(
            f"--days: expected a certificate within its authority's time, which ends on "
            f"{issuer.not_valid_after_utc:%Y-%m-%d}, found {days} days from now: ask for "
            "fewer, or make a new deployment."
        )
    key = ec.generate_private_key(ec.SECP384R1())
    subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, names[0][:64])])
    certificate = (
        _builder(key.public_key(), subject, issuer.subject, now, days)
        .add_extension(x509.SubjectAlternativeName([_alternative(name) for name in _all(names)]), critical=False)
        .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
        .add_extension(_usage(signs_certificates=False), critical=True)
        .add_extension(x509.ExtendedKeyUsage([ExtendedKeyUsageOID.SERVER_AUTH]), critical=False)
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(key.public_key()), critical=False)
        .add_extension(x509.AuthorityKeyIdentifier.from_issuer_public_key(signer.public_key()), critical=False)
        .sign(signer, hashes.SHA384())
    )
    return Pair(_private_pem(key), certificate.public_bytes(Encoding.PEM))


def make_node(name: str) -> Pair:
    """Return the key pair by which a SuperNode proves who it is; the name is a comment in the public half."""
    key = ec.generate_private_key(ec.SECP384R1())
    private = key.private_bytes(Encoding.PEM, PrivateFormat.OpenSSH, NoEncryption())
    public = key.public_key().public_bytes(Encoding.OpenSSH, PublicFormat.OpenSSH)
    return Pair(private, public + f" {name}\n".encode())


def utc_now() -> datetime:
    """Return the time, in UTC, to the second."""
    return datetime.now(UTC).replace(microsecond=0)


def _read_authority(authority: Pair) -> tuple[x509.Certificate, ec.EllipticCurvePrivateKey]:
    try:
        issuer = x509.load_pem_x509_certificate(authority.public)
    except ValueError:
        raise UserError("ca.crt: expected a certificate, found a damaged file: bring back the right file.") from None
    try:
        signer = load_pem_private_key(authority.private, password=None)
    except (ValueError, TypeError, UnsupportedAlgorithm):
        raise UserError("ca.key: expected a private key, found a damaged file: bring back the right file.") from None
    if not isinstance(signer, ec.EllipticCurvePrivateKey) or signer.public_key() != issuer.public_key():
        raise UserError("ca.key: expected the private key of ca.crt, found another one: bring back the right file.")
    return issuer, signer


def _builder(
    key: ec.EllipticCurvePublicKey, subject: x509.Name, issuer: x509.Name, now: datetime, days: int
) -> x509.CertificateBuilder:
    return (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(issuer)
        .public_key(key)
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - _EARLIER)
        .not_valid_after(now + timedelta(days=days))
    )


def _usage(signs_certificates: bool) -> x509.KeyUsage:
    return x509.KeyUsage(
        digital_signature=not signs_certificates,
        content_commitment=False,
        key_encipherment=False,
        data_encipherment=False,
        key_agreement=False,
        key_cert_sign=signs_certificates,
        crl_sign=signs_certificates,
        encipher_only=False,
        decipher_only=False,
    )


def _all(names: Sequence[str]) -> list[str]:
    return list(dict.fromkeys([*names, *_HERE]))


def _alternative(name: str) -> x509.GeneralName:
    return x509.IPAddress(ipaddress.ip_address(name)) if Address(name).is_ip else x509.DNSName(name.rstrip("."))


def _private_pem(key: ec.EllipticCurvePrivateKey) -> bytes:
    return key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())
