"""What ``fedkd deploy init`` wrote starts a SuperLink and a SuperNode that trust each other: TLS and keys."""

import http.client
import shutil
import ssl
import stat

import pytest

from fedkd.deploy import init as deployment
from fedkd.deploy.doctor import examine
from fedkd.deploy.explain import which
from fedkd.deploy.facts import look_at_superlink
from fedkd.deploy.transport import parse_address

pytestmark = pytest.mark.flower


def test_the_operator_registered_every_node(running):
    assert running.registered.said.count("registered successfully") == 2


def test_a_node_comes_online_and_ends_when_told_to(running):
    node = running.script("hospital-a/start.sh")
    node.wait_for("SuperNode ID: ")
    listed = running.script("operator/flwr.sh", "supernode", "list", "fedkd")

    assert listed.ended() == 0
    assert listed.said.count("online") == 1
    node.process.terminate()
    assert node.ended() == 0
    assert stat.S_IMODE((running.folder / "hospital-a" / "node.key").stat().st_mode) == 0o600


def test_a_node_that_is_added_later_is_let_in(running):
    deployment.add_node(running.folder, "hospital-c")
    registered = running.script("operator/register.sh", "hospital-c")

    assert registered.ended() == 0, registered.said
    running.script("hospital-c/start.sh").wait_for("SuperNode ID: ")


def test_a_node_that_is_unregistered_is_shut_out(running):
    node = running.script("hospital-b/start.sh")
    node_id = node.wait_for("SuperNode ID: ").rpartition("SuperNode ID: ")[2].split()[0]

    assert running.script("operator/flwr.sh", "supernode", "unregister", node_id, "fedkd").ended() == 0

    assert node.ended() == 0  # which is why its service says Restart=always
    assert which(node.said) == "let in no longer"
    assert which(running.superlink.said) == "clock, at the SuperLink"  # which says: or its key was unregistered
    again = running.script("hospital-b/start.sh")
    assert again.ended() == 1
    assert which(again.said) == "key refused"
    registered = running.script("operator/register.sh", "hospital-b")
    assert registered.ended() == 0
    assert "a key that was unregistered stays out" in registered.said

    shutil.rmtree(running.folder / "hospital-b")
    deployment.add_node(running.folder, "hospital-b", new_key=True)
    assert "registered successfully" in running.script("operator/register.sh", "hospital-b").wait_for("successfully")
    running.script("hospital-b/start.sh").wait_for("SuperNode ID: ")


def test_a_key_that_is_registered_already_is_skipped(running):
    again = running.script("operator/register.sh", "hospital-a")

    assert again.ended() == 0, again.said
    assert "hospital-a: registered before; a key" in again.said
    assert "already in use" not in again.said


def test_what_cannot_be_registered_is_still_an_error(running):
    public = running.folder / "operator" / "nodes" / "damaged.pub"
    public.write_text("no key")

    refused = running.script("operator/register.sh", "hospital-a", "damaged", "nobody")
    public.unlink()

    assert refused.ended() == 1
    assert "hospital-a: registered before" in refused.said
    assert "Public key file 'nodes/nobody.pub' does not exist" in refused.said
    assert "not registered now (see above): damaged nobody" in refused.said


def test_the_doctor_finds_nothing_wrong_with_it(running):
    findings = examine(running.address, running.folder / "hospital-a" / "ca.crt")

    about_it = {found.name: found.verdict for found in findings if found.name in ("superlink", "certificate", "clock")}
    assert about_it == {"superlink": "ok", "certificate": "ok", "clock": "ok"}  # a full disk here is another matter


def test_the_doctor_distrusts_another_authority_and_still_sees_the_end_of_the_certificate(running, tmp_path):
    deployment.init(tmp_path / "other", "127.0.0.1", ["x"])

    link = look_at_superlink(parse_address(running.address), tmp_path / "other" / "ca" / "ca.crt")

    assert link.tls
    assert "local issuer" in link.untrusted
    assert 364 < link.days_left <= 365
    assert abs(link.ahead) <= link.uncertain + 0.5  # it is the same clock


def test_the_port_answers_nobody_in_plain_text(running):
    address = parse_address(running.address)
    connection = http.client.HTTPConnection(address.host, address.port, timeout=10)
    connection.request("GET", "/")
    with pytest.raises((http.client.HTTPException, OSError)):
        connection.getresponse()
    connection.close()
    with pytest.raises(ssl.SSLCertVerificationError):
        http.client.HTTPSConnection(address.host, address.port, timeout=10).request("GET", "/")
