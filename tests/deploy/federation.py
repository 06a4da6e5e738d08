"""A federation of real processes: a SuperLink and nodes with samples of their own, by TLS and keys."""

import contextlib
import os
import shutil
import subprocess
import sys
import sysconfig
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import fedkd
from fedkd.config import Experiment
from fedkd.data.dividing import divide
from tests.deploy import warm
from tests.deploy.conftest import LISTENS, Deployment, Started
from tests.deploy.network import machines


class Federation(Deployment):
    """What ``fedkd deploy init`` and ``fedkd deploy split`` made of a simulation, and the programs that run from it."""

    def __init__(self, folder: Path, experiment: Experiment, network) -> None:
        self.clients = [f"client-{number}" for number in range(experiment.federation.clients)]
        super().__init__(folder, self.clients, network)
        self.files = folder / "files"
        self.hand_out(experiment)

    def hand_out(self, experiment: Experiment) -> None:
        """Divide an experiment anew: every node gets its samples."""
        shutil.rmtree(self.files, ignore_errors=True)
        for key, config in divide(experiment, self.files).items():
            shutil.copy(config, self.folder / key / "node.toml")

    def start_nodes(self, **special: dict[str, str]) -> None:
        """Start all nodes, some with an environment of their own, and wait until they are let in."""
        self.nodes = {key: self.script(f"{key}/start.sh", **special.get(key, {})) for key in self.clients}
        for node in self.nodes.values():
            node.wait_for("SuperNode ID: ")

    def restart_nodes(self, experiment: Experiment, **special: dict[str, str]) -> None:
        """Give all nodes the samples of another experiment: a node reads its configuration when it starts."""
        for node in self.nodes.values():
            node.stop()
        self.hand_out(experiment)
        self.start_nodes(**special)

    def other_code(self, folder: Path) -> dict[str, str]:
        """Return the environment of a node that runs other code: a copy of ours with one comment more."""
        source = Path(fedkd.__file__).parents[1]
        for package in ("fedkd", "strategies"):
            shutil.copytree(source / package, folder / package, ignore=shutil.ignore_patterns("__pycache__"))
        with (folder / "fedkd" / "averaging.py").open("a", encoding="utf-8") as file:
            file.write("# another version\n")
        own = os.pathsep.join([sysconfig.get_path("scripts"), os.environ["PATH"]])  # its client half starts cold
        return {"PYTHONPATH": str(folder), "PATH": own}

    def run(self, out: Path, *options: str, folder: Path | None = None) -> Started:
        """Let the operator run the experiment, from a folder; return the command when it has ended."""
        started = self.begin(out, *options, folder=folder)
        started.process.wait(900)
        return started

    def begin(self, out: Path, *options: str, folder: Path | None = None) -> Started:
        """Let the operator run the experiment, and do not wait."""
        certificates = ["--root-certificates", str(self.folder / "operator" / "ca.crt")]
        where = ["--superlink", self.address, *certificates, "--out", str(out)]
        command = [sys.executable, "-m", "fedkd", "deploy", "run", str(self.files / "experiment.toml"), *where]
        return self.start([*command, *options], machine="operator", folder=folder, no_proxy="*")

    def start_until_let_in(self, key: str) -> None:
        """Start a node that was killed, again and again: Flower refuses it while the dead one counts as online."""
        deadline = time.monotonic() + 300
        while True:
            self.nodes[key] = node = self.script(f"{key}/start.sh")
            with contextlib.suppress(AssertionError):
                node.wait_for("SuperNode ID: ")
                return
            assert "[code: 2004]" in node.said, node.said
            assert time.monotonic() < deadline, node.said


@contextmanager
def warm_programs() -> Iterator[list[str]]:
    """Start what client halves are forked from, unless ``FEDKD_COLD`` is set; yield folders of programs for nodes."""
    if os.environ.get("FEDKD_COLD") or sys.platform != "linux":
        yield []
        return
    with tempfile.TemporaryDirectory(prefix="fk") as folder:
        process: subprocess.Popen[bytes] = warm.start(Path(folder))
        try:
            yield [str(Path(folder) / "bin")]
        finally:
            process.kill()
            process.wait()


@contextmanager
def federation(folder: Path, experiment: Experiment) -> Iterator[Federation]:
    """Start a SuperLink that knows the nodes' keys, on machines of their own; afterwards nothing is left."""
    clients = [f"client-{number}" for number in range(experiment.federation.clients)]
    network = machines(["superlink", "operator", *clients])
    try:
        here = Federation(folder, experiment, network)
        try:
            here.script("superlink/start.sh").wait_for(LISTENS)
            registered = here.script("operator/register.sh")
            assert registered.ended() == 0, registered.said
            yield here
        finally:
            here.stop()
    finally:
        network.remove()
