"""The doctor as a whole: what it looks at, and how it ends."""

import io

import pytest
from rich.console import Console

from fedkd.deploy import facts
from fedkd.deploy.checks import Finding
from fedkd.deploy.doctor import examine, exit_code, findings_table
from fedkd.deploy.facts import Link
from fedkd.errors import UserError


def named(**given):
    return {finding.name: finding for finding in examine(**given)}


def test_it_looks_at_everything_once():
    findings = examine()

    names = [finding.name for finding in findings]
    assert names == [
        "python", "flwr", "torch", "torchvision", "ray", "port 8000", "port 9094", "clock",
        "gpu", "memory", "shared memory", "disk", "open files",
    ]  # fmt: skip
    assert {finding.verdict for finding in findings if finding.name in {"python", "flwr", "torch", "ray"}} == {"ok"}


def test_data_and_superlink_are_looked_at_if_given(monkeypatch):
    link = Link(tls=True, untrusted="Hostname mismatch", days_left=12.0, ahead=-900.0, uncertain=1.0)
    monkeypatch.setattr(facts, "look_at_superlink", lambda address, root: link)

    found = named(superlink="fed.example.org", data="digits")

    assert found["superlink"].found == "fed.example.org:8000 answers by TLS"
    assert found["certificate"].verdict == "fail"
    assert found["clock"].found.startswith("900.0 s behind")
    assert "1797 samples, 10 classes" in found["data"].found


@pytest.mark.parametrize(("address", "verdict"), [("127.0.0.1", "warn"), ("10.0.0.7", "fail")])
def test_plain_text_is_a_failure_unless_it_stays_on_this_machine(monkeypatch, address, verdict):
    monkeypatch.setattr(facts, "look_at_superlink", lambda address, root: Link(ahead=0.0))

    found = named(superlink=address)

    assert found["superlink"].verdict == verdict
    assert "certificate" not in found


def test_an_address_that_is_none_is_a_mistake():
    with pytest.raises(UserError, match="--superlink: expected HOST"):
        examine(superlink="http://x")


@pytest.mark.parametrize(("verdicts", "code"), [(["ok", "warn"], 0), (["ok", "fail", "warn"], 1), ([], 0)])
def test_only_a_failure_is_one(verdicts, code):
    assert exit_code([Finding("x", verdict, "y") for verdict in verdicts]) == code


def test_the_table_shows_texts_as_they_are():
    output = io.StringIO()
    finding = Finding("disk", "fail", "0.1 GiB [free] in /runs", "make [bold]room[/]")
    Console(file=output, width=140).print(findings_table([finding]))

    assert "0.1 GiB [free] in /runs" in output.getvalue()
    assert "make [bold]room[/]" in output.getvalue()
