"""What stands in a machine's folder, as ``fedkd deploy init`` made it and as somebody spoilt it."""

import errno
import os
from datetime import timedelta
from pathlib import Path

import numpy as np
import pytest
from cryptography.exceptions import UnsupportedAlgorithm

from fedkd.deploy import init as deployment
from fedkd.deploy.keys import make_authority, make_server, utc_now
from fedkd.deploy.machine import FILES, Machine, file_problem, look_at_node, read_machine
from fedkd.deploy.transport import Address
from fedkd.errors import UserError

SPLIT = ["train", "public", "validation", "test"]


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    folder = tmp_path_factory.mktemp("made") / "fed"
    deployment.init(folder, "fed.example.org:8443", ["hospital-a"])
    return folder


@pytest.fixture
def node(tmp_path):
    """Return a node's folder with samples and commons of two classes."""
    deployment.init(tmp_path / "fed", "fed.example.org", ["hospital-a"])
    folder = tmp_path / "fed" / "hospital-a"
    write(folder / "own.npz", ["cat", "dog"])
    write(folder / "commons.npz", ["cat", "dog", "emu"], split=np.array(SPLIT * 3), ids=np.arange(12))
    (folder / "node.toml").write_text(
        'client = "hospital-a"\ndata = "own.npz"\nstore = "state"\ncommons = "commons.npz"\n', encoding="utf-8"
    )
    return folder


def write(path, classes, **more):
    labels = np.arange(12) % len(classes)
    np.savez(path, labels=labels, classes=np.array(classes), **{"sensor": np.ones((12, 3), np.float32), **more})


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("hospital-a", Machine("SuperNode", Address("fed.example.org", 8443), 9094)),
        ("superlink", Machine("SuperLink", Address("127.0.0.1", 8443), 8443)),  # it listens everywhere
        ("operator", Machine("operator", Address("fed.example.org", 8443))),
    ],
)
def test_the_scripts_say_which_machine_it_is_and_whom_it_calls(made, monkeypatch, name, expected):
    monkeypatch.delenv("RUNTIME_PORT", raising=False)

    assert read_machine(made / name) == expected
    assert [file_problem(made / name / file) for file in FILES[expected.role]] == [None] * len(FILES[expected.role])


def test_the_second_node_of_a_machine_has_the_port_that_it_will_be_started_with(made, monkeypatch):
    for nonsense in ("99999", "0", "²", ""):
        monkeypatch.setenv("RUNTIME_PORT", nonsense)
        assert read_machine(made / "hospital-a").port == 9094
    monkeypatch.setenv("RUNTIME_PORT", "9095")

    assert read_machine(made / "hospital-a").port == 9095


@pytest.mark.parametrize("name", ["", "ca", "none", "README.txt"])
def test_another_folder_is_none(made, name):
    with pytest.raises(UserError, match=r"--folder: expected a node's folder, superlink/ or operator/"):
        read_machine(made / name)


def test_files_that_are_missing_damaged_ended_or_of_another_deployment(tmp_path):
    authority, now = make_authority(utc_now()), utc_now()
    old, new = (make_server(authority, ["a"], now - timedelta(days=days), days=2) for days in (9, 0))
    (tmp_path / "server.crt").write_bytes(old.public)
    assert file_problem(tmp_path / "server.crt") == f"it has expired on {now - timedelta(days=7):%Y-%m-%d}"
    (tmp_path / "server.crt").write_bytes(new.public)
    (tmp_path / "server.key").write_bytes(old.private)
    assert file_problem(tmp_path / "server.crt") is None
    assert file_problem(tmp_path / "server.key") == "it does not belong to server.crt"
    (tmp_path / "server.key").write_bytes(new.private)
    assert file_problem(tmp_path / "server.key") is None
    for name, kind in {"ca.crt": "certificate", "server.key": "private key", "node.key": "private key"}.items():
        (tmp_path / name).write_text("no such thing", encoding="utf-8")
        assert file_problem(tmp_path / name) == f"it is no {kind}"
        (tmp_path / name).unlink()
        assert file_problem(tmp_path / name) == "there is no such file"


def test_a_file_that_belongs_to_another_user(tmp_path, monkeypatch):
    def denied(path):
        raise PermissionError(errno.EACCES, "Permission denied")

    monkeypatch.setattr(Path, "read_bytes", denied)  # who runs the tests may be allowed everything
    assert file_problem(tmp_path / "node.key") == "this user may not read it"


def test_a_key_of_a_kind_that_is_not_known(tmp_path, monkeypatch):
    def unknown(content, password):
        raise UnsupportedAlgorithm("sk-ssh-ed25519")

    (tmp_path / "node.key").write_text("a key", encoding="utf-8")
    monkeypatch.setattr("fedkd.deploy.machine.load_ssh_private_key", unknown)
    assert file_problem(tmp_path / "node.key") == "it is no private key"


def test_a_node_reads_its_paths_from_its_own_folder(node, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)

    facts = look_at_node(node)

    assert (facts.problem, facts.client, facts.misfit) == (None, "hospital-a", None)
    assert facts.data == ("own.npz", "12 samples, 2 classes, views sensor (3,)", None)
    assert facts.commons == ("commons.npz", "12 samples, 3 classes, views sensor (3,)", None)
    assert facts.store == ("state", True)
    assert os.getcwd() == str(tmp_path)
    assert not (node / "state").exists(), "nothing is changed"


@pytest.mark.parametrize(
    ("classes", "more", "problem"),
    [
        (["cat", "yak"], {}, "unknown class 'yak'"),
        (["cat", "dog"], {"ids": np.arange(12)}, "found 12 that one has"),
        (["cat", "dog"], {"sensor": np.ones((12, 4), np.float32)}, "expected samples of shape (3,)"),
    ],
)
def test_samples_that_do_not_fit_the_commons(node, classes, more, problem):
    write(node / "own.npz", classes, **more)

    facts = look_at_node(node)

    assert facts.data[2] is None
    assert problem in facts.misfit


def test_samples_and_commons_that_are_not_there(node):
    (node / "own.npz").unlink()
    (node / "commons.npz").unlink()

    facts = look_at_node(node)

    assert facts.problem is None
    assert facts.data[:2] == ("own.npz", None)
    assert facts.commons[:2] == ("commons.npz", None)
    assert "own.npz" in facts.data[2]
    assert "commons.npz" in facts.commons[2]
    assert facts.misfit is None


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        (None, "there is no such file"),
        ('client = "a"\nstore = "s"', "expected the key 'data'"),
        ('client = "Bad Name"\ndata = "d"\nstore = "s"', "client: expected small letters"),
        ("client = hospital-a", "at line 1"),
        ('client = "a"\ndata = "d"\nstore = "s"\nx = [1]', "x: expected a text or a number"),
        ('client = "a"\ndata = 7\nstore = "s"', "data: expected a text in quotation marks"),
        (b"\xff", "decode"),
    ],
)
def test_a_node_file_that_cannot_be_used(node, text, problem):
    path = node / "node.toml"
    if text is None:
        path.unlink()
    else:
        path.write_bytes(text if isinstance(text, bytes) else text.encode())

    facts = look_at_node(node)

    assert problem in facts.problem
    assert facts.client == ""


def test_a_key_that_means_nothing_is_named(node):
    with (node / "node.toml").open("a", encoding="utf-8") as file:
        file.write('vieww = "image"\npartition-id = 0\n')

    assert "unknown key 'vieww': did you mean 'view'?" in look_at_node(node).problem


def test_an_architecture_that_does_not_exist_is_named(node):
    with (node / "node.toml").open("a", encoding="utf-8") as file:
        file.write('architecture = "cmn"\n')

    assert "unknown architecture 'cmn': did you mean 'cnn'?" in look_at_node(node).problem


def test_a_store_that_cannot_be_a_folder(node):
    (node / "state").touch()
    assert look_at_node(node).store == ("state", False)
    (node / "state").unlink()
    (node / "state").mkdir()
    assert look_at_node(node).store == ("state", True)


def test_a_store_that_nobody_may_write_into(node, monkeypatch):
    monkeypatch.setattr(os, "access", lambda path, mode: not str(path).startswith(str(node)))

    assert look_at_node(node).store == ("state", False)
