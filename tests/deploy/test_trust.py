"""A SuperLink that Flower would not talk to is told of in one line, before a run begins."""

import pytest

from fedkd.deploy import facts
from fedkd.deploy.facts import Link
from fedkd.deploy.transport import Address
from fedkd.deploy.trust import expect_trusted, findings_of
from fedkd.errors import RunError, UserError

ADDRESS = Address("127.0.0.1", 9000)
OTHER = "unable to get local issuer certificate"


@pytest.fixture(autouse=True)
def no_proxy(monkeypatch):
    for name in ("https_proxy", "http_proxy", "all_proxy", "no_proxy"):
        monkeypatch.delenv(name, raising=False)
        monkeypatch.delenv(name.upper(), raising=False)


@pytest.fixture
def shows(monkeypatch):
    """Let the SuperLink show this."""
    return lambda link: monkeypatch.setattr(facts, "look_at_superlink", lambda address, root: link)


@pytest.mark.parametrize(
    ("link", "error", "message"),
    [
        (Link(error="Connection refused"), RunError, r"127\.0\.0\.1:9000: Connection refused; is it running"),
        (Link(tls=True, untrusted=OTHER, days_left=9.0), UserError, f"not trusted: {OTHER}.*use the ca.crt of this"),
        (Link(tls=True, untrusted="Hostname mismatch", days_left=9.0), UserError, "a name of the SuperLink that"),
        (Link(tls=True, untrusted="has expired", days_left=-3.0), RunError, "expired 3 days ago; run `fedkd deploy r"),
        (Link(ahead=0.0), UserError, "expected TLS, since --root-certificates is given, found plain text"),
    ],
)
def test_what_flower_would_not_talk_to_is_refused_in_one_line(shows, tmp_path, link, error, message):
    shows(link)

    with pytest.raises(error, match=message) as refused:
        expect_trusted(ADDRESS, tmp_path / "ca.crt")

    assert "\n" not in str(refused.value)


def test_a_trusted_one_is_let_be_even_if_its_certificate_ends_soon(shows, tmp_path):
    shows(Link(tls=True, days_left=2.0, ahead=900.0))

    expect_trusted(ADDRESS, tmp_path / "ca.crt")


def test_plain_text_stands_against_tls(shows):
    shows(Link(ahead=0.0))
    expect_trusted(ADDRESS, None)

    shows(Link(tls=True, untrusted=OTHER, days_left=9.0))
    with pytest.raises(UserError, match="expected plain text, found TLS; give --root-certificates"):
        expect_trusted(ADDRESS, None)


@pytest.mark.parametrize(("name", "tls"), [("ALL_PROXY", True), ("ALL_PROXY", False), ("HTTP_PROXY", False)])
def test_flower_obeys_these_proxies_too(name, tls, shows, monkeypatch, tmp_path):
    shows(Link(error="Connection refused"))
    monkeypatch.setenv(name, "http://proxy.example.org:3128")

    expect_trusted(Address("fed.example.org"), tmp_path / "ca.crt" if tls else None)


def test_behind_a_proxy_flower_finds_its_own_way(shows, monkeypatch, tmp_path):
    shows(Link(error="Connection refused"))
    monkeypatch.setenv("https_proxy", "http://proxy.example.org:3128")

    expect_trusted(Address("fed.example.org"), tmp_path / "ca.crt")
    monkeypatch.setenv("no_proxy", "fed.example.org")
    with pytest.raises(RunError):
        expect_trusted(Address("fed.example.org"), tmp_path / "ca.crt")


@pytest.mark.parametrize("link", [Link(error="Connection refused"), Link(tls=True, days_left=9.0)])
def test_a_clock_that_was_not_told_is_no_reason_to_give_the_address_again(link):
    clock = findings_of(ADDRESS, link)[-1]

    assert (clock.name, clock.verdict, clock.found) == ("clock", "warn", "unknown")
    assert "--superlink" not in clock.advice
