"""Addresses of a SuperLink, and the rule that nothing leaves a machine unencrypted unless somebody said so by name."""

import ipaddress
import re
from dataclasses import dataclass
from typing import Final

from fedkd.errors import UserError

DEFAULT_PORT: Final = 8000  # of flower-superlink
LAST_PORT: Final = 65535
OVERRIDE: Final = "--insecure-on-purpose"

_NAME: Final = re.compile(
    r"(?=.{1,253}$)[a-z0-9_]([a-z0-9_-]{0,61}[a-z0-9])?(\.[a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?)*\.?"
)
_DOTTED: Final = re.compile(r"[\d.]+")  # meant as an IPv4 address, and never a host name


@dataclass(frozen=True)
class Address:
    """Host and port.

    Attributes:
        host: DNS name in lower case, or IP address without brackets.
        port: TCP port.
    """

    host: str
    port: int = DEFAULT_PORT

    @property
    def is_ip(self) -> bool:
        """Whether the host is an IP address."""
        return _ip(self.host) is not None

    @property
    def is_loopback(self) -> bool:
        """Whether what is sent there never leaves this machine; a name other than localhost is not looked up."""
        ip = _ip(self.host)
        return self.host.rstrip(".") == "localhost" if ip is None else ip.is_loopback

    def __str__(self) -> str:
        """Return ``host:port``, with brackets around an IPv6 address."""
        return f"[{self.host}]:{self.port}" if ":" in self.host else f"{self.host}:{self.port}"


def parse_address(text: str, where: str = "--superlink") -> Address:
    """Read ``HOST``, ``HOST:PORT`` or ``[IPV6]:PORT``.

    Args:
        text: what the user gave.
        where: option or key that held it, for the error.

    Raises:
        UserError: it is none of these.

    Example:
        >>> str(parse_address("10.0.0.7")), str(parse_address("[::1]:9000"))
        ('10.0.0.7:8000', '[::1]:9000')
    """
    found = re.fullmatch(r"(?:\[(?P<v6>[^\]]+)\]|(?P<host>[^:]+))(?::(?P<port>\d{1,5}))?", text.strip().lower())
    bare = _ip(text.strip())
    if bare is not None:
        return Address(str(bare))
    if found is None or not _is_host(found["v6"], found["host"]):
        raise UserError(
            f"{where}: expected HOST or HOST:PORT without http://, such as fed.example.org:8000 or [::1]:8000, "
            f"found {text!r}."
        )
    port = int(found["port"] or DEFAULT_PORT)
    if not 1 <= port <= LAST_PORT:
        raise UserError(f"{where}: expected a port from 1 to {LAST_PORT}, found {port}.")
    return Address(str(_ip(found["v6"])) if found["v6"] else found["host"], port)


def check_transport(address: str, tls: bool, allow: bool) -> None:
    """Refuse to talk without TLS to anything but this machine.

    Args:
        address: where something of ours listens or connects, ``HOST`` or ``HOST:PORT``.
        tls: whether the connection is encrypted and the server's certificate checked.
        allow: whether the user gave ``--insecure-on-purpose``.

    Raises:
        UserError: it would be plain text on a network, and nobody asked for that by name.
    """
    where = parse_address(address, "address")
    if tls or allow or where.is_loopback:
        return
    raise UserError(
        f"{where}: expected TLS, for this is not a loopback address and everybody on the way could read and change "
        f"what clients send; found none: give --root-certificates ca.crt (`fedkd deploy init` makes one), "
        f"or {OVERRIDE}."
    )


def _is_host(v6: str | None, host: str | None) -> bool:
    if v6 is not None:
        ip = _ip(v6)
        return ip is not None and ip.version == 6  # noqa: PLR2004 - IPv6
    if host is None:
        return False
    return _ip(host) is not None or (_DOTTED.fullmatch(host) is None and _NAME.fullmatch(host) is not None)


def _ip(text: str) -> ipaddress.IPv4Address | ipaddress.IPv6Address | None:
    try:
        return ipaddress.ip_address(text)
    except ValueError:
        return None
