"""What real processes of Flower 1.41 say and do when something is wrong, and that we explain it.

Each test starts a SuperNode (or SuperLink) that must be refused, and holds Flower to what the rules of
``fedkd.deploy.explain`` expect of it: these are the texts that an operator sees. That a node
with other code is refused is the server's doing, not Flower's: ``test_explain.py``.
"""

import shutil
from datetime import timedelta

import pytest

from fedkd.deploy import init as deployment
from fedkd.deploy.explain import explain, which
from fedkd.deploy.keys import Pair, make_authority, make_node, make_server, utc_now

pytestmark = [pytest.mark.flower, pytest.mark.slow]

LET_IN = "SuperNode ID: "
CLOCK = """
import datetime
import os

shift = datetime.timedelta(seconds=float(os.environ["CLOCK_SHIFT"]))


class Shifted(datetime.datetime):
    @classmethod
    def now(cls, tz=None):
        return real.now(tz) + shift


real = datetime.datetime
datetime.datetime = Shifted
"""


@pytest.fixture(scope="module")
def trust(running):
    return ["--root-certificates", str(running.folder / "hospital-b" / "ca.crt")]


@pytest.fixture(scope="module")
def key(running):
    return ["--auth-supernode-private-key", str(running.folder / "hospital-b" / "node.key")]


@pytest.fixture
def with_clock(running, trust, key, tmp_path):
    """Start the right SuperNode on a machine with another time."""
    (tmp_path / "sitecustomize.py").write_text(CLOCK)
    return lambda seconds: running.node(*trust, *key, PYTHONPATH=str(tmp_path), CLOCK_SHIFT=str(seconds))


def refused(node, code=1):
    """Wait until it ends, refused; return what it said."""
    assert node.ended() == code, node.said
    assert LET_IN not in node.said
    return node.said


def test_without_a_certificate_of_the_authority(running, key):
    said = refused(running.node(*key))

    assert which(said) == "no certificate"
    assert "start it with --root-certificates ca.crt" in explain(said)


def test_with_the_certificate_of_another_authority(running, key, tmp_path):
    deployment.init(tmp_path / "other", running.address, ["x"])

    said = refused(running.node("--root-certificates", str(tmp_path / "other" / "x" / "ca.crt"), *key))

    assert which(said) == "wrong authority"
    assert "was not signed by this ca.crt" in explain(said)


def another_superlink(running, folder, host="127.0.0.1", server=None):
    """Start a second SuperLink of the same deployment, with other particulars; return its address, and it."""
    shutil.copytree(running.folder / "superlink", folder, ignore=shutil.ignore_patterns("*.sqlite*"))
    if server is not None:
        (folder / "server.crt").write_bytes(server.public)
        (folder / "server.key").write_bytes(server.private)
    first, port = running.address.partition(":")[::2]
    address = f"{host}:{running.free_port()}"
    script = (folder / "start.sh").read_text().replace(f"--host {first} --port {port}", "--host {} --port {}")
    (folder / "start.sh").write_text(script.replace("{} --port {}", " --port ".join(address.split(":"))))
    superlink = running.start(["sh", str(folder / "start.sh")])
    superlink.wait_for(f"running on https://{address}")
    return address, superlink


def test_with_an_expired_certificate(running, trust, key, tmp_path):
    where = running.folder / "ca"
    authority = Pair((where / "ca.key").read_bytes(), (where / "ca.crt").read_bytes())
    server = make_server(authority, ["127.0.0.1"], utc_now() - timedelta(days=30), days=29)
    address, superlink = another_superlink(running, tmp_path / "old", server=server)

    said = refused(running.node("--superlink", address, *trust, *key))

    assert which(said) == "expired"
    superlink.wait_for("certificate has expired")  # nor does it trust itself any more: no run can start
    assert which(superlink.said) == "expired"
    assert "run `fedkd deploy renew`" in explain(said)


def test_with_a_certificate_for_another_name(running, trust, key, tmp_path):
    address, _ = another_superlink(running, tmp_path / "moved", host="127.0.0.2")

    said = refused(running.node("--superlink", address, *trust, *key))

    assert which(said) == "wrong name"
    assert "its certificate does not name 127.0.0.2" in explain(said)


def test_with_a_key_that_nobody_registered(running, trust, tmp_path):
    (tmp_path / "node.key").write_bytes(make_node("stranger").private)

    said = refused(running.node(*trust, "--auth-supernode-private-key", str(tmp_path / "node.key")))

    assert which(said) == "key refused"
    assert "it is not registered (run register.sh in operator/)" in explain(said)
    assert which(running.superlink.said) == "unknown key"


def test_without_a_key(running, trust):
    said = refused(running.node(*trust))

    assert which(said) == "no key"
    assert which(running.superlink.said) == "no key, at the SuperLink"


def test_with_the_key_of_a_node_that_is_online(running, trust, key):
    first = running.node(*trust, *key)
    node_id = first.wait_for(LET_IN).rpartition(LET_IN)[2].split()[0]

    said = refused(running.node(*trust, *key))

    assert which(said) == "key refused"
    assert f"the key of node {node_id}, which is online" in explain(running.superlink.said)
    assert first.process.poll() is None  # the honest one goes on
    first.stop()


@pytest.mark.parametrize("seconds", [-400, 10, 400])
def test_with_a_clock_that_is_off_flower_ends_without_a_word_and_with_0(running, with_clock, seconds):
    said = refused(with_clock(seconds), code=0)

    assert which(said) == "clock, at the SuperNode"
    assert "more than 5 s ahead or more than 5 min behind" in explain(said)
    assert which(running.superlink.said) == "clock, at the SuperLink"
    assert "SuperNode at 127.0.0.1: the SuperLink refused its signature" in explain(running.superlink.said)


def test_with_a_clock_that_is_four_minutes_behind_it_is_let_in(with_clock):
    node = with_clock(-240)

    assert which(node.wait_for(LET_IN)) is None
    node.stop()


def test_in_plain_text_to_the_port_that_speaks_tls(running):
    node = running.node("--insecure")

    said = node.wait_for("Connection attempt failed", times=4)
    assert LET_IN not in said
    assert node.process.poll() is None  # it would try for ever
    node.stop()
    assert which(node.said) == "plain text"
    assert f"plain text to {running.address}" in explain(node.said)


def test_with_a_key_but_in_plain_text(running, key):
    assert which(refused(running.node("--insecure", *key))) == "key without TLS"


def test_where_nobody_listens(running, trust, key):
    node = running.node("--superlink", "127.0.0.1:9", *trust, *key)

    said = node.wait_for("Connection attempt failed", times=4)
    node.stop()
    assert which(said) == "nobody answers"


def test_with_a_port_that_is_taken(running, trust, key):
    node = running.node("--port", running.address.rpartition(":")[2], *trust, *key)

    assert which(refused(node)) == "port of a SuperNode"


def test_a_second_superlink_at_the_same_address(running, tmp_path):
    shutil.copytree(running.folder / "superlink", tmp_path / "again", ignore=shutil.ignore_patterns("*.sqlite*"))

    again = running.start(["sh", str(tmp_path / "again" / "start.sh")])

    assert again.ended() == 1
    assert which(again.said) == "port of a SuperLink"


@pytest.mark.parametrize(
    ("file", "text", "rule"),
    [
        ("ca.crt", None, "no ca.crt"),
        ("node.key", None, "no key file"),
        ("node.key", "no key", "damaged key"),
        ("node.toml", None, "no node.toml"),
        ("node.toml", "client = hospital-b", "wrong TOML"),
        ("node.toml", 'client = "a"\nview = ["image"]', "wrong value"),
    ],
)
def test_where_a_file_of_the_node_is_missing_or_damaged(running, tmp_path, file, text, rule):
    damaged(running.folder / "hospital-b", tmp_path / "node", file, text)

    assert which(refused(running.start(["sh", str(tmp_path / "node" / "start.sh")]))) == rule


def test_with_a_ca_crt_that_is_none_it_neither_connects_nor_ends(running, tmp_path):
    damaged(running.folder / "hospital-b", tmp_path / "node", "ca.crt", "no certificate")

    node = running.start(["sh", str(tmp_path / "node" / "start.sh")])

    node.wait_for("Starting Flower SuperExec")
    assert node.process.poll() is None
    node.stop()
    assert which(node.said) == "damaged ca.crt"


@pytest.mark.parametrize(
    ("file", "text", "rule"),
    [
        ("ca.crt", None, "no file of the SuperLink"),
        ("server.crt", None, "no file of the SuperLink"),
        ("server.key", None, "no file of the SuperLink"),
        ("server.key", "no key", "certificate without its key"),
        ("server.key", make_authority(utc_now()).private.decode(), "certificate without its key"),
    ],
)
def test_where_a_file_of_the_superlink_is_missing_or_damaged(running, tmp_path, file, text, rule):
    damaged(running.folder / "superlink", tmp_path / "superlink", file, text)

    superlink = running.start(["sh", str(tmp_path / "superlink" / "start.sh")])

    assert superlink.ended() == 1
    assert which(superlink.said) == rule


def damaged(folder, copy, file, text):
    """Copy a machine's folder, with another text in one file, or without it."""
    shutil.copytree(folder, copy, ignore=shutil.ignore_patterns("*.sqlite*", "flower"))
    (copy / file).unlink()
    if text is not None:
        (copy / file).write_text(text)
