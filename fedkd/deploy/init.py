"""``fedkd deploy init``, ``add-node`` and ``renew``: write the folders of a deployment, and never over another one."""

import os
import re
import shutil
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from datetime import datetime, timedelta
from pathlib import Path
from typing import Final

from cryptography import x509

from fedkd import config
from fedkd.deploy.keys import CA_DAYS, SERVER_DAYS, Pair, make_authority, make_node, make_server, utc_now
from fedkd.deploy.kit import SCRIPTS, node_files, operator_files, overview, superlink_files
from fedkd.deploy.plan import CA, OPERATOR, PLAN, SUPERLINK, Plan, check_node_name, make_plan, plan_text, read_plan
from fedkd.errors import UserError

PRIVATE: Final = 0o600
READABLE: Final = 0o644
SCRIPT: Final = 0o755
FOLDER: Final = 0o700
README: Final = "README.txt"
_SECRET: Final = (".key",)
_ENDS: Final = re.compile(r"its certificate ends on (\S+)\.")


def init(
    folder: Path,
    superlink: str,
    nodes: Sequence[str],
    also: Sequence[str] = (),
    days: int = SERVER_DAYS,
    experiment: Path | None = None,
) -> Plan:
    """Write a new deployment: authority, server certificate, node keys, and a folder for every machine.

    The folder appears when everything is in it, or not at all.

    Args:
        folder: to be made, or empty.
        superlink: address by which others reach the SuperLink.
        nodes: names of the nodes.
        also: further names and IP addresses of the SuperLink's machine.
        days: how long the server's certificate is valid.
        experiment: file to hand to the operator; `fedkd deploy run` must accept it, and its clients must be as many as
            the nodes.

    Raises:
        UserError: the folder holds something, or something given is wrong.
    """
    plan, now = make_plan(superlink, nodes, also), utc_now()
    _check_days(days)
    _expect_free(folder)
    text = None if experiment is None else _experiment_text(experiment, plan)
    authority = make_authority(now)
    server = make_server(authority, plan.names, now, days)
    with _appearing(folder) as new:
        _write(new, {PLAN: plan_text(plan), README: overview(plan, f"{now + timedelta(days=days):%Y-%m-%d}")})
        _write(new / CA, {"ca.key": authority.private, "ca.crt": authority.public})
        _write(new / SUPERLINK, {**superlink_files(plan), **_server_files(server), "ca.crt": authority.public})
        given = {} if text is None else {"experiment.toml": text}
        _write(new / OPERATOR, {**operator_files(plan, bool(given)), **given, "ca.crt": authority.public})
        for name in plan.nodes:
            public = _write_node(new / name, plan, name, authority.public)
            _write(new / OPERATOR / "nodes", {f"{name}.pub": public})
    return plan


def add_node(folder: Path, name: str, *, new_key: bool = False) -> Plan:
    """Add one node to a deployment; needs ``operator/`` and ``deployment.toml``, but no authority's key.

    Args:
        folder: of the deployment.
        name: of the node.
        new_key: the node was one before, and gets a new key.

    Raises:
        UserError: the folder holds no deployment, or has such a node, or has none that could get a new key.
    """
    plan = read_plan(folder)
    check_node_name(name, "NAME")
    if new_key and name not in plan.nodes:
        found = f"found {', '.join(plan.nodes)}"
        raise UserError(f"{folder / PLAN}: expected a node named {name}, {found}: leave --new-key out.")
    if not new_key and name in plan.nodes:
        remedy = "choose another name, or give it a new key by --new-key"
        raise UserError(f"{folder / PLAN}: expected a new name, found a node named {name}: {remedy}.")
    if (folder / name).exists():
        remedy = "move it away" if new_key else "choose another name, or move it away"
        raise UserError(f"{folder / name}: expected no such folder, found one: {remedy}.")
    certificate = folder / OPERATOR / "ca.crt"
    if not certificate.is_file():
        raise UserError(f"{certificate}: expected the authority's certificate, found none: bring operator/ back.")
    plan = plan if new_key else replace(plan, nodes=(*plan.nodes, name))
    with _appearing(folder / name) as new:
        public = _write_node(new, plan, name, certificate.read_bytes())
        public_keys = folder / OPERATOR / "nodes"
        public_keys.mkdir(FOLDER, exist_ok=True)
        _replace(public_keys / f"{name}.pub", public)  # there may be one of an attempt that was cut off
    _replace(folder / PLAN, plan_text(plan).encode())
    readme = folder / README
    if readme.is_file() and (ends := _ENDS.search(readme.read_text(encoding="utf-8", errors="replace"))):
        _replace(readme, overview(plan, ends[1]).encode())
    return plan


def renew(folder: Path, days: int = SERVER_DAYS) -> datetime:
    """Make a new key and certificate for the SuperLink; nodes and operator notice nothing.

    Returns:
        When the new certificate ends.

    Raises:
        UserError: the folder holds no deployment, or not the authority's key.
    """
    plan, now = read_plan(folder), utc_now()
    _check_days(days)
    paths = folder / CA / "ca.key", folder / CA / "ca.crt"
    for path in paths:
        if not path.is_file():
            raise UserError(f"{path}: expected the authority, found no such file: bring it back from where it is kept.")
    server = make_server(Pair(paths[0].read_bytes(), paths[1].read_bytes()), plan.names, now, days)
    (folder / SUPERLINK).mkdir(FOLDER, exist_ok=True)
    for name, content in _server_files(server).items():
        _replace(folder / SUPERLINK / name, content)
    end = x509.load_pem_x509_certificate(server.public).not_valid_after_utc
    _replace(folder / README, overview(plan, f"{end:%Y-%m-%d}").encode())
    return end


def _write_node(folder: Path, plan: Plan, name: str, authority: bytes) -> bytes:
    pair = make_node(name)
    _write(folder, {**node_files(plan, name), "node.key": pair.private, "ca.crt": authority})
    return pair.public


def _server_files(server: Pair) -> dict[str, bytes]:
    return {"server.key": server.private, "server.crt": server.public}


def _expect_free(folder: Path) -> None:
    if not folder.exists() or (folder.is_dir() and not any(folder.iterdir())):
        return
    what = "other files in it" if folder.is_dir() else "a file of that name"
    if (folder / PLAN).exists():
        what = "a deployment: use `fedkd deploy add-node` or `renew`"
    raise UserError(f"{folder}: expected a new or empty folder, found {what}; or choose another name.")


def _check_days(days: int) -> None:
    if not 1 <= days <= CA_DAYS:
        raise UserError(f"--days: expected 1 to {CA_DAYS}, as long as an authority is valid, found {days}.")


def _experiment_text(path: Path, plan: Plan) -> str:
    from fedkd.deploy.run import check_deployable  # with torch, which nothing else here needs

    experiment = config.load(path, [])
    check_deployable(experiment)
    if experiment.federation.clients != len(plan.nodes):
        raise UserError(
            f"{path}: federation.clients is {experiment.federation.clients}, but --nodes names {len(plan.nodes)}: "
            "make them equal."
        )
    return path.read_text(encoding="utf-8")


@contextmanager
def _appearing(folder: Path) -> Iterator[Path]:
    """Yield a folder of another name that gets its own when all went well, and else is gone.

    Into an empty folder that is there its content moves instead: somebody may stand in it.
    """
    there = folder.is_dir()
    parent = folder if there else folder.parent
    parent.mkdir(parents=True, exist_ok=True)
    new = Path(tempfile.mkdtemp(prefix=f".{folder.name}-", dir=parent))  # readable by its owner alone
    try:
        yield new
        if there:
            for path in list(new.iterdir()):
                path.rename(folder / path.name)
            new.rmdir()
        else:
            new.rename(folder)
    except BaseException:
        shutil.rmtree(new, ignore_errors=True)
        raise


def _write(folder: Path, files: Mapping[str, str | bytes]) -> None:
    for name, content in files.items():
        path = folder / name
        path.parent.mkdir(FOLDER, parents=True, exist_ok=True)
        _create(path, content if isinstance(content, bytes) else content.encode())


def _replace(path: Path, content: bytes) -> None:
    """Put a file in another's place in one step."""
    new = path.with_name(f".{path.name}.new")
    new.unlink(missing_ok=True)
    _create(new, content)
    new.replace(path)


def _create(path: Path, content: bytes) -> None:
    """Create a file that was never readable by others if it is a key, whatever the umask."""
    stem = path.name.removesuffix(".new")
    mode = PRIVATE if stem.endswith(_SECRET) else SCRIPT if path.name in SCRIPTS else READABLE
    with os.fdopen(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, PRIVATE), "wb") as file:
        file.write(content)
    path.chmod(mode)
