"""What each machine gets, as texts: no option that Flower does not know, and services that systemd accepts."""

import re
import shlex
import shutil
import stat
import subprocess
import tomllib

import pytest

from fedkd.app.node import NEEDED, OPTIONAL, node_of
from fedkd.config import Experiment
from fedkd.deploy.kit import node_files, operator_files, overview, superlink_files
from fedkd.deploy.plan import make_plan

PLAN = make_plan("fed.example.org:8443", ["hospital-a", "hospital-b"])


def words(script: str, program: str) -> list[str]:
    """Return the words of the command that a script executes."""
    line = re.sub(r"\\\n", " ", script)
    return shlex.split(next(row for row in line.splitlines() if row.startswith(f"exec {program}")))


def options(command: list[str]) -> dict[str, str]:
    pairs = zip(command, [*command[1:], ""], strict=True)
    return {word: "" if value.startswith("--") else value for word, value in pairs if word.startswith("--")}


@pytest.mark.parametrize(
    ("address", "bind"),
    [
        ("fed.example.org", "0.0.0.0"),  # noqa: S104
        ("10.0.0.7:8443", "0.0.0.0"),  # noqa: S104
        ("[fe80::1]:8000", "::"),
        ("127.0.0.1:8443", "127.0.0.1"),
        ("localhost", "127.0.0.1"),
        ("::1", "::1"),
    ],
)
def test_the_superlink_listens_no_wider_than_it_must(address, bind):
    given = options(words(superlink_files(make_plan(address, ["a"]))["start.sh"], "flower-superlink"))

    assert given["--host"] == bind


def test_the_superlink_asks_for_keys_and_keeps_its_database():
    given = options(words(superlink_files(PLAN)["start.sh"], "flower-superlink"))

    assert given == {
        "--host": "0.0.0.0",  # noqa: S104
        "--port": "8443",
        "--ssl-ca-certfile": "ca.crt",
        "--ssl-certfile": "server.crt",
        "--ssl-keyfile": "server.key",
        "--enable-supernode-auth": "",
        "--database": "superlink.sqlite",
    }


def test_a_node_connects_with_its_key_and_says_who_it_is():
    files = node_files(PLAN, "hospital-b")
    given = options(words(files["start.sh"], "flower-supernode"))

    assert given == {
        "--superlink": "fed.example.org:8443",
        "--root-certificates": "ca.crt",
        "--auth-supernode-private-key": "node.key",
        "--port": "${RUNTIME_PORT:-9094}",
        "--node-config": "node.toml",
    }
    assert tomllib.loads(files["node.toml"]) == {
        "client": "hospital-b",
        "data": "own.npz",
        "store": "state",
    }


def test_the_node_file_has_what_is_needed_and_names_all_that_a_node_can_say(tmp_path):
    given = node_files(PLAN, "hospital-a")["node.toml"]
    text = re.sub(r"^# ([\w-]+ = )", r"\1", given, flags=re.MULTILINE)

    assert set(tomllib.loads(given)) == set(NEEDED)
    assert set(tomllib.loads(text)) == {*NEEDED, *OPTIONAL, "partition-id"}
    node = node_of(tomllib.loads(text), Experiment(strategy="fedmd"))
    assert not node.store.is_absolute(), "the service may write into its own folder only"


def scripts():
    files = {"superlink": superlink_files(PLAN), "node": node_files(PLAN, "hospital-a")}
    files["operator"] = operator_files(PLAN, has_experiment=True)
    return [
        pytest.param(text, id=f"{who}/{name}")
        for who, texts in files.items()
        for name, text in texts.items()
        if name.endswith(".sh")
    ]


@pytest.mark.parametrize("text", scripts())
def test_a_script_is_one_that_a_plain_shell_reads_and_tells_nobody_anything(tmp_path, text):
    subprocess.run(["sh", "-n"], input=text.encode(), check=True)  # noqa: S607

    assert "FLWR_TELEMETRY_ENABLED=0" in text
    assert "FLWR_DISABLE_UPDATE_CHECK=1" in text
    assert "FLWR_DISABLE_RUNTIME_DEPENDENCY_INSTALLATION=1" in text
    assert "--insecure" not in text


@pytest.mark.parametrize("text", scripts())
def test_what_a_script_starts_makes_files_that_nobody_else_may_read(tmp_path, text):
    script = tmp_path / "folder" / "script.sh"
    (script.parent / "nodes").mkdir(parents=True)
    script.write_text(text)
    (script.parent / "nodes" / "a.pub").touch()
    for name in ("flwr", "flower-superlink", "flower-supernode"):
        program = tmp_path / name
        program.write_text(f"#!/bin/sh\n: > {tmp_path}/made\n")
        program.chmod(0o755)

    subprocess.run(["sh", script], check=True, env={"PATH": f"{tmp_path}:/usr/bin:/bin"}, umask=0o022)  # noqa: S607

    assert stat.S_IMODE((tmp_path / "made").stat().st_mode) == 0o600


@pytest.mark.skipif(not shutil.which("systemd-analyze"), reason="no systemd here")
@pytest.mark.parametrize("name", ["superlink", "hospital-a"])
def test_systemd_accepts_the_services(tmp_path, name):
    files = superlink_files(PLAN) if name == "superlink" else node_files(PLAN, name)
    service = tmp_path / f"fedkd-{name}.service"
    service.write_text(files[service.name])

    done = subprocess.run(["systemd-analyze", "verify", service], check=False, capture_output=True, text=True)  # noqa: S607

    assert done.returncode == 0, done.stderr
    assert service.name not in done.stderr


def test_a_node_is_started_again_even_when_it_says_that_it_ended_well():
    assert "Restart=always" in node_files(PLAN, "hospital-a")["fedkd-hospital-a.service"]
    assert "Restart=on-failure" in superlink_files(PLAN)["fedkd-superlink.service"]


def test_no_text_has_a_gap_or_a_long_line():
    texts = [
        *superlink_files(PLAN).values(), *node_files(PLAN, "hospital-a").values(),
        *operator_files(PLAN, has_experiment=False).values(), overview(PLAN, "2027-01-01"),
    ]  # fmt: skip
    for text in texts:
        assert not re.search(r"(?<!\$)\{[a-z]+\}", text)
        assert max(map(len, text.splitlines())) <= 120


def test_the_overview_names_every_folder_and_the_end():
    text = overview(PLAN, "2027-01-01")

    for what in ("ca/", "superlink/", "operator/", "hospital-a/", "hospital-b/", "2027-01-01", "offline"):
        assert what in text
