"""The doctor as a whole: what it looks at, and how it ends."""

import io
from pathlib import Path

import pytest
from rich.console import Console

from fedkd.deploy import facts
from fedkd.deploy import init as deployment
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


@pytest.fixture
def fed(tmp_path, monkeypatch):
    """Return a deployment, whose SuperLink shows what it should."""
    deployment.init(tmp_path / "fed", "fed.example.org:8443", ["a"])
    monkeypatch.delenv("RUNTIME_PORT", raising=False)
    monkeypatch.setattr(facts, "listener", lambda port: None)
    asked = []

    def show(address, root):
        asked.append((str(address), root))
        return Link(tls=True, days_left=99.0, ahead=0.0)

    monkeypatch.setattr(facts, "look_at_superlink", show)
    return tmp_path / "fed", asked


LINK = {"superlink", "certificate", "clock"}
EVERYWHERE = {
    "python", "flwr", "torch", "torchvision", "ray", "gpu", "memory", "shared memory", "disk", "open files"
}  # fmt: skip


def test_a_nodes_folder_says_what_is_looked_at(fed):
    folder, asked = fed
    here = folder / "a"

    found = named(folder=here)

    assert set(found) == EVERYWHERE | LINK | {
        "port 9094",
        "ca.crt",
        "node.key",
        "node.toml",
        "store",
        "data",
        "commons",
    }
    assert {name for name, finding in found.items() if finding.verdict == "fail"} <= {"data", "disk"}
    assert asked == [("fed.example.org:8443", here / "ca.crt")]
    assert str(here) in found["disk"].found


def test_an_operators_folder(fed):
    assert set(named(folder=fed[0] / "operator")) == EVERYWHERE | LINK | {"ca.crt"}


def test_a_superlink_is_called_only_if_something_listens(fed, monkeypatch):
    folder, asked = fed
    files = {"port 8443", "ca.crt", "server.crt", "server.key"}

    assert set(named(folder=folder / "superlink")) == EVERYWHERE | files
    assert asked == []
    monkeypatch.setattr(facts, "listener", lambda port: "flower-superlink (process 7)")
    assert set(named(folder=folder / "superlink")) == EVERYWHERE | files | LINK
    assert asked == [("127.0.0.1:8443", folder / "superlink" / "ca.crt")]


def test_without_a_certificate_nobody_is_called(fed):
    folder, asked = fed
    (folder / "a" / "ca.crt").write_text("no certificate")

    found = named(folder=folder / "a")

    assert found["ca.crt"].verdict == "fail"
    assert not LINK & set(found)
    assert asked == []


@pytest.mark.parametrize("more", [{"superlink": "a"}, {"root_certificates": Path("ca.crt")}, {"data": "digits"}])
def test_what_the_folder_says_is_not_said_again(fed, more):
    with pytest.raises(UserError, match="--folder: expected no --superlink, --root-certificates or --data beside it"):
        examine(folder=fed[0] / "a", **more)


def test_a_certificate_without_an_address_is_a_mistake():
    with pytest.raises(UserError, match="--root-certificates: expected --superlink"):
        examine(root_certificates=Path("ca.crt"))


@pytest.mark.parametrize(("verdicts", "code"), [(["ok", "warn"], 0), (["ok", "fail", "warn"], 1), ([], 0)])
def test_only_a_failure_is_one(verdicts, code):
    assert exit_code([Finding("x", verdict, "y") for verdict in verdicts]) == code


def test_the_table_shows_texts_as_they_are():
    output = io.StringIO()
    finding = Finding("disk", "fail", "0.1 GiB [free] in /runs", "make [bold]room[/]")
    Console(file=output, width=140).print(findings_table([finding]))

    assert "0.1 GiB [free] in /runs" in output.getvalue()
    assert "make [bold]room[/]" in output.getvalue()
