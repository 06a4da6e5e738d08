"""Each check of what stands in a machine's folder, on facts made up for it."""

import pytest

from fedkd.deploy import machine_checks as checks
from fedkd.deploy.machine_checks import NodeFacts

WELL = NodeFacts(
    client="hospital-a", data=("own.npz", "9 samples", None), commons=("commons.npz", "7 samples", None),
)  # fmt: skip


def verdicts(**changes):
    return {found.name: found.verdict for found in checks.node(NodeFacts(**{**vars(WELL), **changes}))}


@pytest.mark.parametrize(
    ("name", "advice"),
    [
        ("ca.crt", "bring the ca.crt of this deployment"),
        ("node.key", "bring the one that `fedkd deploy init` made"),
        ("server.crt", "`fedkd deploy renew` makes both"),
        ("server.key", "`fedkd deploy renew` makes both"),
    ],
)
def test_files(name, advice):
    assert checks.file(name, None).verdict == "ok"
    found = checks.file(name, "there is no such file")
    assert (found.name, found.verdict, found.found) == (name, "fail", "there is no such file")
    assert advice in found.advice
    denied = checks.file(name, checks.NOT_READABLE)
    assert (denied.verdict, denied.advice) == ("fail", "give it to the user who starts the program here")


def test_a_node_with_all_that_it_needs():
    assert verdicts() == dict.fromkeys(["node.toml", "store", "data", "commons", "data in commons"], "ok")


@pytest.mark.parametrize(
    ("changes", "name", "verdict"),
    [
        ({"store": ("state", False)}, "store", "fail"),
        ({"data": ("own.npz", None, "no file")}, "data", "fail"),
        ({"commons": ("", None, None)}, "commons", "warn"),
        ({"commons": ("commons.npz", None, "no file")}, "commons", "fail"),
        ({"misfit": "unknown class 'cat'"}, "data in commons", "fail"),
    ],
)
def test_what_is_wrong_is_one_finding(changes, name, verdict):
    found = verdicts(**changes)

    assert found.pop(name) == verdict
    assert set(found.values()) == {"ok"}
    assert ("data in commons" in {name, *found}) == ("data" not in changes and "commons" not in changes)


def test_without_a_readable_node_file_nothing_else_is_said():
    [found] = checks.node(NodeFacts(problem="expected the key 'data'"))

    assert (found.name, found.verdict, found.found) == ("node.toml", "fail", "expected the key 'data'")
