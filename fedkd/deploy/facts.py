"""Facts about this machine and about a SuperLink, as far as they can be found out without changing anything."""

import contextlib
import http.client
import importlib
import importlib.metadata
import os
import shutil
import socket
import ssl
import time
from dataclasses import dataclass
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from pathlib import Path
from typing import Final

from fedkd.deploy.checks import Gpu
from fedkd.deploy.transport import Address
from fedkd.errors import UserError

TIMEOUT: Final = 5.0
"""Seconds to wait for a SuperLink's answer."""
_SHARED: Final = Path("/dev/shm")  # noqa: S108 - asked for its size, nothing is written
_DAY: Final = 86_400.0


@dataclass(frozen=True)
class Link:
    """What a SuperLink shows of itself.

    Attributes:
        error: why it cannot be reached; None if it can.
        tls: whether it answers by TLS.
        untrusted: why its certificate is not trusted here; None if it is, or if there is none.
        days_left: days until its certificate ends; None if there is none.
        ahead: seconds that this machine's clock is ahead of its; None if unknown.
        uncertain: seconds by which this may be wrong, either way.
    """

    error: str | None = None
    tls: bool = False
    untrusted: str | None = None
    days_left: float | None = None
    ahead: float | None = None
    uncertain: float = 0.0


def look_at_package(name: str) -> tuple[str | None, str | None]:
    """Return a package's version (None: not installed), and the last line of what importing it raises."""
    try:
        version = importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return None, None
    try:
        importlib.import_module(name)
    except Exception as error:  # a broken library raises anything
        return version, (str(error).strip().splitlines() or [type(error).__name__])[-1]
    return version, None


def listener(port: int) -> str | None:
    """Return who listens on a TCP port of this machine, as far as we may know; None if it is free."""
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)  # so that what was just closed counts as free
        with contextlib.suppress(OSError):
            probe.bind(("", port))
            return None
    inodes = _listening_inodes(port)
    for link in Path("/proc").glob("[0-9]*/fd/*"):
        with contextlib.suppress(OSError):  # it has ended, or is not ours
            if os.readlink(link) in inodes:
                process = link.parent.parent
                words = (process / "cmdline").read_bytes().split(b"\0")
                shown = " ".join(Path(word.decode(errors="replace")).name for word in words[:2] if word)
                return f"{shown} (process {process.name})"
    return "a program of another user"


def _listening_inodes(port: int) -> set[str]:
    """Return ``socket:[inode]`` of everything that listens on a port (Linux; else nothing)."""
    found: set[str] = set()
    for table in ("/proc/net/tcp", "/proc/net/tcp6"):
        with contextlib.suppress(OSError):
            for row in Path(table).read_text().splitlines()[1:]:
                columns = row.split()
                if columns[3] == "0A" and int(columns[1].rpartition(":")[2], 16) == port:  # 0A: LISTEN
                    found.add(f"socket:[{columns[9]}]")
    return found


def gpus() -> list[Gpu]:
    """Return the GPUs that torch can use; none if torch cannot be imported."""
    try:
        import torch

        if not torch.cuda.is_available():
            return []
        return [
            Gpu(torch.cuda.get_device_name(n), *torch.cuda.mem_get_info(n)) for n in range(torch.cuda.device_count())
        ]
    except (ImportError, RuntimeError, OSError):
        return []


def memory() -> tuple[int, int]:
    """Return the available and the total main memory in bytes, of the container where there is a limit."""
    page, pages = os.sysconf("SC_PAGE_SIZE"), os.sysconf("SC_PHYS_PAGES")
    total = available = page * pages
    with contextlib.suppress(OSError, KeyError):
        rows = dict(row.split(":", 1) for row in Path("/proc/meminfo").read_text().splitlines())
        available = int(rows["MemAvailable"].split()[0]) * 1024
    with contextlib.suppress(OSError, ValueError):  # "max": no limit
        group = Path("/sys/fs/cgroup")
        limit, used = (int((group / name).read_text()) for name in ("memory.max", "memory.current"))
        total, available = min(total, limit), min(available, max(0, limit - used))
    return available, total


def cpus() -> int:
    """Return the number of CPUs that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def shared_memory() -> int | None:
    """Return the free bytes of ``/dev/shm``; None if there is no such folder."""
    return shutil.disk_usage(_SHARED).free if _SHARED.is_dir() else None


def open_files() -> int | None:
    """Return how many files a process may have open; None without a limit."""
    try:
        import resource
    except ImportError:  # Windows
        return None
    soft, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    return None if soft == resource.RLIM_INFINITY else soft


def look_at_data(path: str) -> tuple[str | None, str | None]:
    """Return what a data set holds in words, or why it cannot be read."""
    from fedkd.data.sources import load

    try:
        found = load(path)
    except (UserError, OSError) as error:
        return None, str(error)
    views = ", ".join(f"{name} {tuple(rows.shape[1:])}" for name, rows in sorted(found.views.items()))
    return f"{len(found.labels)} samples, {len(found.classes)} classes, views {views}", None


def look_at_superlink(address: Address, root_certificates: Path | None) -> Link:
    """Connect to a SuperLink, look at its certificate and clock, and leave.

    Args:
        address: of the SuperLink.
        root_certificates: PEM file of whom to trust; the system's authorities if None.

    Raises:
        UserError: the file is no certificate.
    """
    try:
        context = ssl.create_default_context(cafile=None if root_certificates is None else str(root_certificates))
        context.verify_flags &= ~ssl.VERIFY_X509_STRICT  # Python 3.13 sets it, and Flower does not
    except (OSError, ssl.SSLError) as error:
        raise UserError(
            f"--root-certificates: expected a PEM file such as ca.crt, found {root_certificates}: {error}."
        ) from None
    untrusted = None
    try:
        certificate = _handshake(address, context)
    except ssl.SSLCertVerificationError as error:
        untrusted = error.verify_message
        context.check_hostname, context.verify_mode = False, ssl.CERT_NONE  # only to read it and the clock
        try:
            certificate = _handshake(address, context)
        except OSError as second:
            return Link(error=_reason(second))
    except ssl.SSLError as error:
        ahead, uncertain = _clock(http.client.HTTPConnection(address.host, address.port, timeout=TIMEOUT))
        if ahead is None:  # nor does it answer over HTTP, with a date, as Flower does
            return Link(error=f"what answers is no SuperLink, neither with TLS nor without ({_reason(error)})")
        return Link(ahead=ahead, uncertain=uncertain)
    except OSError as error:
        return Link(error=_reason(error))
    connection = http.client.HTTPSConnection(address.host, address.port, timeout=TIMEOUT, context=context)
    ahead, uncertain = _clock(connection)
    return Link(None, True, untrusted, _days_left(certificate), ahead, uncertain)


def _reason(error: OSError) -> str:
    return error.strerror or str(error) or type(error).__name__


def _handshake(address: Address, context: ssl.SSLContext) -> bytes:
    """Return the server's certificate (DER)."""
    with (
        socket.create_connection((address.host, address.port), timeout=TIMEOUT) as raw,
        context.wrap_socket(raw, server_hostname=address.host) as secured,
    ):
        return secured.getpeercert(binary_form=True) or b""


def _days_left(certificate: bytes) -> float:
    from cryptography import x509

    end = x509.load_der_x509_certificate(certificate).not_valid_after_utc
    return (end - datetime.now(UTC)).total_seconds() / _DAY


def _clock(connection: http.client.HTTPConnection) -> tuple[float | None, float]:
    """Return how far this clock is ahead of the server's ``Date``, and the uncertainty, either way.

    ``Date`` has whole seconds, and Flower's web server renews it once a second: the time is up to two seconds later.
    """
    with contextlib.closing(connection), contextlib.suppress(OSError, http.client.HTTPException, ValueError, TypeError):
        before = time.time()
        connection.request("HEAD", "/")
        date = connection.getresponse().headers["Date"]
        after = time.time()
        theirs = parsedate_to_datetime(date).timestamp() + 1
        return (before + after) / 2 - theirs, 1 + (after - before) / 2
    return None, 0.0
