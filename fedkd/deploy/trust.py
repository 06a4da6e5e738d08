"""Is the SuperLink there, and is it the right one? What the doctor finds, and what a run must not begin without.

Flower's own message for a certificate that is not trusted is "please check your network connection".
"""

import urllib.request
from pathlib import Path

from fedkd.deploy import checks, facts
from fedkd.deploy.checks import Finding
from fedkd.deploy.facts import Link
from fedkd.deploy.transport import Address
from fedkd.errors import RunError, UserError


def findings_of(address: Address, link: Link) -> list[Finding]:
    """Return what a SuperLink shows of itself as findings: whether it answers, its certificate, its clock."""
    found = [checks.superlink(str(address), link.error, link.tls, address.is_loopback)]
    if link.tls:
        found.append(checks.certificate(link.days_left, link.untrusted))
    if link.error is not None or link.ahead is None:
        return [*found, checks.clock(None, unknown="first mend the way to the SuperLink, then look again")]
    return [*found, checks.clock(link.ahead, link.uncertain)]


def expect_trusted(address: Address, root_certificates: Path | None) -> None:
    """Connect to a SuperLink once, for seconds at most, and refuse one that Flower would not talk to.

    Where a proxy stands between, nothing is looked at: Flower finds its own way through it.

    Args:
        address: of the SuperLink.
        root_certificates: PEM file of whom to trust; None for plain text.

    Raises:
        UserError: the file or the address given is not that of this SuperLink, or TLS stands against plain text.
        RunError: nobody answers, or the certificate has expired.
    """
    if _by_proxy(address.host, "http" if root_certificates is None else "https"):
        return
    link = facts.look_at_superlink(address, root_certificates)
    if link.error is not None:
        raise RunError(_line(checks.superlink(str(address), link.error, link.tls, address.is_loopback)))
    if root_certificates is None:
        if link.tls:
            raise UserError(f"{address}: expected plain text, found TLS; give --root-certificates ca.crt.")
        return
    if not link.tls:
        raise UserError(
            f"{address}: expected TLS, since --root-certificates is given, found plain text; start the SuperLink with "
            "its certificate (start.sh in superlink/ does)."
        )
    certificate = checks.certificate(link.days_left, link.untrusted)
    if certificate.verdict == "fail":
        expired = link.days_left is not None and link.days_left < 0
        raise (RunError if expired else UserError)(f"{address}: its certificate: {_line(certificate)}")


def _line(finding: Finding) -> str:
    return f"{finding.found}; {finding.advice}"


def _by_proxy(host: str, scheme: str) -> bool:
    """Whether Flower's client would go through a proxy, which answers in the SuperLink's place."""
    return bool({scheme, "all"} & urllib.request.getproxies().keys()) and not urllib.request.proxy_bypass(host)
