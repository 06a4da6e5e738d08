"""What each machine of a deployment gets, as texts: commands that Flower 1.41 understands, services, advice.

Scripts go to their own folder first, so that they work by hand, from systemd and from anywhere. Nothing here is secret.
"""

from collections.abc import Mapping
from typing import Final

from fedkd.deploy.plan import Plan
from fedkd.engine.commands import CONNECTION

HOME: Final = "/opt/fedkd"
"""Where the services expect ``venv`` (Python environment) and the machine's folder."""
SCRIPTS: Final = ("start.sh", "register.sh", "flwr.sh")

_ENVIRONMENT: Final = """\
cd "$(dirname "$0")"
umask 077                                               # models of private data are for this user's eyes alone
export FLWR_HOME="$PWD/flower"                          # Flower's own files stay in this folder
export FLWR_TELEMETRY_ENABLED=0 FLWR_DISABLE_UPDATE_CHECK=1  # nothing is sent to anyone else
export FLWR_DISABLE_RUNTIME_DEPENDENCY_INSTALLATION=1   # no `uv sync` at every run
export RAY_USAGE_STATS_ENABLED=0 PYTHONUNBUFFERED=1
export OMP_NUM_THREADS="${OMP_NUM_THREADS:-1}" MKL_NUM_THREADS="${MKL_NUM_THREADS:-1}"  # same bits everywhere
export no_proxy="localhost,127.0.0.1,::1${no_proxy:+,$no_proxy}"  # Flower also talks to itself
"""

_NEEDS: Final = """
command -v {program} > /dev/null ||
    {{ echo "no {program} in PATH: activate the environment in which fedkd is" >&2; exit 127; }}
"""

_SUPERLINK: Final = """\
#!/bin/sh
# Starts the SuperLink; ends with Ctrl-C or SIGTERM.
set -eu
{environment}
exec flower-superlink --host {bind} --port {port} \\
    --ssl-ca-certfile ca.crt --ssl-certfile server.crt --ssl-keyfile server.key \\
    --enable-supernode-auth --database superlink.sqlite
"""

_SUPERNODE: Final = """\
#!/bin/sh
# Starts the SuperNode {name}; ends with Ctrl-C or SIGTERM.
# A second SuperNode on one machine needs another port for itself: RUNTIME_PORT=9095 sh start.sh
set -eu
{environment}
exec flower-supernode --superlink {superlink} --root-certificates ca.crt \\
    --auth-supernode-private-key node.key --port "${{RUNTIME_PORT:-9094}}" --node-config node.toml
"""

_CONNECT: Final = """\
mkdir -p flower
cat > flower/config.toml <<END
[superlink]
default = "{connection}"

[superlink.{connection}]
address = "{superlink}"
root-certificates = "$PWD/ca.crt"
END
"""
"""Written anew at every start: Flower wants an absolute path, which is another one on every machine."""

_REGISTER: Final = """\
#!/bin/sh
# Registers the public keys in nodes/ at the running SuperLink; with names, only these: sh register.sh hospital-a
# A key that is registered already is skipped, so it does no harm to start it again.
set -eu
{environment}
{connect}
[ $# -gt 0 ] || set -- $(cd nodes && ls *.pub)
failed=""
for key in "$@"; do
    name="$(basename "$key" .pub)"
    if said="$(flwr supernode register "nodes/$name.pub" {connection} --name "$name" 2>&1)"; then
        echo "$name: $(echo "$said" | tail -n 1)"
    else
        case "$said" in
        *"[code: 23]"*) echo "$name: registered before; a key that was unregistered stays out (add-node --new-key)" ;;
        *) echo "$said" >&2; failed="$failed $name" ;;
        esac
    fi
done
[ -z "$failed" ] || {{ echo "not registered now (see above):$failed" >&2; exit 1; }}
flwr supernode list {connection}
"""

_FLWR: Final = """\
#!/bin/sh
# Flower's command line with the connection of this folder, for example: sh flwr.sh list {connection}
set -eu
{environment}
{connect}
exec flwr "$@"
"""

_NODE_CONFIG: Final = """\
# What this node says of itself. The first three are needed, the others where you take the # away.
# Paths are absolute or begin in this folder. The service reads anywhere, and writes into this folder only.
client = "{name}"
data = "own.npz"              # its own samples: an .npz file, or a folder of images or recordings
store = "state"               # folder in which its models are kept between rounds
# view = "image"              # how it sees its samples, if the experiment has several views
# architecture = "cnn"        # its model, if the experiment has several
# device = "cuda"             # where it computes; else as the experiment says
# commons = "commons.npz"     # where this machine has the commons; else where the experiment says
# afresh = "NAME-OF-A-RUN"    # a run in which its client begins anew, because its state was lost
# partition-id = {number}            # which client it is in an experiment that deals samples out (not for deploy run)
"""

_SERVICE: Final = """\
[Unit]
Description=fedkd {role}
Wants=network-online.target
After=network-online.target
StartLimitIntervalSec=0

[Service]
User=fedkd
Group=fedkd
WorkingDirectory={home}/{folder}
Environment=PATH={home}/venv/bin:/usr/local/bin:/usr/bin:/bin HOME={home}/{folder}
ExecStart=/bin/sh {home}/{folder}/start.sh
Restart={restart}
RestartSec=10
TimeoutStopSec=30
UMask=0077
LimitNOFILE=65536
NoNewPrivileges=yes
ProtectSystem=strict
ReadWritePaths={home}/{folder}
ProtectHome=read-only
PrivateTmp=yes
ProtectKernelTunables=yes
ProtectKernelModules=yes
ProtectControlGroups=yes
RestrictSUIDSGID=yes
LockPersonality=yes
CapabilityBoundingSet=
# Left open on purpose: devices (GPUs), and memory that is both written and executed (torch compiles).

[Install]
WantedBy=multi-user.target
"""

_INSTALL: Final = """\
As a service (Linux with systemd), as root:
    useradd --system --home-dir {home} --shell /usr/sbin/nologin fedkd
    python3 -m venv {home}/venv && {home}/venv/bin/pip install -c FEDKD_CHECKOUT/constraints.txt FEDKD_CHECKOUT
    cp -r . {home}/{folder} && chown -R fedkd:fedkd {home}/{folder} && chmod 700 {home}/{folder}
    cp {service} /etc/systemd/system/ && systemctl daemon-reload
    systemctl enable --now {service}
    journalctl -u {service} -f
"""

_PATHS: Final = """
Flower's programs must be in PATH: install fedkd (pip install -c FEDKD_CHECKOUT/constraints.txt FEDKD_CHECKOUT, the same
checkout on every machine), and activate its Python environment first; the service has its own.
The service may write into this folder only: for a `store` or --server-out elsewhere, add it to ReadWritePaths= in the
.service file.
"""


def superlink_files(plan: Plan) -> dict[str, str]:
    """Return the texts for the SuperLink's machine, by file name."""
    service = "fedkd-superlink.service"
    bind = _bind(plan)
    readme = f"""\
The SuperLink of this deployment: {plan.superlink}

By hand:     sh start.sh                 (fedkd doctor --folder . looks at this machine first)
It listens on {bind}, port {plan.superlink.port} (TCP).
Let only the machines of the nodes and the operator through the firewall: Flower serves them all on one port, and
whoever reaches it may register keys and start runs.

{_INSTALL.format(home=HOME, folder="superlink", service=service)}
ca.crt            shows everybody whom to trust; not secret
server.crt        the certificate, for {", ".join(plan.names)}
server.key        secret: stays on this machine
superlink.sqlite  appears here: registered nodes and runs; without it all nodes must be registered again
{_PATHS}"""
    return {
        "start.sh": _SUPERLINK.format(environment=_prepared("flower-superlink"), bind=bind, port=plan.superlink.port),
        service: _SERVICE.format(role="SuperLink", home=HOME, folder="superlink", restart="on-failure"),
        "README.txt": readme,
    }


def node_files(plan: Plan, name: str) -> dict[str, str]:
    """Return the texts for one node's machine, by file name."""
    service = f"fedkd-{name}.service"
    readme = f"""\
The SuperNode {name}, of the SuperLink {plan.superlink}

First:       edit node.toml, and bring the data and the commons to where it says that they are
Then:        fedkd doctor --folder .     says what is still missing here, and whether the SuperLink answers
By hand:     sh start.sh
It opens a connection to the SuperLink and needs no open port. The operator must have registered its key before.
A program of the operator's runs here, with the rights of the user who starts it, and sees what that user may read.

{_INSTALL.format(home=HOME, folder=name, service=service)}
ca.crt      shows whom to trust; not secret
node.key    secret: whoever has it can pass for {name}; it never leaves this machine
node.toml   what this node says of itself
{_PATHS}"""
    number = plan.nodes.index(name)
    # Always: a SuperNode that is refused because of its clock, or that lost its SuperLink, exits with 0.
    return {
        "start.sh": _SUPERNODE.format(environment=_prepared("flower-supernode"), name=name, superlink=plan.superlink),
        "node.toml": _NODE_CONFIG.format(name=name, number=number),
        service: _SERVICE.format(role=f"SuperNode {name}", home=HOME, folder=name, restart="always"),
        "README.txt": readme,
    }


def operator_files(plan: Plan, has_experiment: bool) -> dict[str, str]:
    """Return the texts for the machine from which runs are started; it may be the SuperLink's."""
    connect = _CONNECT.format(connection=CONNECTION, superlink=plan.superlink)
    experiment = "experiment.toml" if has_experiment else "EXPERIMENT.toml"
    readme = f"""\
For whoever starts runs at the SuperLink {plan.superlink}; this may be on the SuperLink's own machine.

1. Start the SuperLink (its folder says how).
2. sh register.sh            registers the nodes' public keys; again after `fedkd deploy add-node`, which does no harm
3. Start the SuperNodes (their folders say how).
4. sh flwr.sh supernode list {CONNECTION}    are all of them online?
5. fedkd deploy run {experiment} --superlink {plan.superlink} --root-certificates ca.crt

Flower's programs and fedkd must be in PATH: install fedkd
(pip install -c FEDKD_CHECKOUT/constraints.txt FEDKD_CHECKOUT), and activate its Python environment first.
If something does not work: fedkd doctor --folder .
sh flwr.sh supernode unregister ID {CONNECTION}    shuts a node out within seconds
sh flwr.sh run APP {CONNECTION}                    runs any other Flower app
"""
    return {
        "register.sh": _REGISTER.format(environment=_prepared("flwr"), connect=connect, connection=CONNECTION),
        "flwr.sh": _FLWR.format(environment=_prepared("flwr"), connect=connect, connection=CONNECTION),
        "README.txt": readme,
    }


def overview(plan: Plan, expires: str) -> str:
    """Return the text that explains the whole folder.

    Args:
        plan: the deployment.
        expires: date on which the server's certificate ends.
    """
    lines: Mapping[str, str] = {
        "ca/": "secret: take ca.key offline (a stick in a safe); it is needed again only for `fedkd deploy renew`",
        "superlink/": f"to the machine of {plan.superlink.host}",
        "operator/": "to the machine from which runs are started (it may be the same one)",
        **{f"{name}/": f"to the machine of {name}, and nowhere else" for name in plan.nodes},
    }
    width = max(map(len, lines))
    return "\n".join(
        [
            f"A deployment of fedkd. The SuperLink is {plan.superlink}; its certificate ends on {expires}.",
            "Bring each folder to its machine by a way that nobody reads along (scp, a stick). Then delete superlink/",
            "and the nodes' folders here; operator/ and deployment.toml are what `fedkd deploy add-node` needs.",
            "",
            *(f"{name:{width}}  {what}" for name, what in lines.items()),
            "",
            "Each folder has a README.txt. Order: SuperLink, register.sh, SuperNodes, run.",
            "",
        ]
    )


def _prepared(program: str) -> str:
    """Return how a script begins that needs one of Flower's programs."""
    return _ENVIRONMENT + _NEEDS.format(program=program)


def _bind(plan: Plan) -> str:
    """Return what the SuperLink listens on: this machine only, or all addresses of the same family."""
    host = plan.superlink
    if host.is_loopback:
        return host.host if host.is_ip else "127.0.0.1"
    return "::" if ":" in host.host else "0.0.0.0"  # noqa: S104 - nodes come from other machines, over TLS
