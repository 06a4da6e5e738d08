"""The commands: what they print, and how they end."""

import json
import signal
import socket
import sys

import pytest

from fedkd.cli import main
from fedkd.deploy import doctor, trust
from fedkd.deploy import run as deployed
from fedkd.deploy.checks import Finding
from fedkd.errors import LostSightError, RunError


@pytest.fixture
def fedkd_(capsys, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)

    def run(*arguments):
        monkeypatch.setattr(signal, "signal", lambda number, handler: None)
        monkeypatch.setattr(sys, "argv", ["fedkd", *arguments])
        with pytest.raises(SystemExit) as ended:
            main()
        return ended.value.code, *capsys.readouterr()

    return run


def test_a_deployment_from_first_to_last(fedkd_, tmp_path):
    code, out, err = fedkd_("deploy", "init", "fed", "--superlink", "fed.example.org", "--nodes", "a, b", "--days", "9")
    assert (code, err) == (0, "")
    assert "a SuperLink at fed.example.org:8000, 2 nodes" in out
    assert "Take fed/ca/ca.key offline." in out

    code, out, _ = fedkd_("deploy", "add-node", "fed", "c")
    assert code == 0
    assert "register it with sh register.sh c" in out

    code, out, _ = fedkd_("deploy", "renew", "fed")
    assert code == 0
    assert "bring both to the SuperLink" in out


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (["init", "fed", "--superlink", "http://a", "--nodes", "a"], "--superlink: expected HOST"),
        (["init", "fed", "--superlink", "a", "--nodes", ""], "--nodes: expected at least one"),
        (["init", "fed", "--superlink", "a", "--nodes", "a,,b"], "--nodes: expected names of at most 63"),
        (["init", "fed", "--superlink", "a", "--nodes", "a,b,"], "--nodes: expected names of at most 63"),
        (["init", "fed", "--superlink", "a", "--nodes", "a", "--also", "b,,c"], "--also: expected HOST"),
        (["init", "fed", "--superlink", "a"], "--nodes"),
        (["init", "fed", "--superlink", "a", "--nodes", "n", "--experiment", "none.toml"], "none.toml"),
        (["add-node", "fed", "a"], "found no deployment.toml"),
        (["renew", "fed"], "found no deployment.toml"),
        (["explain", "none.log"], "none.log: expected a log file"),
    ],
)
def test_mistakes_are_one_line_and_exit_code_2(fedkd_, arguments, expected):
    code, out, err = fedkd_("deploy", *arguments)

    assert (code, out) == (2, "")
    assert expected in err
    assert len(err.splitlines()) == 1


@pytest.mark.parametrize(
    ("error", "expected"),
    [
        (LostSightError("lost sight of run 7"), (3, "", "lost sight of run 7\n")),
        (RunError("no client"), (1, "", "the run failed: no client\n")),
    ],
)
def test_a_run_out_of_sight_has_an_exit_code_of_its_own(fedkd_, monkeypatch, tmp_path, error, expected):
    (tmp_path / "own.toml").write_text('[federation]\npartition = "own"\n', encoding="utf-8")

    def end(*given):
        raise error

    monkeypatch.setattr(deployed, "run", end)
    monkeypatch.setattr(trust, "expect_trusted", lambda *given: None)

    assert fedkd_("deploy", "run", "own.toml", "--superlink", "127.0.0.1") == expected


@pytest.mark.parametrize("out", [[], ["--out", "here"]])
def test_a_run_that_cannot_begin_leaves_no_folder(fedkd_, tmp_path, out):
    (tmp_path / "own.toml").write_text('[federation]\npartition = "own"\n', encoding="utf-8")
    with socket.socket() as nobody:  # bound, and never listens
        nobody.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{nobody.getsockname()[1]}"
        code, said, err = fedkd_("deploy", "run", "own.toml", "--superlink", address, *out)

    assert (code, said) == (1, "")
    assert err.startswith(f"the run failed: {address}: Connection refused; is it running")
    assert [path.name for path in tmp_path.iterdir()] == ["own.toml"]


SUMMARY = {
    **{"strategy": "fedmd", "seed": 0, "rounds": 1, "digest": "d2", "folder": "/there", "seconds": 1.0},
    **{"bytes_up": 0, "bytes_down": 0, "took_no_part": ["node 7: it failed: no data.", "1 more of 3 clients"]},
    "metrics": dict.fromkeys(["clients_global", "clients_local", "ensemble_global", "server_global"]),
}


@pytest.fixture
def own(tmp_path, monkeypatch):
    """Write an experiment, and let a test say what is in the place of its run."""
    (tmp_path / "own.toml").write_text('[federation]\npartition = "own"\n', encoding="utf-8")
    monkeypatch.setattr("fedkd.report.write_report", lambda folder: folder / "report.html")
    monkeypatch.setattr(trust, "expect_trusted", lambda *given: None)
    return lambda instead: monkeypatch.setattr(deployed, "run", instead)


def test_a_run_ends_with_the_clients_that_took_no_part(fedkd_, own):
    def run(experiment, connection, out, server_out, on_round, on_told):
        on_told("takes part: a  mlp, image, 3 samples  (node 5)")
        return SUMMARY

    own(run)
    code, out, err = fedkd_("deploy", "run", "own.toml", "--superlink", "127.0.0.1", "--out", "here")

    assert (code, err) == (0, "takes part: a  mlp, image, 3 samples  (node 5)\n")
    assert "\ntook no part: node 7: it failed: no data; 1 more of 3 clients\ndigest  d2\n" in out


def test_a_key_that_a_deployment_does_not_use_is_named(fedkd_, own):
    own(lambda *given: SUMMARY)

    code, _, err = fedkd_("deploy", "run", "own.toml", "--superlink", "127.0.0.1", "--set", "engine.workers=2")

    told = "engine.workers: a deployment does not use it: every client computes on its own node; leave it out\n"
    assert (code, err) == (0, told)


@pytest.mark.parametrize("notes", [["run 7 was stopped at the SuperLink"], []])
def test_an_interrupted_run_says_what_became_of_it_and_where_its_rounds_are(fedkd_, own, notes):
    def run(*given):
        interrupt = KeyboardInterrupt()
        for note in notes:
            interrupt.add_note(note)
        raise interrupt

    own(run)
    code, out, err = fedkd_("deploy", "run", "own.toml", "--superlink", "127.0.0.1", "--out", "here")

    became = "".join(f"; {note}" for note in notes)
    assert (code, out, err) == (130, "", f"interrupted{became}; what had come in by then is in here\n")


def test_a_log_is_explained(fedkd_, tmp_path):
    (tmp_path / "node.log").write_text("Starting Flower SuperNode\n[code: 2001] SuperNode authentication is enabled\n")
    (tmp_path / "fine.log").write_text("all is well\n")

    code, out, _ = fedkd_("deploy", "explain", "node.log")
    assert code == 0
    assert "give --auth-supernode-private-key" in out
    code, out, _ = fedkd_("deploy", "explain", "fine.log")
    assert code == 1
    assert "nothing in it that we know" in out


@pytest.mark.parametrize(("verdict", "expected"), [("ok", 0), ("warn", 0), ("fail", 1)])
def test_the_doctor_ends_with_what_it_found(fedkd_, monkeypatch, verdict, expected):
    monkeypatch.setattr(doctor, "examine", lambda *given: [Finding("disk", verdict, "0 GiB", "make room")])

    code, out, _ = fedkd_("doctor", "--json")
    assert code == expected
    assert json.loads(out) == [{"name": "disk", "verdict": verdict, "found": "0 GiB", "advice": "make room"}]

    code, out, _ = fedkd_("doctor")
    assert code == expected
    assert "make room" in out


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [(["--gpu-memory", "0"], "GiB above 0"), (["--superlink", "a:0"], "a port from 1"), (["--what"], "--what")],
)
def test_the_doctor_refuses_bad_input(fedkd_, arguments, expected):
    code, _, err = fedkd_("doctor", *arguments)

    assert code == 2
    assert expected in err
