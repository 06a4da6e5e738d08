"""Who is in a deployment."""

import pytest

from fedkd.deploy.plan import PLAN, make_plan, plan_text, read_plan
from fedkd.errors import UserError


def test_a_plan_is_written_and_read_again(tmp_path):
    plan = make_plan("fed.example.org", ["hospital-b", "hospital-a"], also=["10.0.0.7", "[fe80::1]"])
    (tmp_path / PLAN).write_text(plan_text(plan))

    assert read_plan(tmp_path) == plan
    assert plan.names == ("fed.example.org", "10.0.0.7", "fe80::1")
    assert plan.nodes == ("hospital-b", "hospital-a")


@pytest.mark.parametrize("name", ["Hospital", "a_b", "a.b", "../a", "a/b", "-a", "a-", "a b", "", "x" * 64])
def test_a_name_that_is_no_key_is_refused(name):
    with pytest.raises(UserError, match="--nodes: expected names of at most 63 small letters"):
        make_plan("a", [name])


@pytest.mark.parametrize(
    ("nodes", "message"),
    [
        ([], "expected at least one name"),
        (["a", "b", "a"], "every name once, found 'a' twice"),
        (["superlink"], "name of another folder"),
        (["operator"], "name of another folder"),
        (["ca"], "name of another folder"),
    ],
)
def test_nodes_that_cannot_be_are_refused(nodes, message):
    with pytest.raises(UserError, match=message):
        make_plan("a", nodes)


def test_a_further_name_must_be_one():
    with pytest.raises(UserError, match="--also: expected HOST"):
        make_plan("a", ["n"], also=["http://b"])


@pytest.mark.parametrize("address", ["0.0.0.0", "0.0.0.0:8443", "[::]:8443", "::"])  # noqa: S104 - to be refused
def test_an_address_that_nobody_can_call_is_refused(address):
    with pytest.raises(UserError, match="--superlink: expected the address by which nodes reach"):
        make_plan(address, ["n"])
    with pytest.raises(UserError, match="--also: expected the address by which nodes reach"):
        make_plan("a", ["n"], also=[address])


@pytest.mark.parametrize(
    "text", ["", "superlink = 1\nalso = []\nnodes = ['a']", "superlink = 'a'\nnodes = ['b']", "[", "nodes = 3", b"\xff"]
)
def test_a_damaged_plan_is_named(tmp_path, text):
    (tmp_path / PLAN).write_bytes(text if isinstance(text, bytes) else text.encode())

    with pytest.raises(UserError, match=r"deployment\.toml: expected superlink, also and nodes"):
        read_plan(tmp_path)


def test_another_folder_is_refused(tmp_path):
    with pytest.raises(UserError, match=r"expected a folder that `fedkd deploy init` made, found no deployment\.toml"):
        read_plan(tmp_path)
