"""Addresses, and what may travel without TLS."""

import pytest

from fedkd.deploy.transport import Address, check_transport, parse_address
from fedkd.errors import UserError


@pytest.mark.parametrize(
    ("text", "host", "port", "shown"),
    [
        ("fed.example.org", "fed.example.org", 8000, "fed.example.org:8000"),
        ("Fed.Example.org:443", "fed.example.org", 443, "fed.example.org:443"),
        ("10.0.0.7:9000", "10.0.0.7", 9000, "10.0.0.7:9000"),
        ("[fe80::1]:9000", "fe80::1", 9000, "[fe80::1]:9000"),
        ("FE80:0:0:0:0:0:0:1", "fe80::1", 8000, "[fe80::1]:8000"),
        ("box_7:1", "box_7", 1, "box_7:1"),
    ],
)
def test_an_address_is_host_and_port(text, host, port, shown):
    address = parse_address(text)

    assert (address.host, address.port, str(address)) == (host, port, shown)
    assert parse_address(str(address)) == address


@pytest.mark.parametrize(
    "text",
    [
        "",
        ":8000",
        "https://a:1",
        "a/b",
        "a b",
        "-a",
        "256.0.0.1",
        "1.2.3",
        "[10.0.0.1]:8",
        "[::1",
        "::1:x",
        "a:b",
        "a:1:2",
    ],
)
def test_what_is_no_address_is_refused_in_one_line(text):
    with pytest.raises(UserError, match=r"--superlink: expected HOST or HOST:PORT") as refused:
        parse_address(text)
    assert "\n" not in str(refused.value)


@pytest.mark.parametrize("port", [0, 65536, 99999])
def test_a_port_out_of_range_is_refused(port):
    with pytest.raises(UserError, match=f"a port from 1 to 65535, found {port}"):
        parse_address(f"a:{port}")


@pytest.mark.parametrize("host", ["localhost", "LOCALHOST:1", "127.0.0.1", "127.8.9.1:80", "::1", "[::1]:8000"])
def test_this_machine_needs_no_tls(host):
    check_transport(host, tls=False, allow=False)


REMOTE = ["fed.example.org", "10.0.0.7:8000", "192.0.2.1", "::", "[fe80::1]:1", "localhost.example.org", "128.0.0.1"]


@pytest.mark.parametrize("host", REMOTE)
def test_other_machines_need_tls_or_somebody_who_says_otherwise_by_name(host):
    with pytest.raises(UserError, match=r"expected TLS.*found none: give --root-certificates.*--insecure-on-purpose"):
        check_transport(host, tls=False, allow=False)
    check_transport(host, tls=True, allow=False)
    check_transport(host, tls=False, allow=True)


def test_an_address_that_is_none_is_refused_even_where_plain_text_is_allowed():
    with pytest.raises(UserError, match="address: expected HOST"):
        check_transport("http://10.0.0.7", tls=False, allow=True)


def test_ip_addresses_are_told_from_names():
    assert Address("::1").is_ip
    assert Address("10.0.0.1").is_ip
    assert not Address("ten.example.org").is_ip
