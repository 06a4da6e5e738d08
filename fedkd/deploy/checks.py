"""The checks of ``fedkd doctor``: pure functions from facts about a machine to a finding."""

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any, Final, Literal

GIB: Final = 2**30
Version = tuple[int, ...]
Verdict = Literal["ok", "warn", "fail"]

PYTHON: Final[Version] = (3, 11)
BOUNDS: Final[dict[str, tuple[Version, Version]]] = {
    "flwr": ((1, 41), (1, 42)),
    "torch": ((2, 6), (3,)),
    "torchvision": ((0, 21), (1,)),
    "ray": ((2, 0), (3,)),  # whichever flwr[simulation] asks for
}
"""Package: first version that will do, first version that will not; as in ``pyproject.toml``."""
AHEAD: Final = 5.0
"""Seconds that a SuperNode's clock may be ahead of its SuperLink's (flwr 1.41, ``SYSTEM_TIME_TOLERANCE``)."""
BEHIND: Final = 305.0
"""Seconds that it may be behind (``TIMESTAMP_TOLERANCE`` more)."""
RAY_SHARE: Final = 0.3
"""Share of the memory that Ray's object store takes in shared memory."""
USABLE: Final = 0.9
"""Share of a GPU's free memory that workers may fill; the rest is for fragments and peaks."""
MOST: Final = 100
"""Most workers on one GPU that a share can be named for."""
DAYS_LEFT: Final = 30
_OTHER_PORT: Final = {
    "SuperLink": "change the port in superlink/start.sh, every node's start.sh and the scripts in operator/",
    "SuperNode": "start the SuperNode with another port: RUNTIME_PORT=9095 sh start.sh",
}


@dataclass(frozen=True)
class Finding:
    """What one check found.

    Attributes:
        name: what was looked at.
        verdict: ``ok``, ``warn`` (it works, but) or ``fail`` (it will not work).
        found: what is there.
        advice: what to do; empty if nothing.
    """

    name: str
    verdict: Verdict
    found: str
    advice: str = ""

    def to_json(self) -> dict[str, Any]:
        """Return the finding as plain data."""
        return asdict(self)


@dataclass(frozen=True)
class Gpu:
    """One GPU: its name, and its free and total memory in bytes."""

    name: str
    free: int
    total: int


def python(version: Version) -> Finding:
    """Check the version of Python."""
    shown = _dotted(version)
    if version < PYTHON:
        return Finding("python", "fail", shown, f"install Python {_dotted(PYTHON)} or newer")
    return Finding("python", "ok", shown)


def package(name: str, version: str | None, error: str | None) -> Finding:
    """Check one package.

    Args:
        name: one of ``BOUNDS``.
        version: as installed; None if it is not.
        error: last line of what importing it raised; None if it can be imported.
    """
    low, high = BOUNDS[name]
    install = f"pip install '{name}>={_dotted(low)},<{_dotted(high)}'"
    if version is None:
        return Finding(name, "fail", "not installed", install)
    if not low <= _numbers(version) < high:
        return Finding(name, "fail", version, install)
    if error is not None:
        pair = "torch and torchvision must be of one release: " if name in {"torch", "torchvision"} else ""
        return Finding(name, "fail", f"{version}, cannot be imported: {error}", f"{pair}install it anew: {install}")
    return Finding(name, "ok", version)


def port(number: int, use: str, listener: str | None) -> Finding:
    """Check that a TCP port is free.

    Args:
        number: of the port.
        use: what wants it, ``SuperLink`` or ``SuperNode``.
        listener: who has it; None if it is free.
    """
    if listener is None:
        return Finding(f"port {number}", "ok", f"free, for a {use}")
    advice = f"nothing, if this is the {use} of this deployment; else stop it, or {_OTHER_PORT[use]}"
    return Finding(f"port {number}", "warn", f"taken by {listener}", advice)


def clock(
    ahead: float | None, uncertain: float = 0.0, unknown: str = "give --superlink to compare it with the SuperLink's"
) -> Finding:
    """Check this machine's clock against the SuperLink's, which refuses signatures of another time.

    Args:
        ahead: seconds that it is ahead; None if unknown.
        uncertain: seconds by which this may be wrong, either way.
        unknown: what to do if it is unknown.
    """
    if ahead is None:
        return Finding("clock", "warn", "unknown", unknown)
    shown = f"{abs(ahead):.1f} s {'ahead of' if ahead >= 0 else 'behind'} the SuperLink's (± {uncertain:.1f} s)"
    allowed = f"set it (timedatectl set-ntp true): at most {AHEAD:.0f} s ahead and {BEHIND:.0f} s behind are let in"
    if ahead + uncertain <= -BEHIND or ahead - uncertain >= AHEAD:
        return Finding("clock", "fail", shown, allowed)
    if ahead <= -BEHIND / 5 or ahead >= AHEAD / 2:
        return Finding("clock", "warn", shown, allowed)
    return Finding("clock", "ok", shown)


def gpus(found: Sequence[Gpu], need: int) -> Finding:
    """Check the GPUs, and say which share of one a Ray worker may be given.

    A share limits how many workers Ray starts, never the memory that they take.

    Args:
        found: the machine's GPUs.
        need: bytes that one worker needs: its models, batches, and about half a GiB for CUDA itself.
    """
    if not found:
        return Finding("gpu", "ok", "none; train.device = 'cpu'")
    workers = min(MOST, *(int(USABLE * gpu.free) // need for gpu in found))
    shown = ", ".join(f"{gpu.name}: {_gib(gpu.free)} of {_gib(gpu.total)} free" for gpu in found)
    if not workers:
        return Finding("gpu", "fail", shown, f"a worker needs {_gib(need)}: end what fills the GPU, or use the CPU")
    advice = f"engine.gpus_per_worker = {safe_share(workers):g}: {workers * len(found)} workers of {_gib(need)}"
    return Finding("gpu", "ok", shown, advice)


def safe_share(workers: int) -> float:
    """Return the share of a GPU of which Ray fits so many workers, 100 at most: Ray counts ten-thousandths."""
    return 10_000 // workers / 10_000


def memory(available: int, cpus: int, need: int = GIB) -> Finding:
    """Check the main memory.

    Args:
        available: bytes that are free or can be freed.
        cpus: number of CPUs, and so of the workers that one would start.
        need: bytes that one worker needs; Python, torch and Flower take about half a GiB.
    """
    workers = available // need
    shown = f"{_gib(available)} available, {cpus} CPUs"
    if not workers:
        return Finding("memory", "fail", shown, f"one worker needs about {_gib(need)}: end other programs")
    if workers < cpus:
        return Finding("memory", "warn", shown, f"engine.workers = {workers} at most, one per {_gib(need)}")
    return Finding("memory", "ok", shown)


def shared_memory(free: int | None, total: int) -> Finding:
    """Check ``/dev/shm``, where Ray keeps its objects.

    Args:
        free: free bytes; None if there is no such folder.
        total: bytes of main memory.
    """
    if free is None:
        return Finding("shared memory", "ok", "no /dev/shm on this system; Ray uses other means")
    wanted = int(RAY_SHARE * total)
    if free >= wanted:
        return Finding("shared memory", "ok", f"{_gib(free)} free")
    advice = (
        f"Ray wants {_gib(wanted)} and falls back to the disk: in a container, --shm-size={math.ceil(wanted / GIB)}g"
    )
    return Finding("shared memory", "warn", f"{_gib(free)} free", advice)


def disk(free: int, where: str) -> Finding:
    """Check the room for run folders, checkpoints and clients' states.

    Args:
        free: free bytes.
        where: folder that was asked.
    """
    shown = f"{_gib(free)} free in {where}"
    if free < GIB:
        return Finding("disk", "fail", shown, "make room: less than 1 GiB is left for checkpoints and states")
    if free < 5 * GIB:
        return Finding("disk", "warn", shown, "5 GiB or more are comfortable for checkpoints and states")
    return Finding("disk", "ok", shown)


def open_files(limit: int | None) -> Finding:
    """Check how many files one process may have open (``ulimit -n``); None if there is no limit."""
    shown = "no limit" if limit is None else str(limit)
    advice = "ulimit -n 65536, or LimitNOFILE=65536 in the service (ours has it)"
    if limit is None or limit >= 4096:  # noqa: PLR2004 - a Ray worker has hundreds, its servers thousands
        return Finding("open files", "ok", shown)
    return Finding("open files", "warn" if limit >= 1024 else "fail", shown, advice)  # noqa: PLR2004 - Linux's default


def data(path: str, found: str | None, error: str | None) -> Finding:
    """Check that the data can be read.

    Args:
        path: where they are.
        found: views, samples and classes; None if they cannot be read.
        error: why not.
    """
    if found is None:
        return Finding("data", "fail", f"{path}: {error}", "see docs/data.md for what the files must look like")
    return Finding("data", "ok", f"{path}: {found}")


def superlink(address: str, error: str | None, tls: bool, loopback: bool) -> Finding:
    """Check that a SuperLink answers, and by TLS.

    Args:
        address: of the SuperLink.
        error: why it cannot be reached; None if it can.
        tls: whether it answered by TLS.
        loopback: whether it is on this machine.
    """
    if error is not None:
        advice = "is it running, is the address right, does the firewall let the port through?"
        return Finding("superlink", "fail", f"{address}: {error}", advice)
    if not tls:
        advice = "everybody on the way can read along: start it with a certificate (`fedkd deploy init`)"
        return Finding("superlink", "warn" if loopback else "fail", f"{address} answers in plain text", advice)
    return Finding("superlink", "ok", f"{address} answers by TLS")


def certificate(days_left: float | None, error: str | None) -> Finding:
    """Check the SuperLink's certificate.

    Args:
        days_left: days until it ends; None if it could not be read.
        error: why it is not trusted here: authority, name or time; None if it is.
    """
    shown = "ends at an unknown time" if days_left is None else f"ends in {days_left:.0f} days"
    if days_left is not None and days_left < 0:
        return Finding(
            "certificate",
            "fail",
            f"expired {-days_left:.0f} days ago",
            "run `fedkd deploy renew` where ca.key is kept, and restart the SuperLink",
        )
    if error is not None:
        advice = "use the ca.crt of this deployment, and a name of the SuperLink that its certificate holds"
        return Finding("certificate", "fail", f"not trusted: {error}; {shown}", advice)
    if days_left is None or days_left < DAYS_LEFT:
        return Finding("certificate", "warn", shown, "run `fedkd deploy renew` before it ends")
    return Finding("certificate", "ok", f"trusted, name matches, {shown}")


def _numbers(version: str) -> Version:
    """Return the leading numbers of a version such as ``2.13.0+cu130``."""
    numbers: list[int] = []
    for part in version.partition("+")[0].split("."):
        if not part.isdigit():
            break
        numbers.append(int(part))
    return tuple(numbers)


def _dotted(version: Version) -> str:
    return ".".join(map(str, version))


def _gib(size: int) -> str:
    return f"{size / GIB:.1f} GiB"
