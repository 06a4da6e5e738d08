"""Certificates and keys, judged by OpenSSL and by the loaders that Flower uses."""

import contextlib
import ipaddress
import ssl
from datetime import UTC, datetime, timedelta

import pytest
from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import load_ssh_private_key, load_ssh_public_key

from fedkd.deploy.keys import make_authority, make_node, make_server, utc_now
from fedkd.errors import UserError

NOW = utc_now()


@pytest.fixture(scope="module")
def authority():
    return make_authority(NOW)


def shake_hands(tmp_path, authority, server, name):
    """Make a TLS handshake in memory, as strictly as Python 3.13 does; return how the client ends it."""
    (tmp_path / "server.pem").write_bytes(server.public + server.private)
    ours = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    ours.load_cert_chain(tmp_path / "server.pem")
    theirs = ssl.create_default_context(cadata=authority.public.decode())
    theirs.verify_flags |= ssl.VERIFY_X509_STRICT
    up, down = ssl.MemoryBIO(), ssl.MemoryBIO()
    client = theirs.wrap_bio(down, up, server_hostname=name)
    host = ours.wrap_bio(up, down, server_side=True)
    for _ in range(5):
        with contextlib.suppress(ssl.SSLWantReadError):
            client.do_handshake()
        with contextlib.suppress(ssl.SSLWantReadError):
            host.do_handshake()
    return client.version()


@pytest.mark.parametrize("name", ["fed.example.org", "10.0.0.7", "fe80::1", "localhost", "127.0.0.1", "::1"])
def test_a_server_is_trusted_under_each_of_its_names_and_on_its_own_machine(tmp_path, authority, name):
    server = make_server(authority, ["fed.example.org", "10.0.0.7", "fe80::1"], NOW)

    assert shake_hands(tmp_path, authority, server, name) == "TLSv1.3"


@pytest.mark.parametrize(
    ("name", "days", "since", "cause"),
    [
        ("other.example.org", 365, timedelta(0), "Hostname mismatch"),
        ("10.0.0.8", 365, timedelta(0), "IP address mismatch"),
        ("a.example.org", 1, timedelta(days=-2), "certificate has expired"),
        ("a.example.org", 1, timedelta(hours=1), "certificate is not yet valid"),
    ],
)
def test_another_name_and_another_time_are_refused(tmp_path, authority, name, days, since, cause):
    server = make_server(authority, ["a.example.org", "10.0.0.7"], NOW + since, days)

    with pytest.raises(ssl.SSLCertVerificationError, match=cause):
        shake_hands(tmp_path, authority, server, name)


def test_another_authority_is_refused(tmp_path, authority):
    server = make_server(make_authority(NOW), ["a.example.org"], NOW)

    with pytest.raises(ssl.SSLCertVerificationError, match="certificate verify failed"):
        shake_hands(tmp_path, authority, server, "a.example.org")


def test_a_server_cannot_sign_servers(tmp_path, authority):
    first = make_server(authority, ["a.example.org"], NOW)
    second = make_server(first, ["b.example.org"], NOW, days=30)
    chain = type(second)(second.private, second.public + first.public)

    with pytest.raises(ssl.SSLCertVerificationError):
        shake_hands(tmp_path, authority, chain, "b.example.org")


def test_the_certificate_holds_every_name_once_and_lasts_as_long_as_asked(authority):
    server = make_server(authority, ["a.example.org", "localhost", "::1"], NOW, days=7)
    certificate = x509.load_pem_x509_certificate(server.public)
    names = certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName).value

    assert names.get_values_for_type(x509.DNSName) == ["a.example.org", "localhost"]
    assert names.get_values_for_type(x509.IPAddress) == [ipaddress.ip_address(ip) for ip in ("::1", "127.0.0.1")]
    assert certificate.not_valid_after_utc == NOW + timedelta(days=7)
    assert certificate.not_valid_before_utc < NOW


def test_a_server_does_not_outlive_its_authority():
    authority = make_authority(datetime(2026, 1, 1, tzinfo=UTC), days=10)

    with pytest.raises(UserError, match=r"ends on 2026-01-11, found 11 days"):
        make_server(authority, ["a"], datetime(2026, 1, 1, tzinfo=UTC), days=11)


def test_the_key_of_another_authority_is_refused(authority):
    other = make_authority(NOW)

    with pytest.raises(UserError, match=r"ca\.key: expected the private key of ca\.crt"):
        make_server(type(other)(other.private, authority.public), ["a"], NOW)


def test_a_node_key_is_what_flower_loads():
    pair = make_node("hospital-a")
    private, public = load_ssh_private_key(pair.private, None), load_ssh_public_key(pair.public)

    assert isinstance(private, ec.EllipticCurvePrivateKey)
    assert isinstance(private.curve, ec.SECP384R1)
    assert private.public_key() == public
    assert pair.public.split()[0] == b"ecdsa-sha2-nistp384"
    assert pair.public.endswith(b" hospital-a\n")
    assert make_node("hospital-a") != pair


def test_an_authority_may_not_make_further_authorities(authority):
    limits = x509.load_pem_x509_certificate(authority.public).extensions.get_extension_for_class(x509.BasicConstraints)

    assert limits.critical
    assert (limits.value.ca, limits.value.path_length) == (True, 0)
