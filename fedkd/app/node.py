"""What a SuperNode's own configuration says: whose node it is, and where its samples and states are."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fedkd.config import Experiment
from fedkd.data.own import Owner
from fedkd.errors import UserError, unknown

NEEDED, OPTIONAL = ("client", "data", "store"), ("view", "architecture", "device", "commons", "afresh")
SIMULATIONS_KEYS = ("partition-id", "num-partitions")
"""Keys that Flower's simulation sets."""


@dataclass(frozen=True)
class Node:
    """One client's node.

    Attributes:
        owner: the client and its samples.
        store: folder in which the client's states are kept.
        experiment: what is run, on this node's device and with the commons where this node has them.
        afresh: name of a run in which the client begins anew if its state is lost; empty for none.
    """

    owner: Owner
    store: Path
    experiment: Experiment
    afresh: str = ""


def node_of(config: Mapping[str, Any], experiment: Experiment) -> Node:
    """Read a node configuration: ``client``, ``data`` and ``store``, and what it may say besides.

    Args:
        config: what ``flower-supernode --node-config`` was given; ``view`` and ``architecture`` may be left out where
            the experiment names one only, ``device`` and ``commons`` where they are the experiment's, ``afresh`` unless
            a state is lost.
        experiment: what is run.

    Raises:
        UserError: a key is missing, or means nothing, or a value is no text.
    """
    for key in config:
        if key not in (*NEEDED, *OPTIONAL, *SIMULATIONS_KEYS):
            raise unknown("key", key, [*NEEDED, *OPTIONAL], where="node config")
    missing = [key for key in NEEDED if not config.get(key)]
    if missing:
        raise UserError(
            f'node config: expected the key {missing[0]!r}, found none; write {missing[0]} = "..." into node.toml (or '
            "into what --node-config is given), and start the SuperNode again."
        )
    said = {key: _text(key, config[key]) for key in (*NEEDED, *OPTIONAL) if key in config}
    changes = {"train.device": said.get("device"), "data.name": said.get("commons")}
    here = experiment.changed(**{key: value for key, value in changes.items() if value is not None})
    owner = Owner(said["client"], said["data"], said.get("view"), said.get("architecture"))
    return Node(owner, Path(said["store"]).expanduser(), here, said.get("afresh", ""))


def _text(key: str, value: Any) -> str:  # noqa: ANN401 - whatever the configuration holds
    if not isinstance(value, str):
        raise UserError(f"node config: {key}: expected a text in quotation marks, found {value!r:.80}.")
    return value
