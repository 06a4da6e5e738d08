"""A real federation goes on after its server was killed, at any point, and ends as the simulation does, bit for bit."""

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from fedkd import resume, simulate
from fedkd.app import flower
from fedkd.app.checkpoint import Checkpoints, read_newest
from fedkd.app.going_on import opened
from fedkd.app.run_folder import RunFolder, locked, read_lines
from fedkd.config import parse
from fedkd.errors import UserError
from fedkd.strategy.registry import complete
from tests.app.nodes import SMALL, Deployment, Killed

ROUNDS = 3


@pytest.fixture(autouse=True)
def _fresh_processes() -> Iterator[None]:
    yield
    flower._client_side.cache_clear()


@pytest.fixture
def deployment(tmp_path: Path) -> Deployment:
    return Deployment(tmp_path)


@pytest.fixture(scope="module")
def whole() -> list[dict[str, Any]]:
    """Return the records of the simulation, which nobody has killed."""
    return [{**row, "seconds": 0} for row in simulate(parse(SMALL, {}, "test")).rounds]


EXCHANGES = [("query.hello", 0), *((phase, n) for n in range(1, ROUNDS + 1) for phase in ("train", "evaluate"))]


@pytest.mark.parametrize("when", ["before", "among the replies", "after"])
@pytest.mark.parametrize("exchange", EXCHANGES, ids=lambda exchange: f"{exchange[0]}-{exchange[1]}")
def test_a_server_that_dies_in_an_exchange(
    exchange: tuple[str, int], when: str, deployment: Deployment, whole: list[dict[str, Any]]
) -> None:
    nodes = deployment.nodes()
    nodes.death = (*exchange, when)
    with pytest.raises(Killed):
        deployment.serve(nodes)
    done = deployment.rows()

    again = deployment.nodes()
    deployment.serve(again)

    assert done == whole[: max(0, exchange[1] - 1)], "it died where it should"
    assert deployment.rows() == whole
    redone = [round_ for phase, round_ in again.log if phase == "train"]
    assert redone == list(range(max(1, exchange[1]), ROUNDS + 1)), "no round that was finished is done again"
    assert (deployment.out / "summary.json").exists()


def at(monkeypatch: pytest.MonkeyPatch, owner: type, name: str, round_: int, *, before: bool) -> None:
    """Let the process die before or after a method is called for a round; only once."""
    original: Callable[..., Any] = getattr(owner, name)

    def dies(self: object, record: Any, *more: object) -> None:
        number = getattr(record, "record", record).round
        if number == round_ and before:
            raise Killed
        original(self, record, *more)
        if number == round_:
            raise Killed

    monkeypatch.setattr(owner, name, dies)


@pytest.mark.parametrize("round_", range(1, ROUNDS + 1))
@pytest.mark.parametrize(
    ("owner", "name", "before", "lost"),
    [
        (RunFolder, "add_round", True, 1),
        (RunFolder, "add_round", False, 1),
        (Checkpoints, "save", True, 1),
        (Checkpoints, "save", False, 0),
    ],
    ids=["before the record", "after the record", "before the checkpoint", "after the checkpoint"],
)
def test_a_server_that_dies_while_it_writes(
    owner: type,
    name: str,
    before: bool,
    lost: int,
    round_: int,
    deployment: Deployment,
    whole: list[dict[str, Any]],
) -> None:
    with pytest.MonkeyPatch.context() as patched:
        at(patched, owner, name, round_, before=before)
        with pytest.raises(Killed):
            deployment.serve(deployment.nodes())

    again = deployment.nodes()
    deployment.serve(again)

    assert deployment.rows() == whole
    assert [n for phase, n in again.log if phase == "train"] == list(range(round_ + 1 - lost, ROUNDS + 1))


def test_a_run_whose_rounds_are_done_needs_no_nodes_to_be_finished(
    deployment: Deployment, whole: list[dict[str, Any]]
) -> None:
    with pytest.MonkeyPatch.context() as patched:
        at(patched, Checkpoints, "save", ROUNDS, before=False)
        with pytest.raises(Killed):
            deployment.serve(deployment.nodes())
    alone = deployment.nodes()
    alone.contexts.clear()

    deployment.serve(alone)

    assert alone.log == []
    assert deployment.rows() == whole
    assert json.loads((deployment.out / "summary.json").read_text(encoding="utf-8"))["digest"] == whole[-1]["digest"]
    assert len(read_lines(deployment.out / "clients.jsonl")) == 3


def test_a_server_that_is_killed_over_and_over(deployment: Deployment, whole: list[dict[str, Any]]) -> None:
    for exchange in EXCHANGES:
        nodes = deployment.nodes()
        nodes.death = (*exchange, "after")
        with pytest.raises(Killed):
            deployment.serve(nodes)
    deployment.serve(deployment.nodes())

    assert deployment.rows() == whole
    assert len(list(deployment.store.iterdir())) == 1, "one run has one name"


def test_a_damaged_checkpoint_costs_a_round_and_not_a_bit(
    deployment: Deployment, whole: list[dict[str, Any]], caplog: pytest.LogCaptureFixture
) -> None:
    nodes = deployment.nodes()
    nodes.death = ("train", 3, "after")
    with pytest.raises(Killed):
        deployment.serve(nodes)
    file = deployment.out / "checkpoints" / "round-00002" / "run.json"
    file.write_bytes(file.read_bytes()[:-1])

    deployment.serve(deployment.nodes())

    assert deployment.rows() == whole
    assert any("checkpoint round-00002" in message and "is damaged" in message for message in caplog.messages)


def test_a_checkpoint_that_is_damaged_after_going_on_costs_a_round_and_not_a_bit(
    deployment: Deployment, whole: list[dict[str, Any]]
) -> None:
    """The second server has made no checkpoint: both that are there are of the first."""
    for when in ("before", "after"):
        nodes = deployment.nodes()
        nodes.death = ("train", 3, when)
        with pytest.raises(Killed):
            deployment.serve(nodes)
    file = deployment.out / "checkpoints" / "round-00002" / "run.json"
    file.write_bytes(file.read_bytes()[:-1])

    again = deployment.nodes()
    deployment.serve(again)

    assert deployment.rows() == whole
    assert [n for phase, n in again.log if phase == "train"] == [2, 3]


def test_rare_checkpoints_cost_their_rounds_and_not_a_bit(tmp_path: Path) -> None:
    changes = {"rounds": 5, "engine.checkpoint_every": 2, "engine.evaluate_every": 0, "federation.participation": 0.67}
    deployment = Deployment(tmp_path, changes)
    nodes = deployment.nodes()
    nodes.death = ("train", 4, "after")
    with pytest.raises(Killed):
        deployment.serve(nodes)
    assert [path.name for path in (deployment.out / "checkpoints").iterdir()] == ["round-00002"]

    again = deployment.nodes()
    deployment.serve(again)

    assert deployment.rows() == deployment.expected()
    assert [n for phase, n in again.log if phase == "train"] == [3, 4, 5]


def test_a_deployment_has_checkpoints_whatever_engine_the_file_names(
    tmp_path: Path, whole: list[dict[str, Any]]
) -> None:
    deployment = Deployment(tmp_path, {"engine.name": "flower"})
    nodes = deployment.nodes()
    nodes.death = ("train", 3, "before")
    with pytest.raises(Killed):
        deployment.serve(nodes)
    again = deployment.nodes()
    deployment.serve(again)

    assert [n for phase, n in again.log if phase == "train"] == [3]
    assert deployment.rows() == whole


def test_nodes_keep_what_a_server_may_ask_for_and_no_more(tmp_path: Path) -> None:
    deployment = Deployment(tmp_path, {"rounds": 6, "engine.evaluate_every": 0})
    deployment.serve(deployment.nodes())

    # In round 6 the checkpoints of rounds 4 and 5 are there; it starts from 5, and has made 6.
    names = sorted(path.name for path in next(deployment.store.iterdir()).glob("client-0.*"))
    assert names == ["client-0.4.safetensors", "client-0.5.safetensors", "client-0.6.safetensors"]


def test_without_checkpoints_nodes_keep_only_what_they_need(tmp_path: Path) -> None:
    deployment = Deployment(tmp_path, {"engine.checkpoint_every": 0, "engine.evaluate_every": 0})
    deployment.serve(deployment.nodes())

    names = sorted(path.name for path in next(deployment.store.iterdir()).glob("client-0.*"))
    assert names == ["client-0.3.safetensors"], "which the last evaluation has asked for"
    assert not (deployment.out / "checkpoints").exists()


def test_a_checkpoint_says_that_the_states_are_elsewhere(deployment: Deployment) -> None:
    deployment.serve(deployment.nodes())

    found = read_newest(deployment.out / "checkpoints")

    assert found.states is None
    assert found.snapshot.versions == dict.fromkeys(["client-0", "client-1", "client-2"], 3)
    assert sorted(found.snapshot.roster) == ["client-0", "client-1", "client-2"]
    assert not list((deployment.out / "checkpoints").rglob("client-*"))


def test_a_complete_run_is_reported_and_left_alone(deployment: Deployment, capsys: pytest.CaptureFixture[str]) -> None:
    deployment.serve(deployment.nodes())
    before = {path: path.read_bytes() for path in deployment.out.rglob("*") if path.is_file()}

    again = deployment.nodes()
    deployment.serve(again)

    assert again.log == []
    assert {path: path.read_bytes() for path in deployment.out.rglob("*") if path.is_file()} == before
    assert f"complete, nothing is left to do: {deployment.out}" in capsys.readouterr().err


@pytest.mark.parametrize("complete", [False, True])
def test_another_experiment_does_not_go_on_there(deployment: Deployment, complete: bool) -> None:
    nodes = deployment.nodes()
    nodes.death = None if complete else ("train", 2, "before")
    if complete:
        deployment.serve(nodes)
    else:
        with pytest.raises(Killed):
            deployment.serve(nodes)
    before = {path: path.read_bytes() for path in deployment.out.rglob("*") if path.is_file()}

    with pytest.raises(
        UserError,
        match=r"experiment\.toml: train\.lr: expected what the run began with, 0\.\d+, found 0\.5; set it so, or name",
    ):
        deployment.serve(nodes, experiment=deployment.experiment.changed(**{"train.lr": 0.5}))

    assert {path: path.read_bytes() for path in deployment.out.rglob("*") if path.is_file()} == before


@pytest.mark.parametrize("key", ["code", "data", "public_set", "versions.torch", "versions.numpy", "cpu_capability"])
def test_what_decides_the_bits_must_be_as_it_was(key: str, deployment: Deployment) -> None:
    nodes = deployment.nodes()
    nodes.death = ("train", 2, "before")
    with pytest.raises(Killed):
        deployment.serve(nodes)
    file = deployment.out / "manifest.json"
    values = json.loads(file.read_text(encoding="utf-8"))
    first, _, second = key.partition(".")
    values[first] = {**values[first], second: "other"} if second else "other"
    file.write_text(json.dumps(values), encoding="utf-8")

    with pytest.raises(UserError, match=rf"manifest\.json: {key}[ a-z()]*: expected what the run began with, 'other'"):
        deployment.serve(deployment.nodes())


def test_time_limits_and_fewest_clients_may_change(deployment: Deployment, whole: list[dict[str, Any]]) -> None:
    nodes = deployment.nodes()
    nodes.death = ("train", 2, "after")
    with pytest.raises(Killed):
        deployment.serve(nodes)
    changed = deployment.experiment.changed(**{"engine.timeout": 7.0, "federation.min_clients": 2})

    deployment.serve(deployment.nodes(changed), experiment=changed)

    assert deployment.rows() == whole


@pytest.mark.parametrize("left", [[], ["experiment.toml"], [".experiment.toml.7.tmp"], ["flower.log"]])
def test_a_folder_that_was_hardly_begun_is_a_new_one(left: list[str], tmp_path: Path) -> None:
    experiment = parse(SMALL, {}, "test")
    path = tmp_path / "run"
    path.mkdir()
    for name in left:
        (path / name).write_text(complete(experiment).to_toml(), encoding="utf-8")

    with opened(path, experiment) as found:
        assert (found.start, found.complete) == (None, False)
        assert (path / "manifest.json").exists()


@pytest.mark.parametrize("left", ["notes.txt", "rounds.jsonl", "experiment.toml", "models/x.tmp"])
def test_what_is_not_ours_is_not_touched(left: str, tmp_path: Path) -> None:
    (tmp_path / left).parent.mkdir(exist_ok=True)
    (tmp_path / left).write_text("mine", encoding="utf-8")

    with pytest.raises(UserError, match="expected a new or empty folder"), opened(tmp_path, parse(SMALL, {}, "test")):
        pass

    assert (tmp_path / left).read_text(encoding="utf-8") == "mine"


def test_two_servers_never_work_on_one_run(deployment: Deployment) -> None:
    deployment.out.mkdir()
    with locked(deployment.out), pytest.raises(UserError, match="expected a run that nobody else works on"):
        deployment.serve(deployment.nodes())
    assert list(deployment.out.iterdir()) == []


def test_two_runs_share_a_store(deployment: Deployment, whole: list[dict[str, Any]]) -> None:
    """Round by round in turn: the one is killed when the other begins, and goes on when the other was killed."""
    outs = [deployment.out, deployment.out.with_name("other")]
    for exchange in EXCHANGES:
        for out in outs:
            nodes = deployment.nodes()
            nodes.death = (*exchange, "after")
            with pytest.raises(Killed):
                deployment.serve(nodes, out)
    for out in outs:
        deployment.serve(deployment.nodes(), out)
        assert [{**row, "seconds": 0} for row in read_lines(out / "rounds.jsonl")] == whole
    assert len(list(deployment.store.iterdir())) == 2


def test_our_own_resume_says_what_to_do_instead(deployment: Deployment) -> None:
    nodes = deployment.nodes()
    nodes.death = ("train", 2, "after")
    with pytest.raises(Killed):
        deployment.serve(nodes)

    with pytest.raises(
        UserError, match=r"found one of a deployment, whose clients keep their states; go on with: fedkd deploy run"
    ):
        resume(deployment.out)


def test_a_simulation_that_was_cut_off_is_no_deployment(tmp_path: Path) -> None:
    experiment = parse(SMALL, {}, "test")

    def cut(record: object) -> None:
        raise Killed

    with pytest.raises(Killed):
        simulate(experiment, out=tmp_path / "run", on_round=cut)

    problem = r"checkpoints hold them; go on by: fedkd resume"
    with pytest.raises(UserError, match=problem), opened(tmp_path / "run", experiment):
        pass
