"""Who is in a deployment: the SuperLink's address and the nodes' names, as ``deployment.toml`` keeps them."""

import ipaddress
import re
import tomllib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import tomli_w

from fedkd.deploy.transport import Address, parse_address
from fedkd.errors import UserError

PLAN: Final = "deployment.toml"
CA: Final = "ca"
SUPERLINK: Final = "superlink"
OPERATOR: Final = "operator"

_RESERVED: Final = (CA, SUPERLINK, OPERATOR)
_NAME: Final = re.compile(r"[a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?")


@dataclass(frozen=True)
class Plan:
    """A deployment.

    Attributes:
        superlink: address by which nodes and operator reach the SuperLink.
        also: further names and IP addresses of the SuperLink's machine, written into its certificate.
        nodes: names of the nodes, in the order of their partitions; none twice.
    """

    superlink: Address
    also: tuple[str, ...] = ()
    nodes: tuple[str, ...] = ()

    @property
    def names(self) -> tuple[str, ...]:
        """Names and addresses that the server's certificate holds."""
        return (self.superlink.host, *self.also)


def make_plan(superlink: str, nodes: Sequence[str], also: Sequence[str] = ()) -> Plan:
    """Return a checked plan.

    Args:
        superlink: address of the SuperLink, ``HOST`` or ``HOST:PORT``.
        nodes: names of the nodes.
        also: further names of the SuperLink's machine.

    Raises:
        UserError: a name cannot be a folder's and a client's name, or appears twice; or an address is none.
    """
    address = _callable(superlink, "--superlink")
    if not nodes:
        raise UserError("--nodes: expected at least one name, such as hospital-a,hospital-b, found none.")
    for number, name in enumerate(nodes):
        check_node_name(name)
        if name in nodes[:number]:
            raise UserError(f"--nodes: expected every name once, found {name!r} twice.")
    return Plan(address, tuple(_callable(name, "--also").host for name in also), tuple(nodes))


def _callable(text: str, where: str) -> Address:
    """Read an address that others can call."""
    address = parse_address(text, where)
    if address.is_ip and ipaddress.ip_address(address.host).is_unspecified:
        raise UserError(
            f"{where}: expected the address by which nodes reach the SuperLink's machine, found {address.host}, which "
            "means all addresses of whoever says it: give a DNS name or an IP address."
        )
    return address


def check_node_name(name: str, where: str = "--nodes") -> None:
    """Refuse what cannot be both a client's key and the name of a folder.

    Args:
        name: to be checked.
        where: option or argument that held it, for the error.

    Raises:
        UserError: the name is not one of small letters, digits and hyphens, or is that of another folder.
    """
    if not _NAME.fullmatch(name):
        raise UserError(
            f"{where}: expected names of at most 63 small letters, digits and inner hyphens, such as hospital-a, "
            f"found {name!r}."
        )
    if name in _RESERVED:
        raise UserError(f"{where}: {name!r} is the name of another folder of the deployment: choose another one.")


def plan_text(plan: Plan) -> str:
    """Return the plan as TOML."""
    return tomli_w.dumps({"superlink": str(plan.superlink), "also": list(plan.also), "nodes": list(plan.nodes)})


def read_plan(folder: Path) -> Plan:
    """Read the plan of an existing deployment.

    Raises:
        UserError: the folder holds no deployment, or its plan was damaged.
    """
    path = folder / PLAN
    if not path.is_file():
        raise UserError(f"{folder}: expected a folder that `fedkd deploy init` made, found no {PLAN}.")
    try:
        facts = tomllib.loads(path.read_text(encoding="utf-8"))
        return make_plan(facts["superlink"], facts["nodes"], facts["also"])
    except (tomllib.TOMLDecodeError, UnicodeDecodeError, KeyError, TypeError, AttributeError) as error:
        raise UserError(
            f"{path}: expected superlink, also and nodes as `fedkd deploy init` wrote them: {error}."
        ) from None
