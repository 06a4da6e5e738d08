"""What stands in one machine's folder of a deployment: facts, found out without changing anything."""

import errno
import os
import re
import tomllib
from collections.abc import Mapping
from contextlib import chdir
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Final, Literal

from cryptography import x509
from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives.asymmetric.ec import EllipticCurvePrivateKey
from cryptography.hazmat.primitives.serialization import load_pem_private_key, load_ssh_private_key

from fedkd.deploy.facts import look_at_data
from fedkd.deploy.machine_checks import NOT_READABLE, NodeFacts
from fedkd.deploy.transport import LAST_PORT, Address, parse_address
from fedkd.errors import UserError, unknown

Role = Literal["SuperNode", "SuperLink", "operator"]
FILES: Final[Mapping[Role, tuple[str, ...]]] = {
    "SuperNode": ("ca.crt", "node.key"),
    "SuperLink": ("ca.crt", "server.crt", "server.key"),
    "operator": ("ca.crt",),
}
"""What each machine's programs read besides their settings."""
_NODE: Final = re.compile(r'flower-supernode --superlink (\S+)(?s:.*)--port "\$\{RUNTIME_PORT:-(\d+)\}"')
_SUPERLINK: Final = re.compile(r"flower-superlink --host (\S+) --port (\d+)")
_OPERATOR: Final = re.compile(r'^address = "(\S+)"', re.MULTILINE)
_HERE: Final = {"0.0.0.0": "127.0.0.1", "::": "::1"}  # noqa: S104 - how this machine calls itself


@dataclass(frozen=True)
class Machine:
    """One machine of a deployment, as its scripts say.

    Attributes:
        role: what runs on it.
        superlink: how it calls the SuperLink.
        port: TCP port that its program takes; None for the operator, who starts none.
    """

    role: Role
    superlink: Address
    port: int | None = None


def _is_port(text: str) -> bool:
    return text.isdecimal() and 1 <= int(text) <= LAST_PORT


def read_machine(folder: Path) -> Machine:
    """Read what the scripts in a folder say.

    Raises:
        UserError: it is not one that ``fedkd deploy init`` made for a machine.
    """
    start, flwr = _text(folder / "start.sh"), _text(folder / "flwr.sh")
    if found := _NODE.search(start):
        port = os.environ.get("RUNTIME_PORT", found[2])
        return Machine("SuperNode", parse_address(found[1], "start.sh"), int(port) if _is_port(port) else int(found[2]))
    if found := _SUPERLINK.search(start):
        return Machine("SuperLink", Address(_HERE.get(found[1], found[1]), int(found[2])), int(found[2]))
    if found := _OPERATOR.search(flwr):
        return Machine("operator", parse_address(found[1], "flwr.sh"))
    expected = "expected a node's folder, superlink/ or operator/, as `fedkd deploy init` makes them"
    raise UserError(f"--folder: {expected}, found no start.sh and no flwr.sh of ours in {folder}.")


def file_problem(path: Path) -> str | None:
    """Return what is wrong with a certificate or key; None if nothing is."""
    try:
        content = path.read_bytes()
    except OSError as error:
        return _why(error)
    try:
        if path.suffix == ".crt":
            end = x509.load_pem_x509_certificate(content).not_valid_after_utc
            return f"it has expired on {end:%Y-%m-%d}" if end < datetime.now(UTC) else None
        if path.name == "node.key":
            key = load_ssh_private_key(content, None)
            return None if isinstance(key, EllipticCurvePrivateKey) else "it is no elliptic-curve key"
        public = load_pem_private_key(content, None).public_key()
        certificate = path.with_suffix(".crt")
        if file_problem(certificate) or x509.load_pem_x509_certificate(certificate.read_bytes()).public_key() == public:
            return None
    except (ValueError, TypeError, UnsupportedAlgorithm):
        return f"it is no {'certificate' if path.suffix == '.crt' else 'private key'}"
    return f"it does not belong to {certificate.name}"


def look_at_node(folder: Path) -> NodeFacts:
    """Read ``node.toml`` and what it names, as the node would: paths begin in its folder."""
    from fedkd.app.node import node_of
    from fedkd.config import Experiment
    from fedkd.data.own import KEY
    from fedkd.models import registry

    try:
        config = tomllib.loads((folder / "node.toml").read_text(encoding="utf-8"))
        _expect_plain(config)
        node = node_of(dict(config), Experiment())
        named = node.owner.architecture
        if named is not None and ":" not in named and named not in registry.names():
            raise unknown("architecture", named, registry.names())
    except OSError as error:
        return NodeFacts(_why(error))
    except (UserError, ValueError) as error:
        return NodeFacts(str(error))
    client = node.owner.key
    if not KEY.fullmatch(client):
        return NodeFacts(f"client: expected small letters, digits and '-', at most 63, found {client!r:.80}")
    commons = config.get("commons", "")
    with chdir(folder):
        data = (node.owner.data, *look_at_data(node.owner.data))
        shared = (commons, *look_at_data(commons)) if commons else ("", None, None)
        misfit = None if data[1] is None or shared[1] is None else _misfit(data[0], commons)
        store = (str(node.store), _writable(node.store))
    return NodeFacts(None, client, store, data, shared, misfit)


def _misfit(data: str, commons: str) -> str | None:
    """Return why samples do not fit the commons: classes, ids, views, rates."""
    from fedkd.data.own import joined, with_ids
    from fedkd.data.sources import load

    shared = load(commons)
    try:
        joined(shared, with_ids(load(data), shared))
    except UserError as error:
        return str(error)
    return None


def _expect_plain(config: Mapping[str, Any]) -> None:
    for key, value in config.items():
        if not isinstance(value, (str, int, float, dict)):
            raise UserError(f"{key}: expected a text or a number, as Flower does, found {value!r:.80}.")


def _writable(path: Path) -> bool:
    """Whether this user may write into a folder, or make it where there is none."""
    if path.exists():
        return path.is_dir() and os.access(path, os.W_OK | os.X_OK)
    above = next(parent for parent in path.absolute().parents if parent.exists())
    return above.is_dir() and os.access(above, os.W_OK | os.X_OK)


def _why(error: OSError) -> str:
    known = {errno.ENOENT: "there is no such file", errno.EACCES: NOT_READABLE}
    return known.get(error.errno or 0) or str(error.strerror)


def _text(path: Path) -> str:
    """Return a script as one line per command; nothing if there is none."""
    try:
        return path.read_text(encoding="utf-8", errors="replace").replace("\\\n", " ")
    except OSError:
        return ""
