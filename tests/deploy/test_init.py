"""The folders of a deployment: all or nothing, never over another one, and no key that others may read."""

import os
import shutil
import stat
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives.serialization import load_ssh_private_key, load_ssh_public_key

from fedkd.deploy import init as deployment
from fedkd.deploy.keys import utc_now
from fedkd.deploy.plan import read_plan
from fedkd.errors import UserError


def contents(folder):
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


@pytest.fixture
def open_umask():
    before = os.umask(0)
    yield
    os.umask(before)


@pytest.fixture
def made(tmp_path):
    folder = tmp_path / "fed"
    deployment.init(folder, "fed.example.org", ["hospital-a", "hospital-b"])
    return folder


def test_every_machine_gets_what_it_needs_and_no_more(made):
    assert set(contents(made)) == {
        "README.txt",
        "deployment.toml",
        *(f"ca/{name}" for name in ("ca.crt", "ca.key")),
        *(f"superlink/{n}" for n in ("README.txt", "ca.crt", "server.crt", "server.key", "start.sh")),
        "superlink/fedkd-superlink.service",
        *(f"operator/{n}" for n in ("README.txt", "ca.crt", "register.sh", "flwr.sh")),
        *(f"operator/nodes/{name}.pub" for name in ("hospital-a", "hospital-b")),
        *(
            f"{name}/{file}"
            for name in ("hospital-a", "hospital-b")
            for file in ("README.txt", "ca.crt", "node.key", "node.toml", "start.sh", f"fedkd-{name}.service")
        ),
    }
    assert len({files for name, files in contents(made).items() if name.endswith("ca.crt")}) == 1


def test_the_operator_registers_the_keys_that_the_nodes_have(made):
    for name in ("hospital-a", "hospital-b"):
        private = load_ssh_private_key((made / name / "node.key").read_bytes(), None)
        public = load_ssh_public_key((made / "operator" / "nodes" / f"{name}.pub").read_bytes())
        assert private.public_key() == public


def test_no_key_is_readable_by_others_whatever_the_umask(open_umask, tmp_path):
    folder = tmp_path / "fed"
    deployment.init(folder, "fed.example.org", ["hospital-a"])
    deployment.add_node(folder, "hospital-b")
    deployment.renew(folder)

    keys = sorted(folder.rglob("*.key"))
    assert [str(key.relative_to(folder)) for key in keys] == [
        "ca/ca.key",
        "hospital-a/node.key",
        "hospital-b/node.key",
        "superlink/server.key",
    ]
    assert {stat.S_IMODE(key.stat().st_mode) for key in keys} == {0o600}
    assert {stat.S_IMODE(path.stat().st_mode) for path in (folder, *folder.rglob("*")) if path.is_dir()} == {0o700}
    assert not [path for path in folder.rglob("*") if path.stat().st_mode & 0o022]


def test_an_existing_folder_is_left_alone(made):
    before = contents(made)

    with pytest.raises(UserError, match="found a deployment: use `fedkd deploy add-node` or `renew`"):
        deployment.init(made, "fed.example.org", ["hospital-a"])
    (made.parent / "other").mkdir()
    (made.parent / "other" / "file").touch()
    with pytest.raises(UserError, match="expected a new or empty folder, found other files in it"):
        deployment.init(made.parent / "other", "fed.example.org", ["hospital-a"])
    with pytest.raises(UserError, match="expected a new or empty folder, found a file of that name"):
        deployment.init(made.parent / "other" / "file", "fed.example.org", ["hospital-a"])

    assert contents(made) == before
    assert [path.name for path in (made.parent / "other").iterdir()] == ["file"]


@pytest.mark.parametrize("name", ["empty", "."])
def test_an_empty_folder_is_filled_even_if_somebody_stands_in_it(made, tmp_path, monkeypatch, name):
    (tmp_path / "empty").mkdir()
    monkeypatch.chdir(tmp_path / "empty" if name == "." else tmp_path)

    deployment.init(Path(name), "fed.example.org", ["hospital-a", "hospital-b"])

    assert set(contents(tmp_path / "empty")) == set(contents(made))
    private = {path for path in (tmp_path / "empty").iterdir() if path.is_dir()}
    assert {stat.S_IMODE(path.stat().st_mode) for path in private} == {0o700}


def test_an_empty_folder_is_empty_again_after_a_failure(tmp_path, monkeypatch):
    def full_disk(name):
        raise OSError("no space left")

    monkeypatch.setattr(deployment, "make_node", full_disk)

    with pytest.raises(OSError, match="no space left"):
        deployment.init(tmp_path, "fed.example.org", ["hospital-a"])

    assert not list(tmp_path.iterdir())


def test_a_name_that_cannot_be_added_is_called_by_its_argument(made):
    with pytest.raises(UserError, match=r"^NAME: expected names of at most 63 small letters.* found 'Bad Name'"):
        deployment.add_node(made, "Bad Name")


def test_what_fails_on_the_way_leaves_nothing(tmp_path, monkeypatch):
    def full_disk(name):
        raise OSError("no space left")

    monkeypatch.setattr(deployment, "make_node", full_disk)

    with pytest.raises(OSError, match="no space left"):
        deployment.init(tmp_path / "fed", "fed.example.org", ["hospital-a"])

    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("days", [0, -1, 3651, 99_999_999])
def test_days_that_cannot_be_are_refused_and_nothing_is_written(tmp_path, days):
    with pytest.raises(UserError, match="--days"):
        deployment.init(tmp_path / "fed", "fed.example.org", ["hospital-a"], days=days)

    assert not list(tmp_path.iterdir())


def test_a_node_is_added_without_the_authoritys_key_and_nothing_else_changes(made):
    (made / "ca" / "ca.key").unlink()
    before = contents(made)

    deployment.add_node(made, "hospital-c")

    after = contents(made)
    assert read_plan(made).nodes == ("hospital-a", "hospital-b", "hospital-c")
    assert "# partition-id = 2 " in after["hospital-c/node.toml"].decode()
    assert load_ssh_private_key(after["hospital-c/node.key"], None).public_key() == load_ssh_public_key(
        after["operator/nodes/hospital-c.pub"]
    )
    assert {name for name in before if after[name] != before[name]} == {"deployment.toml", "README.txt"}
    told = (made / "README.txt").read_text(encoding="utf-8")
    assert "hospital-c/" in told
    assert before["README.txt"].decode().splitlines()[0] == told.splitlines()[0], "the end of the certificate stays"


def test_a_node_that_was_unregistered_gets_a_new_key(made):
    before = contents(made)
    shutil.rmtree(made / "hospital-b")  # it is on its machine

    deployment.add_node(made, "hospital-b", new_key=True)

    after = contents(made)
    changed = {name for name in before if after[name] != before[name]}
    assert changed == {"hospital-b/node.key", "operator/nodes/hospital-b.pub"}
    assert load_ssh_private_key(after["hospital-b/node.key"], None).public_key() == load_ssh_public_key(
        after["operator/nodes/hospital-b.pub"]
    )


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("hospital-a", "hospital-a: expected no such folder, found one: move it away"),
        ("hospital-c", r"expected a node named hospital-c, found hospital-a, .*: leave --new-key out"),
    ],
)
def test_a_new_key_is_for_a_node_that_is_not_here(made, name, message):
    before = contents(made)

    with pytest.raises(UserError, match=message):
        deployment.add_node(made, name, new_key=True)

    assert contents(made) == before


@pytest.mark.parametrize(
    ("name", "message"),
    [("hospital-a", "expected a new name"), ("No", "expected names"), ("ca", "name of another folder")],
)
def test_a_node_that_exists_or_has_no_name_is_refused(made, name, message):
    before = contents(made)

    with pytest.raises(UserError, match=message):
        deployment.add_node(made, name)

    assert contents(made) == before


def test_a_node_needs_the_certificate_of_the_authority(made):
    (made / "operator" / "ca.crt").unlink()

    with pytest.raises(UserError, match=r"operator/ca\.crt: expected the authority's certificate"):
        deployment.add_node(made, "hospital-c")


def test_a_renewed_certificate_has_a_new_key_and_the_same_authority(made):
    before = contents(made)

    end = deployment.renew(made, days=100)

    after = contents(made)
    changed = {name for name in before if after[name] != before[name]}
    assert changed == {"superlink/server.key", "superlink/server.crt", "README.txt"}
    certificate = x509.load_pem_x509_certificate(after["superlink/server.crt"])
    certificate.verify_directly_issued_by(x509.load_pem_x509_certificate(after["hospital-a/ca.crt"]))
    assert certificate.not_valid_after_utc == end
    assert 99 <= (end - utc_now()).days <= 100
    assert f"{end:%Y-%m-%d}" in after["README.txt"].decode()


def test_the_certificate_is_renewed_where_the_authority_is_and_nowhere_else(made):
    (made / "ca" / "ca.key").unlink()

    with pytest.raises(UserError, match=r"ca/ca\.key: expected the authority"):
        deployment.renew(made)


def test_the_operator_gets_the_experiment_if_it_fits(tmp_path):
    file = tmp_path / "mine.toml"
    file.write_text('[federation]\nclients = 2\npartition = "own"\n')

    deployment.init(tmp_path / "fed", "a", ["n1", "n2"], experiment=file)
    with pytest.raises(UserError, match=r"federation\.clients is 2, but --nodes names 1"):
        deployment.init(tmp_path / "other", "a", ["n1"], experiment=file)

    assert (tmp_path / "fed" / "operator" / "experiment.toml").read_text() == file.read_text()
    assert "deploy run experiment.toml" in (tmp_path / "fed" / "operator" / "README.txt").read_text()
    assert not (tmp_path / "other").exists()


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("[federation]\nclients = 2\n", "expected 'own', where every node has its samples"),
        ('strategy = "fedmb"\n[federation]\nclients = 2\npartition = "own"\n', "did you mean 'fedmd'"),
    ],
)
def test_the_operator_is_given_no_experiment_that_deploy_run_refuses(tmp_path, text, problem):
    file = tmp_path / "mine.toml"
    file.write_text(text)

    with pytest.raises(UserError, match=problem):
        deployment.init(tmp_path / "fed", "a", ["n1", "n2"], experiment=file)

    assert not (tmp_path / "fed").exists()


def test_a_node_is_added_after_an_attempt_that_was_cut_off(made, monkeypatch):
    def cut_off(self, target):
        raise OSError("no space left")

    with monkeypatch.context() as patched:
        patched.setattr(type(made), "rename", cut_off)
        with pytest.raises(OSError, match="no space left"):
            deployment.add_node(made, "hospital-c")
    deployment.add_node(made, "hospital-c")

    private = load_ssh_private_key((made / "hospital-c" / "node.key").read_bytes(), None)
    public = load_ssh_public_key((made / "operator" / "nodes" / "hospital-c.pub").read_bytes())
    assert private.public_key() == public
    assert sorted(path.name for path in (made / "operator" / "nodes").iterdir()) == [
        "hospital-a.pub", "hospital-b.pub", "hospital-c.pub"
    ]  # fmt: skip


@pytest.mark.parametrize("name", ["ca.key", "ca.crt"])
def test_a_damaged_authority_is_named_and_the_certificate_stays(made, name):
    (made / "ca" / name).write_text("junk")
    before = contents(made)

    with pytest.raises(UserError, match=rf"^{name}: expected a .*, found a damaged file"):
        deployment.renew(made)

    assert contents(made) == before
