"""What a client with samples of its own says of itself: each field is checked, for the server cannot know better."""

import json
import logging
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import pytest
from flwr.app import Message

from fedkd import config
from fedkd.app.client import HELLO, ClientSide, ClientTask
from fedkd.app.introduction import (
    Said,
    agreed,
    common_settings,
    introduction,
    libraries,
    read_introduction,
)
from fedkd.app.roster import Participant, described, read_answers, roster_of
from fedkd.app.server import ServerSide
from fedkd.app.wire import pack
from fedkd.config import Experiment, parse
from fedkd.data.dividing import divide
from fedkd.data.federation import Federation, build
from fedkd.data.own import Owner, build_node
from fedkd.errors import RunError
from fedkd.flower_internals import ensure_task_identity
from fedkd.knowledge import KnowledgeError
from fedkd.learner.base import ClientCard
from fedkd.strategy.registry import complete, create
from strategies.fedmd import FedMD
from tests.app.nodes import read_configs

SMALL: Mapping[str, Any] = {
    "strategy": "fedmd",
    "data": {"public": 40, "validation": 1300, "test": 40},
    "federation": {"clients": 3, "architectures": ("mlp", "cnn"), "views": ("image", "image@4")},
}


@pytest.fixture(scope="module")
def nodes(tmp_path_factory: pytest.TempPathFactory) -> list[Federation]:
    folder = tmp_path_factory.mktemp("files")
    paths = divide(parse(SMALL, {}, "test"), folder / "files")
    experiment = config.load(folder / "files" / "experiment.toml")
    return [
        build_node(experiment, Owner(said["client"], said["data"], said["view"], said["architecture"]))
        for said in read_configs(paths.values()).values()
    ]


@pytest.fixture(scope="module")
def experiment(nodes: list[Federation]) -> Experiment:
    return nodes[0].experiment.changed(strategy="fedmd")


def said_by(node: Federation, **changes: object) -> dict[str, Any]:
    [key] = node.holdings
    strategy = create(Experiment(strategy="fedmd"))
    common = agreed(node.experiment.changed(strategy="fedmd"), node, strategy)
    return {**introduction(node, strategy, key), **common, **libraries(), **changes}


def read(header: dict[str, Any], experiment: Experiment) -> Said:
    federation, strategy = build(experiment), create(experiment)
    return read_introduction(header, agreed(experiment, federation, strategy), federation, strategy)


def roster_from(said: list[dict[str, Any]], experiment: Experiment) -> dict[str, Participant]:
    federation, strategy = build(experiment), create(experiment)
    common = agreed(experiment, federation, strategy)
    return roster_of(read_answers(hellos(said), common, federation, strategy), federation)


def test_an_honest_client_is_believed(nodes: list[Federation], experiment: Experiment) -> None:
    simulated = build(parse(SMALL, {}, "test"))
    for node in nodes:
        [(key, held)] = node.holdings.items()
        said = read(said_by(node), experiment)
        expected = simulated.holdings[key]
        labels = simulated.dataset.labels[expected.train].tolist()
        assert said.card == ClientCard(key, held.architecture, held.view, len(expected.train))
        assert said.label_counts == [labels.count(c) for c in range(10)]
        assert said.missing == expected.missing
        assert said.models == 1


WRONG: dict[str, tuple[dict[str, Any], str]] = {
    "no name": ({"client": None}, "client: expected a name of small letters, digits and '-', found None"),
    "a path": ({"client": "../../etc"}, "client: expected a name of small letters"),
    "a long name": ({"client": "a" * 10**6}, "client: expected a name of small letters"),
    "version": (
        {"version": "9"},
        "client-0: version: expected '0.1.0' as the server has it, found '9'; install the same fedkd on both",
    ),
    "code": (
        {"code": "0" * 64},
        "found '00000000...'; install the same checkout on both, the strategy's own file included",
    ),
    "experiment": ({"experiment": "0" * 64}, "client-0: experiment: expected"),
    "classes": ({"classes": ["0", "1"]}, "client-0: classes: expected ['0', '1', '2'"),
    "public set": (
        {"public-set": "0" * 64},
        "found '00000000...'; bring the server's commons to this node, and name the file as commons",
    ),
    "a setting less": ({"experiment": ['strategy = "fedmd"']}, "expected 'seed = 0' as the server has it, found None"),
    "no settings": ({"experiment": []}, "expected 'strategy = \"fedmd\"' as the server has it, found None"),
    "settings of another type": (
        {"experiment": [1, 2]},
        "as the server has it, found 1; give both the same experiment",
    ),
    "architecture": (
        {"architecture": "vector"},
        "client-0: architecture: expected one of federation.architectures (mlp",
    ),
    "architecture of another type": ({"architecture": ["mlp"]}, "client-0: architecture: expected one of"),
    "view": ({"view": "image@2"}, "client-0: view: expected one of federation.views (image, image@4), found 'image@2'"),
    "negative": ({"num-samples": -1}, "client-0: num-samples: expected a whole number from 0 on, found -1"),
    "huge": ({"num-samples": 10**13}, "client-0: num-samples: expected a whole number"),
    "truth": ({"num-samples": True}, "client-0: num-samples: expected a whole number"),
    "fraction": ({"num-samples": 10.0}, "client-0: num-samples: expected a whole number"),
    "a class less": ({"label-counts": [1] * 9}, "client-0: label-counts: expected 10 whole numbers from 0 on"),
    "negative class": ({"label-counts": [-1] * 10}, "client-0: label-counts: expected 10 whole numbers from 0 on"),
    "no list": ({"label-counts": 3}, "client-0: label-counts: expected 10 whole numbers from 0 on, found 3"),
    "sums differ": ({"label-counts": [0] * 10}, "samples in all, found 0"),
    "missing more": ({"missing": [10**6, 0]}, "client-0: missing: expected"),
    "missing of other views": ({"missing": [0, 0, 0]}, "client-0: missing: expected"),
    "models": ({"models": 7}, "client-0: models: expected 1"),
}


@pytest.mark.parametrize("name", WRONG)
def test_what_cannot_be_true_is_refused(name: str, nodes: list[Federation], experiment: Experiment) -> None:
    changes, problem = WRONG[name]
    with pytest.raises(KnowledgeError) as caught:
        read(said_by(nodes[0], **changes), experiment)
    assert problem in str(caught.value)
    assert len(str(caught.value).splitlines()) == 1
    assert len(str(caught.value)) < 400


def test_other_libraries_are_told_and_do_no_harm(
    nodes: list[Federation], experiment: Experiment, caplog: pytest.LogCaptureFixture
) -> None:
    read(said_by(nodes[0], torch="1.0"), experiment)
    [message] = caplog.messages
    assert message.startswith("client-0: torch '1.0', the server has ")


@pytest.mark.parametrize(
    ("changes", "same"),
    [
        ({"train.device": "meta", "name": "other", "engine.timeout": 5.0}, True),
        ({"train.lr": 0.5}, False),
        ({"seed": 1}, False),
        ({"strategies.fedmd.digest_epochs": 3}, False),
        ({"communication.up": ["float16"]}, False),
    ],
)
def test_both_sides_run_one_experiment(changes: dict[str, Any], same: bool, experiment: Experiment) -> None:
    assert (common_settings(experiment.changed(**changes)) == common_settings(experiment)) == same


def test_settings_that_are_left_out_are_those_that_a_run_folder_writes_out(experiment: Experiment) -> None:
    spelled = experiment.changed(**{"strategies.fedmd.digest_epochs": FedMD.Settings().digest_epochs})

    assert spelled != experiment
    assert common_settings(spelled) == common_settings(complete(experiment)) == common_settings(experiment)


def test_a_client_that_runs_with_other_settings_is_refused() -> None:
    """What both halves go by is compared as a whole, also what the federation's own part of it leaves out."""
    mine = parse(SMALL, {}, "test")
    other = ClientSide(mine.changed(**{"strategies.fedmd.digest_epochs": 7}))
    server = ServerSide(mine)
    [asked, *_] = server.hello_messages(range(1, 4))

    [answer] = other.handle([ClientTask(asked, "client-0", None)])

    with pytest.raises(RunError) as caught:
        server.welcome([answer.reply])

    default = f"strategies.fedmd.digest_epochs = {FedMD.Settings().digest_epochs}"
    found = f"expected '{default}' as the server has it, found 'strategies.fedmd.digest_epochs = 7'"
    assert f"client-0: experiment: {found}; give both the same experiment" in str(caught.value)


@pytest.mark.parametrize(
    ("key", "mine", "theirs"),
    [
        ("train.lr", 0.25, 0.5),
        ("seed", 0, 3),
        ("federation.min_clients", None, 2),
        ("communication.up", [], ["float16"]),
    ],
)
def test_the_setting_that_differs_is_named(
    key: str, mine: object, theirs: object, nodes: list[Federation], experiment: Experiment
) -> None:
    here, there = (experiment.changed(**{key: value}) for value in (mine, theirs))
    said = said_by(nodes[0], experiment=common_settings(there))
    with pytest.raises(KnowledgeError) as caught:
        read(said, here)
    expected = f"'{key} = {json.dumps(mine)}'"
    found = f"'{key} = {json.dumps(theirs)}'"
    assert f"experiment: expected {expected} as the server has it, found {found}; give" in str(caught.value)


@pytest.mark.parametrize("split", ["test", "validation"])
def test_a_client_that_would_be_measured_on_other_samples_is_refused(
    split: str, nodes: list[Federation], experiment: Experiment
) -> None:
    dataset = nodes[0].dataset
    [row, *_] = dataset.rows(getattr(nodes[0].splits, split)).tolist()
    labels, images = dataset.labels.clone(), dataset.views["image"].clone()
    labels[row] = (labels[row] + 1) % 10
    images[row] += 1.0

    read(said_by(replace(nodes[0], dataset=replace(dataset))), experiment)
    for other in (replace(dataset, labels=labels), replace(dataset, views={**dataset.views, "image": images})):
        with pytest.raises(KnowledgeError, match=r"client-0: held-out: expected '.*; bring the server's commons"):
            read(said_by(replace(nodes[0], dataset=other)), experiment)


# --- the roster


def hellos(introductions: list[dict[str, Any]]) -> list[Message]:
    ensure_task_identity()
    asked = [Message(pack({}), dst_node_id=node, message_type=HELLO) for node in range(7, 7 + len(introductions))]
    return [Message(pack(said), reply_to=message) for said, message in zip(introductions, asked, strict=True)]


def test_the_roster_is_what_the_clients_say(nodes: list[Federation], experiment: Experiment) -> None:
    roster = roster_from([said_by(node) for node in reversed(nodes)], experiment)

    assert list(roster) == ["client-0", "client-1", "client-2"]
    assert [participant.said.card.view for participant in roster.values()] == ["image", "image@4", "image"]
    sizes = [len(held.train) for held in build(parse(SMALL, {}, "test")).holdings.values()]
    assert described(roster) == [
        f"client-0  mlp, image, {sizes[0]} samples  (node 9)",
        f"client-1  cnn, image@4, {sizes[1]} samples  (node 8)",
        f"client-2  mlp, image, {sizes[2]} samples  (node 7)",
    ]


def test_two_nodes_under_one_name_take_no_part(
    nodes: list[Federation], experiment: Experiment, caplog: pytest.LogCaptureFixture
) -> None:
    said = [said_by(node) for node in nodes] + [said_by(nodes[2], client="client-0")]
    fewer = experiment.changed(**{"federation.min_clients": 2})
    said = [{**one, **agreed(fewer, build(fewer), create(fewer))} for one in said]
    with caplog.at_level(logging.WARNING, "fedkd"):
        roster = roster_from(said, fewer)
    assert list(roster) == ["client-1", "client-2"]
    assert "client-0: expected one client of this name, found 2 (nodes 7, 10); give each its own." in caplog.text


def test_more_clients_than_expected_take_part_and_it_is_said(
    nodes: list[Federation], experiment: Experiment, caplog: pytest.LogCaptureFixture
) -> None:
    two = experiment.changed(**{"federation.clients": 2})
    with caplog.at_level(logging.INFO):
        roster = roster_from([said_by(node, experiment=common_settings(two)) for node in nodes], two)
        assert len(roster) == 3
        roster_from([said_by(node) for node in nodes], experiment)
    assert caplog.messages == ["3 clients take part, where federation.clients expects 2"]


def test_a_run_does_not_start_with_fewer_clients_than_it_must_have(
    nodes: list[Federation], experiment: Experiment
) -> None:
    said = [said_by(node) for node in nodes]
    said[1]["code"] = "0" * 64
    with pytest.raises(
        RunError, match=r"only 2 of at least 3 clients can take part\.\nnode 8: client-1: code: expected"
    ) as caught:
        roster_from(said, experiment)
    assert len(str(caught.value).splitlines()) == 2
