"""What an operator is told, by the texts that real processes said (``test_refusals.py`` makes them say so anew)."""

import pytest
from flwr.app import ConfigRecord, Message, RecordDict

from fedkd.app.client import HELLO
from fedkd.app.introduction import agreed, introduction
from fedkd.app.roster import read_answers, roster_of
from fedkd.app.wire import HEADER
from fedkd.config import Experiment
from fedkd.data.federation import build
from fedkd.deploy.explain import RULES, explain, last_session, which
from fedkd.errors import RunError
from fedkd.flower_internals import ensure_task_identity
from fedkd.strategy.registry import create

NODE = """\
\x1b[92mINFO \x1b[0m:      Starting Flower SuperNode
{before}INFO:     Started server process [16774]
INFO:     Uvicorn running on http://127.0.0.1:19101 (Press CTRL+C to quit)
{after}
"""
EXIT = """\
\x1b[91mERROR \x1b[0m:     Exit Code: 305
Failed to initialize the connection to the SuperLink.
{}
The SuperNode could not establish a connection to the SuperLink.
"""
SUPERLINK = "\x1b[92mINFO \x1b[0m:      Starting Flower SuperLink\n{}\n"
UNVERIFIED = "[SSL: CERTIFICATE_VERIFY_FAILED] certificate verify failed: "
SYSTEM = "\x1b[92mINFO \x1b[0m:      Using system certificates for TLS connection\n"
INSECURE = "WARNING :   Option `--insecure` was set. Starting insecure channel to 127.0.0.1:18443.\n"
RETRY = "\x1b[93mWARNING \x1b[0m:   Connection attempt failed, retrying in 0.35 seconds\n"
ENDED = "\x1b[92mINFO \x1b[0m:      SuperNode terminated gracefully.\n"
KEY = "Attempted to register SuperNode with public key: b'-----BEGIN PUBLIC KEY-----\\nMHYw\\n', exception: "
UNKNOWN = f"ERROR :     [/v1/fleet/activate-node][ApiError:2004] {KEY}No SuperNode found with the given public key.\n"
REUSED = (
    f"ERROR :     [/v1/fleet/activate-node][ApiError:2004] {KEY}SuperNode with node ID 61 could not be activated.\n"
)
KEYLESS = (
    "ERROR :     [/v1/fleet/register-node][ApiError:2001] Attempted to register SuperNode with public key: b'-----'\n"
)
BACK = "INFO :      Connection successful after 5.94 seconds and 4 tries.\n"
FAILED_AND_SENT = (
    "INFO :      Receiving: query.hello message (ID: 7)\nERROR :     query.hello failed: client-1: no data\n"
    "INFO :      Sending: query.hello message (ID: 8)\nINFO :      Sent successfully\n"
)
ANSWERED = (
    "INFO :      Receiving: query.hello message (ID: 9)\n"
    "INFO :      Sending: query.hello message (ID: 10)\nINFO :      Sent successfully\n"
)
TWICE = "ERROR :     [/v1/control/register-node][ApiError:23] Public key already in use while registering node\n"
CLOCK = 'INFO [uvicorn.access] 10.0.0.9:37860 - "POST /v1/fleet/activate-node HTTP/1.1" 401\n'


TRACE = """\
\x1b[92mINFO \x1b[0m:      Starting Flower SuperNode
Traceback (most recent call last):
  File "venv/bin/flower-supernode", line 8, in <module>
{}
"""
CONFIG = "    node_config=parse_config_args(\n                ^^^^^^^^^^^^^^^^^^\n"
TAKEN = "[Errno 98] error while attempting to bind on address ('127.0.0.1', 9094): address already in use\n"


def node(after: str, before: str = "") -> str:
    return NODE.format(before=before, after=after)


SEEN = [
    ("no certificate", node(EXIT.format(UNVERIFIED + "unable to get local issuer certificate (_ssl.c:1006)"), SYSTEM)),
    ("wrong authority", node(EXIT.format(UNVERIFIED + "unable to get local issuer certificate (_ssl.c:1006)"))),
    ("expired", node(EXIT.format(UNVERIFIED + "certificate has expired (_ssl.c:1006)"))),
    ("expired", node(EXIT.format(UNVERIFIED + "certificate has expired (_ssl.c:1006)"), SYSTEM)),
    ("not yet valid", node(EXIT.format(UNVERIFIED + "certificate is not yet valid (_ssl.c:1006)"))),
    (
        "wrong name",
        node(EXIT.format(UNVERIFIED + "IP address mismatch, certificate is not valid for '10.0.0.8'. (_s)")),
    ),
    ("key refused", node(EXIT.format("[code: 2004] Failed to activate SuperNode."))),
    ("no key", node(EXIT.format("[code: 2001] SuperNode authentication is enabled. All SuperNodes must be"))),
    ("clock, at the SuperNode", node(ENDED)),
    ("clock, at the SuperNode", node(ENDED + "INFO : Starting Flower SuperExec\n" + RETRY)),
    ("key without TLS", node("ERROR :     Exit Code: 303\nInsecure connection is enabled, but", INSECURE)),
    ("plain text", node(RETRY * 3, INSECURE)),
    ("plain text", node(RETRY * 3 + ENDED, INSECURE)),
    ("nobody answers", node(RETRY * 3)),
    ("nobody answers", node(RETRY * 3 + ENDED)),
    ("unknown key", SUPERLINK.format(UNKNOWN)),
    ("reused key", SUPERLINK.format(REUSED)),
    ("no key, at the SuperLink", SUPERLINK.format(KEYLESS)),
    ("clock, at the SuperLink", SUPERLINK.format(CLOCK)),
    ("key registered twice", "flwr supernode register: [code: 23] Public key already in use\n"),
    ("let in no longer", node("INFO : SuperNode ID: 61\n" + ENDED)),
    ("let in no longer", node("INFO : SuperNode ID: 61\n" + 3 * RETRY + ENDED)),
    ("port of a SuperNode", node(f"ERROR:    {TAKEN}")),
    ("port of a SuperLink", SUPERLINK.format(f"2026-11-26T11:48:32.540Z ERROR [uvicorn.error] {TAKEN}")),
    ("address in use", f"ERROR:    {TAKEN}"),
    (
        "no ca.crt",
        "Starting Flower SuperNode\nERROR :     Path argument `--root-certificates` does not point to a file.",
    ),
    ("no key file", TRACE.format("FileNotFoundError: [Errno 2] No such file or directory: 'node.key'")),
    (
        "damaged key",
        "INFO :      Starting Flower SuperNode\nERROR :     Exit Code: 302\nUnable to parse the private key",
    ),
    ("no node.toml", TRACE.format(CONFIG + "FileNotFoundError: [Errno 2] No such file or directory: 'node.toml'")),
    ("wrong TOML", TRACE.format(CONFIG + "tomli._parser.TOMLDecodeError: Invalid value (at line 12, column 5)")),
    ("wrong value", TRACE.format(CONFIG + "ValueError: The value for key b needs to be of type `int`, `float`, ")),
    (
        "damaged ca.crt",
        node(
            "    verify.load_verify_locations(cadata=root_certificates.decode())\n"
            f"ssl.SSLError: no start line: cadata does not contain a certificate (_ssl.c:4020)\n{ENDED}"
        ),
    ),
    ("no file of the SuperLink", "Path argument `--ssl-keyfile` does not point to a file.\n"),
    ("no file of the SuperLink", SUPERLINK.format(CLOCK) + "Path argument `--ssl-keyfile` does not point to a file.\n"),
    (
        "certificate without its key",
        SUPERLINK.format("    ctx.load_cert_chain(certfile, keyfile, get_password)\nssl.SSLError: [SSL] PEM lib (_s)"),
    ),
]


@pytest.mark.parametrize(("name", "log"), SEEN)
def test_a_log_is_explained_in_one_line(name, log):
    line = explain(log)

    assert which(log) == name
    assert "\n" not in line
    assert "{" not in line
    assert line.split(":")[0].split(" at ")[0] in {"SuperNode", "SuperLink", "Operator", "This machine"}


def test_every_rule_fills_its_line_from_what_it_needs():
    for name, rule in RULES.items():
        fields = {part.partition("}")[0] for part in rule.line.split("{")[1:]}
        assert all(any(f"(?P<{field}>" in pattern for pattern in rule.needs) for field in fields), name


@pytest.mark.parametrize(
    ("log", "part"),
    [
        (SUPERLINK.format(REUSED), "the key of node 61"),
        (SUPERLINK.format(CLOCK), "SuperNode at 10.0.0.9:"),
        (
            node(EXIT.format(UNVERIFIED + "IP address mismatch, certificate is not valid for '10.0.0.8'. (_s)")),
            "10.0.0.8",
        ),
        (node(RETRY * 3, INSECURE), "plain text to 127.0.0.1:18443,"),
        (node(f"ERROR:    {TAKEN}"), "127.0.0.1:9094: stop it, or choose another port for this one: RUNTIME_PORT="),
        (SUPERLINK.format(TAKEN), "127.0.0.1:9094: stop it; for another port, change it in superlink/start.sh"),
        (
            TRACE.format(CONFIG + "TOMLDecodeError: Invalid value (at line 12, column 5)"),
            "(at line 12, column 5): mend",
        ),
        (TRACE.format("No such file or directory: 'node.key'"), "no node.key in its folder"),
        ("Path argument `--ssl-certfile` does not point to a file.", "the file of --ssl-certfile is not in"),
    ],
)
def test_the_line_names_who_it_is_about(log, part):
    assert part in explain(log)


@pytest.mark.parametrize(
    "log",
    [
        "",
        "nothing of ours",
        node("INFO : SuperNode ID: 61\n" + 3 * RETRY + BACK),
        node("INFO : SuperNode ID: 61\n" + FAILED_AND_SENT + ANSWERED),
        SUPERLINK.format(TWICE),
        SUPERLINK.format('INFO [uvicorn.access] 10.0.0.9:3 - "POST /v1/fleet/activate-node HTTP/1.1" 200'),
    ],
)
def test_what_is_well_or_unknown_is_not_explained(log):
    assert which(log) is None
    assert explain(log) is None


def test_what_is_over_is_no_explanation():
    begin = "INFO : SuperNode ID: 61\n"
    assert which(node(begin + FAILED_AND_SENT)) == "its client failed"
    assert which(node(begin + ANSWERED + FAILED_AND_SENT)) == "its client failed"
    assert which(node(begin + RETRY + BACK + FAILED_AND_SENT)) == "its client failed"
    assert which(node(begin + RETRY + BACK + RETRY)) == "lost the SuperLink"
    assert "ERROR" not in last_session(node(begin + FAILED_AND_SENT + ANSWERED))


def test_a_trouble_with_training_is_not_over_when_an_evaluation_is_answered():
    begin, train = "INFO : SuperNode ID: 61\n", FAILED_AND_SENT.replace("query.hello", "train")
    evaluated = ANSWERED.replace("query.hello", "evaluate")
    assert "client-1: no data" in explain(node(begin + 3 * (ANSWERED + train + evaluated)))
    assert which(node(begin + train + evaluated + ANSWERED.replace("query.hello", "train"))) is None


def test_what_a_log_says_moves_no_terminal():
    log = node("INFO : SuperNode ID: 61\n" + FAILED_AND_SENT.replace("no data", "\x1b]0;owned\x07"))
    assert explain(log).endswith("client-1:  ]0;owned ")


def test_only_the_last_start_counts():
    assert which(node(EXIT.format("[code: 2004] Failed")) + node("INFO : SuperNode ID: 61\n")) is None
    assert which(node("INFO : SuperNode ID: 61\n") + node(EXIT.format("[code: 2001] x"))) == "no key"


@pytest.mark.parametrize(
    ("said", "name"),
    [(UNKNOWN + CLOCK, "clock, at the SuperLink"), (CLOCK + UNKNOWN, "unknown key"), (CLOCK + REUSED, "reused key")],
)
def test_at_the_superlink_what_happened_last_counts(said, name):
    assert which(SUPERLINK.format(said)) == name


def test_a_supernode_that_lost_its_superlink_says_so():
    assert which(node("INFO : SuperNode ID: 61\n" + RETRY)) == "lost the SuperLink"


def test_what_a_client_could_not_do_is_said_again():
    log = node("INFO : SuperNode ID: 61\nquery.hello failed: client-1: a.npz: expected an .npz file, found none\n")

    assert explain(log) == (
        "SuperNode: its client could not do what it was asked for: client-1: a.npz: expected an .npz file, found none"
    )


def test_lines_of_a_journal_are_understood_too():
    journal = "".join(f"Nov 26 00:59 box fedkd[7]: {line}\n" for line in node(ENDED).splitlines())

    assert which(journal) == "clock, at the SuperNode"


def test_a_node_with_other_code_is_named():
    ensure_task_identity()
    experiment = Experiment(strategy="local")
    federation, strategy = build(experiment), create(experiment)
    common = agreed(experiment, federation, strategy)
    said = {**introduction(federation, strategy, "client-1"), **common, "code": "0" * 64}
    asked = Message(RecordDict(), dst_node_id=7, message_type=HELLO)
    reply = Message(RecordDict({HEADER: ConfigRecord(said)}), reply_to=asked)
    with pytest.raises(RunError) as refused:
        roster_of(read_answers([reply], common, federation, strategy), federation)

    assert which(str(refused.value)) == "other code"
    assert explain(str(refused.value)).startswith("SuperNode of client-1: it runs other code than the server")
