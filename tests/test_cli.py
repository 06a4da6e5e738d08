import json
import os
import shutil
import signal
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path

import pytest

import fedkd
from fedkd import config
from fedkd.app.run_folder import locked
from fedkd.app.state import write_atomically
from fedkd.cli import main
from fedkd.engine.resume import go_on
from fedkd.engine.simulate import simulate

ROOT = Path(__file__).resolve().parents[1]
EXPERIMENT = """
name = "tiny"
strategy = "fedavg"
rounds = 2
[federation]
architectures = ["mlp"]
[train]
local_epochs = 1
"""
METRICS = {"accuracy", "accuracy_worst10", "nll", "ece", "brier", "entropy"}


@pytest.fixture
def here(tmp_path, monkeypatch):
    (tmp_path / "tiny.toml").write_text(EXPERIMENT)
    monkeypatch.chdir(tmp_path)
    return tmp_path


@dataclass(frozen=True)
class Done:
    returncode: int
    stdout: str
    stderr: str


@pytest.fixture
def fedkd_(capfd, monkeypatch):
    """Run the command line in this process: the imports then cost their seconds once."""

    def run(*arguments: str) -> Done:
        monkeypatch.setattr(signal, "signal", lambda number, handler: None)
        monkeypatch.setattr(sys, "argv", ["fedkd", *arguments])
        with pytest.raises(SystemExit) as ended:
            main()
        out, err = capfd.readouterr()
        return Done(ended.value.code, out, err)

    return run


def test_run_leaves_the_promised_folder_and_prints_the_summary_as_json(here, fedkd_):
    done = fedkd_("run", "tiny.toml", "--json", "--set", "seed=4")
    assert done.returncode == 0, done.stderr
    summary = json.loads(done.stdout)
    folder = here / "runs" / "tiny"
    assert summary == json.loads((folder / "summary.json").read_text())
    assert set(summary) == {
        *("strategy", "seed", "rounds", "digest", "metrics", "bytes_up", "bytes_down", "bytes_measured", "seconds"),
    }
    assert (summary["strategy"], summary["seed"], summary["rounds"]) == ("fedavg", 4, 2)
    assert set(summary["metrics"]) == {"clients_global", "clients_local", "ensemble_global", "server_global"}
    assert set(summary["metrics"]["server_global"]) == METRICS
    assert summary["metrics"]["ensemble_global"] is None
    for name in ("experiment.toml", "manifest.json", "rounds.jsonl", "clients.jsonl", "report.html"):
        assert (folder / name).stat().st_size > 0
    assert len((folder / "rounds.jsonl").read_text().splitlines()) == 2
    assert len(done.stderr.splitlines()) == 2  # one line per round where there is no terminal


def test_a_second_run_does_not_overwrite_the_first(here, fedkd_):
    for _ in range(2):
        assert fedkd_("run", "tiny.toml", "--set", "rounds=1").returncode == 0
    assert {path.name for path in (here / "runs").iterdir()} == {"tiny", "tiny-2"}


def test_a_run_can_be_repeated_from_its_own_folder(here, fedkd_):
    first = json.loads(fedkd_("run", "tiny.toml", "--json", "--out", "one").stdout)
    again = json.loads(fedkd_("run", "one/experiment.toml", "--json", "--out", "two").stdout)
    assert first["digest"] == again["digest"]


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (["run", "missing.toml"], "missing.toml"),
        (["run", "tiny.toml", "--set", "train.lrr=1"], "did you mean 'train.lr'?"),
        (["run", "tiny.toml", "--set", "rounds=0"], "rounds"),
        (["run", "tiny.toml", "--set", "strategy=fedmb"], "did you mean 'fedmd'?"),
        (["run", "tiny.toml", "--set", "data.name=digit"], "digits"),
        (["run", "tiny.toml", "--set", 'federation.architectures=["cnnn"]'], "did you mean 'cnn'?"),
        (["run", "tiny.toml", "--set", 'federation.views=["image@99"]'], "image"),
        (["run", "tiny.toml", "--set", "strategies.fedavg.x=1"], "strategies.fedavg"),
        (["run", "tiny.toml", "--set", 'communication.up=["flaot16"]'], "did you mean 'float16'?"),
        (["run", "tiny.toml", "--set", 'communication.up=["top-k"]'], "such as 'top-k:3'"),
        (["run", "tiny.toml", "--engine", "cloud"], "engine.name"),
        (["run", "tiny.toml", "--workers", "-1"], "engine.workers"),
        (["compare", "tiny.toml", "--strategies", "local", "--seeds", "a"], "--seeds"),
        (["compare", "tiny.toml", "--strategies", ","], "--strategies"),
        (["list", "planets"], "planets"),
    ],
)
def test_a_mistake_is_one_line_and_exit_code_2(here, fedkd_, arguments, expected):
    done = fedkd_(*arguments)
    assert done.returncode == 2
    assert expected in done.stderr
    assert "Traceback" not in done.stderr
    assert done.stdout == ""
    assert not (here / "runs").exists()


def test_a_failed_run_exits_with_1_and_the_cause(here, fedkd_):
    (here / "strategies").mkdir()
    (here / "strategies" / "hopeless.py").write_text(
        "from fedkd.strategy import MethodCard, Strategy\n"
        "class Hopeless(Strategy):\n"
        "    card = MethodCard(title='-', authors='-', year=2026)\n"
        "    def client_round(self, client, received):\n"
        "        raise RuntimeError('no hope for anyone')\n"
        "    def server_round(self, server, replies):\n"
        "        return None\n"
    )
    done = fedkd_("run", "tiny.toml", "--set", "strategy=hopeless")
    assert done.returncode == 1
    assert "no hope for anyone" in done.stderr
    assert "continue with" not in done.stderr


def test_compare_prints_one_row_per_strategy(here, fedkd_):
    done = fedkd_("compare", "tiny.toml", "--strategies", "local,fedavg", "--seeds", "0,1", "--set", "rounds=1")
    assert done.returncode == 0, done.stderr
    assert "│ local" in done.stdout
    assert "│ fedavg" in done.stdout
    assert (here / "runs" / "tiny-compare" / "comparison.csv").exists()


def test_lists_are_also_json(here, fedkd_):
    strategies = json.loads(fedkd_("list", "strategies", "--json").stdout)
    assert {"local", "centralized", "fedavg", "fd", "fml", "fedproto", "fedmd", "feddf"} <= {
        s["name"] for s in strategies
    }


def test_the_version_is_the_packages(here, fedkd_):
    assert fedkd_("--version").stdout.strip() == f"fedkd {fedkd.__version__}"


@pytest.mark.parametrize("workers", ["0", pytest.param("1", marks=pytest.mark.ray)])
def test_interrupted_it_says_where_the_finished_rounds_are(here, workers):
    options = ["--set", "rounds=100000", "--set", "engine.evaluate_every=0", "--workers", workers]
    command = [sys.executable, "-m", "fedkd", "run", "tiny.toml", *options]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True, env=environment) as process:
        rounds, checkpoints = (here / "runs" / "tiny" / name for name in ("rounds.jsonl", "checkpoints"))
        deadline = time.monotonic() + 60
        while not list(checkpoints.glob("round-*")) and time.monotonic() < deadline:
            time.sleep(0.05)
        process.send_signal(signal.SIGTERM)
        _, err = process.communicate(timeout=30)
    assert process.returncode == 130
    assert "interrupted; the rounds that finished are in runs/tiny\ncontinue with: fedkd resume runs/tiny\n" in err
    assert "Traceback" not in err
    assert "SIGTERM" not in err  # Ray's own handler shows addresses in its machine code
    assert rounds.stat().st_size > 0


def test_interrupted_before_anything_is_there_it_points_to_nothing(here, fedkd_, monkeypatch):
    def interrupted(*arguments, **options):
        raise KeyboardInterrupt

    monkeypatch.setattr("fedkd.engine.simulate.simulate", interrupted)
    done = fedkd_("run", "tiny.toml", "--out", "new")
    assert (done.returncode, done.stderr) == (130, "interrupted\n")


def test_whatever_a_strategy_prints_the_json_stands_alone(here, fedkd_):
    (here / "strategies").mkdir()
    (here / "strategies" / "talkative.py").write_text(
        "import subprocess\n"
        "from fedkd.strategy import MethodCard, Strategy\n"
        "print('a word of the module')\n"
        "class Talkative(Strategy):\n"
        "    card = MethodCard(title='-', authors='-', year=2026)\n"
        "    def client_round(self, client, received):\n"
        "        print('a word of', client.card.key)\n"
        "        subprocess.run(['echo', 'a word of another program'])\n"
        "    def server_round(self, server, replies):\n"
        "        print('{')\n"
    )
    options = ["--set", "rounds=1", "--json"]
    for command in (["run", "tiny.toml", "--set", "strategy=talkative"], ["compare", "tiny.toml"]):
        compared = ["--strategies", "talkative", "--seeds", "0"] if command[0] == "compare" else []
        done = fedkd_(*command, *compared, *options)
        assert done.returncode == 0, done.stderr
        json.loads(done.stdout)
        once = ["the module"] if command[0] == "run" else []  # it is imported by the first command
        assert all(f"a word of {word}" in done.stderr for word in ("client-0", "another program", *once))


ALOUD = """
import atexit, ctypes, sys
from fedkd.strategy import MethodCard, Strategy
class Aloud(Strategy):
    card = MethodCard(title='-', authors='-', year=2026)
    def client_round(self, client, received):
        print("past the redirection", file=sys.__stdout__)
        ctypes.CDLL(None).printf(b"from C\\n")
    def server_round(self, server, replies):
        atexit.register(print, "at the end")
"""


def test_nor_does_what_is_held_back_until_the_end_reach_the_json(here):
    (here / "strategies").mkdir()
    (here / "strategies" / "aloud.py").write_text(ALOUD)
    asked = [
        sys.executable,
        "-m",
        "fedkd",
        "run",
        "tiny.toml",
        "--set",
        "strategy=aloud",
        "--set",
        "rounds=1",
        "--json",
    ]
    buffered = {name: value for name, value in os.environ.items() if name != "PYTHONUNBUFFERED"}
    done = subprocess.run(asked, env=buffered, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["strategy"] == "aloud"
    assert all(word in done.stderr for word in ("past the redirection", "from C", "at the end"))


@pytest.mark.parametrize(
    ("code", "expected"),
    [
        ("import sys\nsys.exit(0)", "could not be imported: SystemExit: 0"),
        ("{class}    def client_models(self, client):\n        raise SystemExit(0)", "failed when it was asked"),
        ("{class}    def check_clients(self, clients):\n        1 / 0", "ZeroDivisionError"),
    ],
)
def test_a_strategy_that_exits_or_fails_before_the_start_is_no_success(here, fedkd_, code, expected):
    head = (
        "from fedkd.strategy import MethodCard, Strategy\n"
        "class Exiting(Strategy):\n"
        "    card = MethodCard(title='-', authors='-', year=2026)\n"
        "    def client_round(self, client, received): pass\n"
        "    def server_round(self, server, replies): pass\n"
    )
    name = f"exiting_{len(code)}"
    (here / "strategies").mkdir()
    (here / "strategies" / f"{name}.py").write_text(code.replace("{class}", head))
    done = fedkd_("run", "tiny.toml", "--set", f"strategy={name}")
    assert done.returncode in {1, 2}
    assert expected in done.stderr
    assert not (here / "runs").exists()


# --- resume


@pytest.fixture
def cut_off(here):
    """Leave the folder of a run that was cut off after its first round."""
    folder = here / "it's a run"

    def stop(record):
        raise LookupError

    with pytest.raises(LookupError):
        simulate(config.load(here / "tiny.toml"), out=folder, on_round=stop)
    return folder


def test_run_also_trains_the_clients_alone_if_asked(here, fedkd_):
    done = fedkd_("run", "tiny.toml", "--json", "--set", "alone=true", "--set", 'federation.views=["image","image@4"]')
    assert done.returncode == 0, done.stderr
    rows = json.loads(done.stdout)["gains"]
    folder = here / "runs" / "tiny"
    assert rows == json.loads((folder / "gains.json").read_text())
    assert [(row["view"], row["clients"]) for row in rows] == [("image", 5), ("image@4", 5)]
    assert json.loads((folder / "alone" / "summary.json").read_text())["strategy"] == "local"
    assert all(f'<th scope="row">{row["view"]}</th>' in (folder / "report.html").read_text() for row in rows)
    shown = fedkd_("run", "tiny.toml", "--set", "alone=true", "--set", "rounds=1").stdout
    assert "alone" in shown
    assert "gain" in shown


@pytest.mark.parametrize("left", ["nothing", "a folder", "a checkpoint", "all but the gains", "all but the report"])
def test_resume_also_trains_the_clients_alone_from_wherever_that_was(here, fedkd_, left):
    asked = ["--set", "alone=true", "--set", 'federation.views=["image","image@4"]']
    whole = json.loads(fedkd_("run", "tiny.toml", "--json", *asked).stdout)
    folder = here / "runs" / "tiny"
    (folder / "report.html").unlink()
    if left != "all but the report":
        (folder / "gains.json").unlink()
    if left == "a checkpoint":
        (folder / "alone" / "summary.json").unlink()
    if left in {"nothing", "a folder"}:
        shutil.rmtree(folder / "alone")
    if left == "a folder":
        (folder / "alone").mkdir()
        (folder / "alone" / "experiment.toml").touch()

    given = ["--set", "engine.timeout=9"]
    refused = fedkd_("resume", str(folder), *(given if left == "all but the report" else ["--set", "seed=9"]))
    done = fedkd_("resume", str(folder), "--json", *([] if left == "all but the report" else given))

    assert refused.returncode == 2
    assert ("no setting is used" in refused.stderr) == (left == "all but the report")
    assert ("seed: expected what the run began with, 0, found 9" in refused.stderr) == (left != "all but the report")
    assert done.returncode == 0, done.stderr
    used = "timeout = 9.0" in (folder / "alone" / "experiment.toml").read_text()
    assert used == (left in {"nothing", "a folder"}), "what is gone on with keeps its file"
    assert json.loads(done.stdout)["gains"] == whole["gains"] == json.loads((folder / "gains.json").read_text())
    assert "image@4" in (folder / "report.html").read_text()
    assert "found a complete one" in fedkd_("resume", str(folder)).stderr


def test_clients_alone_are_gone_on_with_by_other_workers_from_their_checkpoint(here, fedkd_, monkeypatch):
    asked = ["--set", "alone=true"]
    whole = json.loads(fedkd_("run", "tiny.toml", "--json", *asked).stdout)
    folder = here / "runs" / "tiny"
    for name in ("report.html", "gains.json", "alone/summary.json"):
        (folder / name).unlink()
    shutil.rmtree(folder / "alone" / "checkpoints" / "round-00002")
    went_on = []
    monkeypatch.setattr("fedkd.gains.go_on", lambda run, on_round: went_on.append(run) or go_on(run, on_round))

    done = fedkd_("resume", str(folder), "--json", "--set", "engine.timeout=9")

    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["gains"] == whole["gains"]
    assert [(run.experiment.engine.timeout, len(run.records)) for run in went_on] == [(9.0, 1)]


def test_a_strategy_without_clients_to_be_measured_has_no_gains(here, fedkd_, caplog):
    done = fedkd_("run", "tiny.toml", "--json", "--set", "alone=true", "--set", "strategy=centralized")
    assert done.returncode == 0, done.stderr
    assert "gains" not in json.loads(done.stdout)
    assert "alone: strategy 'centralized' has no clients that are measured" in caplog.text
    assert (here / "runs" / "tiny" / "report.html").exists()


@pytest.mark.parametrize(
    ("name", "content", "expected"),
    [
        ("rounds.jsonl", "", "rounds.jsonl: expected the records of 2 rounds, found 0: restore the file"),
        ("rounds.jsonl", "{half\n", "rounds.jsonl: expected records as JSON, but: line 1 is none"),
        ("gains.json", "[{", "gains.json: expected records as JSON, but: "),
        ("summary.json", "{}", "summary.json: expected the summary of a run, but: it lacks digest, metrics, strategy"),
        ("summary.json", "[]", "summary.json: expected the summary of a run, but: "),
        ("manifest.json", None, "manifest.json: data: expected what the run began with"),
    ],
)
def test_clients_alone_need_the_finished_run_as_it_was(here, fedkd_, name, content, expected):
    fedkd_("run", "tiny.toml", "--set", "alone=true")
    folder = here / "runs" / "tiny"
    for gone in ("report.html", "gains.json", "alone/summary.json"):
        (folder / gone).unlink()
    if content is None:
        values = json.loads((folder / name).read_text())
        content = json.dumps({**values, "data": "other"})
    (folder / name).write_text(content)
    done = fedkd_("resume", str(folder))
    assert done.returncode == 2
    assert expected in done.stderr
    assert len(done.stderr.splitlines()) == 1


def test_whoever_is_at_the_clients_alone_is_waited_for(here, fedkd_):
    fedkd_("run", "tiny.toml", "--set", "alone=true")
    folder = here / "runs" / "tiny"
    for name in ("report.html", "gains.json", "alone/summary.json"):
        (folder / name).unlink()
    shutil.rmtree(folder / "alone" / "checkpoints")
    with locked(folder / "alone"):
        done = fedkd_("resume", str(folder))
    assert done.returncode == 2
    assert "alone: expected a run that nobody else works on" in done.stderr
    assert (folder / "alone" / "rounds.jsonl").exists()


def test_a_damaged_summary_is_named(here, fedkd_):
    fedkd_("run", "tiny.toml")
    folder = here / "runs" / "tiny"
    (folder / "report.html").unlink()
    (folder / "summary.json").write_text('{"half')
    done = fedkd_("resume", str(folder))
    assert done.returncode == 2
    assert "summary.json: expected the summary of a run, but: " in done.stderr
    (folder / "summary.json").unlink()
    assert fedkd_("resume", str(folder)).returncode == 0


@pytest.mark.parametrize("out", ["a" * 300, "a" * 300 + "/b"])
def test_a_folder_that_cannot_be_is_a_mistake(here, fedkd_, out):
    for command in (["run", "tiny.toml", "--out", out], ["resume", out]):
        done = fedkd_(*command)
        assert done.returncode == 2
        assert len(done.stderr.splitlines()) == 1, done.stderr


def test_resume_ends_like_a_run_that_was_not_cut_off(here, fedkd_, cut_off):
    whole = json.loads(fedkd_("run", "tiny.toml", "--json").stdout)

    done = fedkd_("resume", cut_off.name, "--json", "--workers", "0")

    assert done.returncode == 0, done.stderr
    assert {**json.loads(done.stdout), "seconds": 0} == {**whole, "seconds": 0}
    assert len(done.stderr.splitlines()) == 1  # one line per further round
    assert (cut_off / "report.html").stat().st_size > 0


def test_what_does_not_decide_the_bits_may_be_set_anew(fedkd_, cut_off):
    refused = fedkd_("resume", str(cut_off), "--set", "train.lr=0.5")
    assert refused.returncode == 2
    assert "train.lr: expected what the run began with, 0.001, found 0.5; set it so" in refused.stderr
    assert fedkd_("resume", str(cut_off), "--set", "engine.timeout=60").returncode == 0


def test_a_report_that_is_missing_is_made(here, fedkd_, monkeypatch):
    full = OSError(28, "No space left on device")

    def fails(path, content):
        raise full

    with monkeypatch.context() as patched:
        patched.setattr("fedkd.report.write_atomically", fails)
        done = fedkd_("run", "tiny.toml")
    assert done.returncode == 1
    report = here / "runs" / "tiny" / "report.html"
    assert len(done.stderr.splitlines()) == 3  # one line per round, and what is wrong
    assert "No space left on device; make room, and then the report with: fedkd resume runs/tiny" in done.stderr
    assert not report.exists()

    again = fedkd_("resume", "runs/tiny")
    assert again.returncode == 0, again.stderr
    assert "report  runs/tiny/report.html" in again.stdout
    assert report.stat().st_size > 0
    assert fedkd_("resume", "runs/tiny").returncode == 2


def test_results_that_cannot_be_written_are_said_in_one_line(here, fedkd_, monkeypatch):
    def fails(path, content):
        if path.suffix == ".safetensors":
            raise OSError(28, "No space left on device")
        return write_atomically(path, content)

    monkeypatch.setattr("fedkd.app.run_folder.write_atomically", fails)
    done = fedkd_("run", "tiny.toml")
    assert done.returncode == 1
    assert "expected what can be written, but: [Errno 28] No space left on device; make room." in done.stderr
    assert "Traceback" not in done.stderr
    assert done.stderr.splitlines()[-1] == "continue with: fedkd resume runs/tiny"


def test_resume_prints_a_table_for_people(fedkd_, cut_off):
    done = fedkd_("resume", str(cut_off))

    assert "fedavg, 2 rounds" in done.stdout
    assert f"report  {cut_off / 'report.html'}" in done.stdout


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (["missing"], "expected the folder of a run, found no experiment.toml"),
        (["it's a run", "--workers", "-1"], "engine.workers"),
        ([], "RUN"),
    ],
)
def test_what_cannot_be_resumed_is_one_line_and_exit_code_2(fedkd_, cut_off, arguments, expected):
    done = fedkd_("resume", *arguments)

    assert done.returncode == 2
    assert expected in done.stderr
    assert len(done.stderr.splitlines()) == 1


def test_a_run_that_fails_says_how_to_go_on_once_there_is_a_checkpoint(here, fedkd_):
    (here / "strategies").mkdir()
    (here / "strategies" / "fading.py").write_text(
        "from fedkd.strategy import MethodCard, Strategy\n"
        "class Fading(Strategy):\n"
        "    card = MethodCard(title='-', authors='-', year=2026)\n"
        "    def client_round(self, client, received):\n"
        "        if client.round == 2:\n"
        "            raise RuntimeError('no hope for anyone')\n"
        "    def server_round(self, server, replies):\n"
        "        return None\n"
    )
    for command in (["run", "tiny.toml", "--set", "strategy=fading", "--out", "a run"], ["resume", "a run"]):
        done = fedkd_(*command)
        assert done.returncode == 1
        assert "no hope for anyone" in done.stderr
        assert done.stderr.splitlines()[-1] == "continue with: fedkd resume 'a run'"


def test_a_simulation_is_split_into_the_files_of_a_deployment(here, fedkd_):
    done = fedkd_("deploy", "split", "tiny.toml", "--out", "files", "--set", "federation.clients=2")
    assert done.returncode == 0
    assert (here / "files" / "client-1.npz").is_file()
    assert "files/client-0.toml" in done.stdout
    assert config.load(here / "files" / "experiment.toml").federation.partition == "own"
    again = fedkd_("deploy", "split", "tiny.toml", "--out", "files")
    assert again.returncode == 2
    assert "files: expected a new or empty folder" in again.stderr


# --- printing


@pytest.mark.parametrize("command", [["run", "tiny.toml"], ["compare", "tiny.toml", "--strategies=local", "--json"]])
def test_results_that_cannot_be_printed_are_said_to_be_there(here, command):
    asked = [sys.executable, "-m", "fedkd", *command, "--set", "rounds=1", "--out", "results"]
    with Path("/dev/full").open("w") as full:
        done = subprocess.run(asked, stdout=full, stderr=subprocess.PIPE, text=True, check=False)
    assert done.returncode == 1
    last = "the run failed: the results cannot be printed (No space left on device); they are in results"
    assert done.stderr.splitlines()[-1] == last


@pytest.mark.parametrize("command", [["list", "models"], ["list", "strategies", "--json"], ["--version"]])
def test_output_that_cannot_be_printed_is_one_line(here, command):
    with Path("/dev/full").open("w") as full:
        asked = [sys.executable, "-m", "fedkd", *command]
        done = subprocess.run(asked, stdout=full, stderr=subprocess.PIPE, text=True, check=False)
    assert done.returncode == 1
    assert done.stderr == "the output cannot be printed (No space left on device)\n"


def test_without_a_command_the_help_is_enough(here, fedkd_):
    done = fedkd_()
    assert done.returncode == 2
    assert "error:" not in done.stderr
    assert "compare" in done.stdout + done.stderr


def test_a_command_of_another_name_is_asked_about_once(here, fedkd_):
    done = fedkd_("liist")
    assert done.returncode == 2
    assert done.stderr == "error: No such command 'liist'. Did you mean 'list'?; see fedkd --help.\n"
