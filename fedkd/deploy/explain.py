"""What a log of Flower 1.41 means: one line that says what happened, on which machine, and what to do.

Flower's own messages are often silent about the cause: a SuperNode whose clock is off says that it "terminated
gracefully" and exits with 0, one that speaks plain text to a TLS port retries for ever. Every rule here was seen in the
log of real processes (``tests/deploy/test_refusals.py`` starts them).
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final

from fedkd.engine.commands import without_colours
from fedkd.wording import printable

_SUPERNODE: Final = "Starting Flower SuperNode"
_SUPERLINK: Final = "Starting Flower SuperLink"
_TAKEN: Final = r"error while attempting to bind on address \('(?P<host>[^']+)', (?P<port>\d+)"
_FAILED: Final = re.compile(r"(?:query\.hello|train|evaluate) failed: (?P<problem>[^\n]*)")
_FAILURE: Final = re.compile(rf"[^\n]*{_FAILED.pattern}")
_MESSAGE: Final = "Receiving: "
_OVER: Final = {"Connection attempt failed": "Connection successful"}
"""Troubles, and what is said when they are over."""
_VERIFY: Final = r"CERTIFICATE_VERIFY_FAILED\] certificate verify failed: "


@dataclass(frozen=True)
class Rule:
    """One thing that happens.

    Attributes:
        needs: patterns that must all be found; their named groups fill the line.
        lacks: patterns of which none may be found.
        line: the explanation.
    """

    needs: tuple[str, ...]
    line: str
    lacks: tuple[str, ...] = ()


RULES: Final[Mapping[str, Rule]] = {
    "no ca.crt": Rule(
        (
            _SUPERNODE,
            r"Path argument `--root-certificates` does not point to a file",
        ),
        "SuperNode: there is no ca.crt in its folder: bring it the ca.crt of this deployment (it is no secret; "
        "operator/ has it too), and start it again.",
    ),
    "no key file": Rule(
        (_SUPERNODE, r"No such file or directory: '(?P<path>[^'\n]+\.key)'"),
        "SuperNode: there is no {path} in its folder: bring it the one that `fedkd deploy init` made for it; if that "
        "is lost, give it a new one (`fedkd deploy add-node --new-key`).",
    ),
    "damaged key": Rule(
        (_SUPERNODE, "Exit Code: 302"),
        "SuperNode: its node.key is no private key: bring it the one that `fedkd deploy init` made for it; if that is "
        "lost, give it a new one (`fedkd deploy add-node --new-key`).",
    ),
    "no node.toml": Rule(
        (_SUPERNODE, r"parse_config_args(?s:.{0,9999}?)No such file or directory: '(?P<path>[^'\n]+)'"),
        'SuperNode: there is no {path} in its folder, the file that says whose node it is: docs/data.md, "Own data on '
        'every node", says what goes into it.',
    ),
    "wrong TOML": Rule(
        (_SUPERNODE, r"TOMLDecodeError: (?P<problem>[^\n]*)"),
        "SuperNode: its node.toml is no TOML: {problem}: mend that line (texts stand in quotation marks), and start it "
        "again.",
    ),
    "wrong value": Rule(
        (_SUPERNODE, r"ValueError: The value for key (?P<key>\S+) needs to be of type"),
        "SuperNode: in its node.toml the value of {key} is a list or a date: write a text in quotation marks, and "
        "start it again.",
    ),
    "damaged ca.crt": Rule(
        (_SUPERNODE, r"load_verify_locations(?s:.{0,9999}?)ssl\.SSLError"),
        "SuperNode: its ca.crt is no certificate: bring it the ca.crt of this deployment (it is no secret; operator/ "
        "has it too), and start it again.",
    ),
    "no file of the SuperLink": Rule(
        (r"Path argument `--ssl-(?P<option>ca-certfile|certfile|keyfile)` does not point to a file",),
        "SuperLink: the file of --ssl-{option} is not in its folder (ca.crt, server.crt and server.key are needed): "
        "bring it from where `fedkd deploy init` made it; ca.crt is the same one in operator/, and `fedkd deploy "
        "renew` makes the other two anew.",
    ),
    "certificate without its key": Rule(
        (_SUPERLINK, r"load_cert_chain(?s:.{0,9999}?)ssl\.SSLError"),
        "SuperLink: its server.crt and server.key do not belong together, or one is damaged: bring both from where "
        "`fedkd deploy init` or `renew` made them last, and start it again.",
    ),
    "no certificate": Rule(
        (_VERIFY + "unable to get local issuer", "Using system certificates"),
        "SuperNode: it knows only the public authorities, and the SuperLink's certificate is none of theirs: start it "
        "with --root-certificates ca.crt (start.sh in its folder does).",
    ),
    "wrong authority": Rule(
        (_VERIFY + "(unable to get local issuer|self-signed|self signed|certificate signature failure)",),
        "SuperNode: the SuperLink's certificate was not signed by this ca.crt: bring it the ca.crt of this deployment; "
        "if you did, somebody else answers at this address.",
    ),
    "expired": Rule(
        (_VERIFY + "certificate has expired",),
        "SuperLink: its certificate has expired (or this machine's clock is ahead): run `fedkd deploy renew` where "
        "ca.key is kept, bring the new server.crt and server.key to the SuperLink, and restart it.",
    ),
    "not yet valid": Rule(
        (_VERIFY + "certificate is not yet valid",),
        "SuperNode: its clock is behind the beginning of the SuperLink's certificate: set the clock (timedatectl "
        "set-ntp true), and start it again.",
    ),
    "wrong name": Rule(
        (_VERIFY + r"(?:Hostname|IP address) mismatch, certificate is not valid for '(?P<name>[^']+)'",),
        "SuperLink: its certificate does not name {name}, which the SuperNode calls it: use a name that it holds, or "
        "add {name} to `also` in deployment.toml, run `fedkd deploy renew`, and restart the SuperLink.",
    ),
    "unknown key": Rule(
        (r"ApiError:2004\].*No SuperNode found with the given public key",),
        "SuperLink: a SuperNode came whose key is not registered: if it is yours, run register.sh in operator/; the "
        "SuperNode goes on by itself.",
    ),
    "reused key": Rule(
        (r"ApiError:2004\].*SuperNode with node ID (?P<node>\d+) could not be activated",),
        "SuperLink: a SuperNode came with the key of node {node}, which is online: stop the other one, or give each "
        "its own key (`fedkd deploy add-node`); one that was killed is let in again after at most a minute.",
    ),
    "key refused": Rule(
        (r"\[code: 2004\]",),
        "SuperNode: the SuperLink does not take its key: it is not registered (run register.sh in operator/), or "
        "another SuperNode with this key is online, or was killed less than a minute ago; the SuperLink's log says "
        "which.",
    ),
    "no key": Rule(
        (r"\[code: 2001\]",),
        "SuperNode: it was started without a key, and the SuperLink asks for one: give --auth-supernode-private-key "
        "node.key (start.sh in its folder does).",
    ),
    "no key, at the SuperLink": Rule(
        (r"ApiError:2001\]",),
        "SuperLink: a SuperNode came without a key: start it with --auth-supernode-private-key node.key (start.sh in "
        "its folder does).",
    ),
    "key registered twice": Rule(
        (r"\[code: 23\]",),
        "Operator: this public key is registered already: nothing to do if it is the same node; two nodes need "
        "two keys, and so does a node that was unregistered (`fedkd deploy add-node --new-key`).",
    ),
    "clock, at the SuperLink": Rule(
        (r"(?P<peer>\S+):\d+ - \"POST /v1/fleet/[\w-]+ HTTP/1\.1\" 401",),
        "SuperNode at {peer}: the SuperLink refused its signature; its clock is more than 5 s ahead or more than 5 min "
        "behind (timedatectl set-ntp true), or its key was unregistered.",
    ),
    "clock, at the SuperNode": Rule(
        (_SUPERNODE, "SuperNode terminated gracefully"),
        "SuperNode: it ended before the SuperLink let it in; unless somebody stopped it, its clock is more than 5 s "
        "ahead or more than 5 min behind the SuperLink's: set it (timedatectl set-ntp true; `fedkd doctor` "
        "measures it).",
        lacks=(
            "SuperNode ID: ",
            r"Connection attempt failed(?s:.{0,9999}?)SuperNode terminated gracefully",
            "Exit Code",
        ),
    ),
    "key without TLS": Rule(
        ("Exit Code: 303",),
        "SuperNode: it has a key, but was told to speak plain text: replace --insecure by --root-certificates ca.crt.",
    ),
    "plain text": Rule(
        (r"Starting insecure channel to (?P<peer>\S+?)\.?\n", "Connection attempt failed"),
        "SuperNode: it speaks plain text to {peer}, where nobody understands it: replace --insecure by "
        "--root-certificates ca.crt; if the SuperLink has no TLS either, it is not running.",
        lacks=("SuperNode ID: ",),
    ),
    "other code": Rule(
        (r"(?P<client>[\w-]+): code: expected .* as the server has it",),
        "SuperNode of {client}: it runs other code than the server: install the same fedkd and the same strategies "
        "there, and leave no other copy where it is started.",
    ),
    "port of a SuperNode": Rule(
        (_SUPERNODE, _TAKEN),
        "SuperNode: another program, or another SuperNode, listens on {host}:{port}: stop it, or choose another port "
        "for this one: RUNTIME_PORT=9095 sh start.sh.",
    ),
    "port of a SuperLink": Rule(
        (_SUPERLINK, _TAKEN),
        "SuperLink: another program, or this SuperLink already, listens on {host}:{port}: stop it; for another port, "
        "change it in superlink/start.sh, in every node's start.sh, and in operator/register.sh and flwr.sh.",
    ),
    "address in use": Rule(
        (_TAKEN,),
        "This machine: another program listens on {host}:{port}: stop it, or start this one with another port.",
    ),
    "other Flower": Rule(
        ("Exit Code: 606",),
        "SuperNode: its version of Flower does not fit the SuperLink's: install the same one "
        "(pip install 'flwr[simulation]>=1.41,<1.42').",
    ),
    "let in no longer": Rule(
        (_SUPERNODE, "SuperNode ID: ", "SuperNode terminated gracefully"),
        "SuperNode: it was let in, and has ended: unless somebody stopped it here, its key was unregistered (then it "
        "needs a new one: `fedkd deploy add-node --new-key`), or its clock went wrong (`fedkd doctor` measures it).",
        lacks=("Exit Code",),
    ),
    "its client failed": Rule(
        (_FAILED.pattern,),
        "SuperNode: its client could not do what it was asked for: {problem}",
    ),
    "lost the SuperLink": Rule(
        (_SUPERNODE, "SuperNode ID: ", "Connection attempt failed"),
        "SuperLink: it was there and answers no longer: is it running? The SuperNode keeps trying.",
        lacks=("Exit Code",),
    ),
    "nobody answers": Rule(
        (_SUPERNODE, "Connection attempt failed"),
        "SuperLink: nobody answers at the address that this SuperNode was given: is it running, is the address right, "
        "does the firewall let the port through? The SuperNode keeps trying.",
        lacks=("SuperNode ID: ", "Exit Code"),
    ),
}
"""From the particular to the general: the first rule that fits explains."""


def explain(log: str) -> str | None:
    """Explain a log of a SuperLink, a SuperNode or the operator's command.

    Args:
        log: text, with colours or without.

    Returns:
        One line; None if nothing in it is known.

    Example:
        >>> print(explain("[code: 2001] SuperNode authentication is enabled."))
        SuperNode: it was started without a key, and the SuperLink asks for one: give --auth-supernode-private-key \
node.key (start.sh in its folder does).
    """
    text = last_session(log)
    name = which(text)
    if name is None:
        return None
    facts: dict[str, str] = {}
    for pattern in RULES[name].needs:
        facts |= [found.groupdict() for found in re.finditer(pattern, text)][-1]
    return RULES[name].line.format(**{fact: printable(words, 600) for fact, words in facts.items()})


def which(log: str) -> str | None:
    """Return the name of the rule that explains a log; None if none does.

    In a SuperLink's log, where many nodes speak, it is the rule of what happened last; else the most particular one.
    """
    text = last_session(log)
    fitting = [
        name
        for name, rule in RULES.items()
        if all(re.search(pattern, text) for pattern in rule.needs)
        and not any(re.search(pattern, text) for pattern in rule.lacks)
    ]
    if _SUPERLINK not in text:
        return fitting[0] if fitting else None
    return max(fitting, key=lambda name: _last_place(RULES[name].needs[-1], text), default=None)


def last_session(log: str) -> str:
    """Return what was said since the SuperNode or SuperLink was last started, without colours and what is over."""
    text = without_colours(log)
    text = text[max(0, text.rfind(_SUPERNODE), text.rfind(_SUPERLINK)) :]
    for trouble, over in _OVER.items():
        before, end, after = text.rpartition(over)
        text = f"{before.replace(trouble, '')}{end}{after}"
    return _forget_failures(text)


def _forget_failures(text: str) -> str:
    """Leave out what a client has failed at before a message of the same type that it has answered."""
    begin, *messages = text.split(_MESSAGE)
    answered: set[str] = set()
    for k, said in reversed(list(enumerate(messages))):
        kind = said.partition(" ")[0]
        if kind in answered:
            messages[k] = _FAILURE.sub("", said)
        elif "Sent successfully" in said and not _FAILED.search(said):
            answered.add(kind)
    return _MESSAGE.join([begin, *messages])


def _last_place(pattern: str, text: str) -> int:
    return max(found.start() for found in re.finditer(pattern, text))
