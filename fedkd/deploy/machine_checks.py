"""The checks of ``fedkd doctor --folder``: pure functions from what stands in a machine's folder to findings."""

from dataclasses import dataclass

from fedkd.deploy.checks import Finding

NOT_READABLE = "this user may not read it"


@dataclass(frozen=True)
class NodeFacts:
    """What a node's folder holds for its client.

    Attributes:
        problem: why ``node.toml`` cannot be used; None if it can.
        client: the client's name.
        store: where states are kept, and whether this user may write there.
        data: where the samples are, what they are in words, and why they cannot be read.
        commons: the same of the commons; empty texts if the experiment says where they are.
        misfit: why the samples do not fit the commons; None if they do, or if either cannot be read.
    """

    problem: str | None = None
    client: str = ""
    store: tuple[str, bool] = ("", True)
    data: tuple[str, str | None, str | None] = ("", None, None)
    commons: tuple[str, str | None, str | None] = ("", None, None)
    misfit: str | None = None


def file(name: str, problem: str | None) -> Finding:
    """Check a certificate or key.

    Args:
        name: of the file.
        problem: what is wrong with it; None if nothing is.
    """
    if problem is None:
        return Finding(name, "ok", "there, and readable")
    if problem == NOT_READABLE:
        return Finding(name, "fail", problem, "give it to the user who starts the program here")
    if name == "node.key":
        made = "bring the one that `fedkd deploy init` made for it"
        return Finding(name, "fail", problem, f"{made}; if that is lost, a new one: `fedkd deploy add-node --new-key`")
    if name == "ca.crt":
        return Finding(name, "fail", problem, "bring the ca.crt of this deployment; it is no secret, operator/ has it")
    return Finding(name, "fail", problem, "bring server.crt and server.key anew; `fedkd deploy renew` makes both")


def node(facts: NodeFacts) -> list[Finding]:
    """Check what a node says of itself, its samples and the commons."""
    if facts.problem is not None:
        advice = 'mend it as docs/data.md, "Own data on every node", says'
        return [Finding("node.toml", "fail", facts.problem, advice)]
    return [
        Finding("node.toml", "ok", f"client {facts.client}"),
        _store(*facts.store),
        _data(*facts.data),
        _commons(*facts.commons),
        *_fit(facts),
    ]


def _store(path: str, writable: bool) -> Finding:
    if writable:
        return Finding("store", "ok", f"{path}: this user may write there")
    advice = "name a folder that the user who starts the node may write into, or give it to that user"
    return Finding("store", "fail", f"{path}: this user may not write there", advice)


def _data(path: str, found: str | None, error: str | None) -> Finding:
    if found is None:
        advice = "bring the file there, or write in node.toml where it is; docs/data.md says what it must look like"
        return Finding("data", "fail", f"{path}: {error}", advice)
    return Finding("data", "ok", f"{path}: {found}")


def _commons(path: str, found: str | None, error: str | None) -> Finding:
    if not path:
        advice = 'write commons = "..." into node.toml, unless the experiment\'s data.name is right here too'
        return Finding("commons", "warn", "not named in node.toml, so not looked at", advice)
    if found is None:
        return Finding("commons", "fail", f"{path}: {error}", "bring commons.npz there, or write where it is")
    return Finding("commons", "ok", f"{path}: {found}")


def _fit(facts: NodeFacts) -> list[Finding]:
    """Say whether samples and commons fit each other, if both could be read."""
    if facts.data[1] is None or facts.commons[1] is None:
        return []
    if facts.misfit is not None:
        return [Finding("data in commons", "fail", facts.misfit, "mend the data, or bring the right commons")]
    return [Finding("data in commons", "ok", "classes, ids, views and rates fit")]
