"""Machines for tests: network namespaces with addresses of their own, joined by a bridge; or loopback for all."""

import contextlib
import os
import shutil
import subprocess
from collections.abc import Sequence
from itertools import count

_NUMBERS = count()


class Loopback:
    """All programs on this machine."""

    apart = False

    def address(self, machine: str) -> str:
        """Return the address of a machine."""
        return "127.0.0.1"

    def prefix(self, machine: str) -> list[str]:
        """Return what a command on a machine starts with."""
        return []

    def remove(self) -> None:
        """Leave nothing behind."""


class Namespaces:
    """A network namespace for every machine; the first one, the SuperLink's, holds the bridge."""

    apart = True

    def __init__(self, machines: Sequence[str]) -> None:
        """Make them.

        Raises:
            PermissionError: this user may not.
        """
        self._machines, self._name = list(machines), f"fk{os.getpid()}-{next(_NUMBERS)}"
        try:
            for machine in machines:
                _ip("netns", "add", self._space(machine))
                self._in(machine, "link", "set", "lo", "up")
            first = machines[0]
            self._in(first, "link", "add", "br0", "type", "bridge")
            self._in(first, "address", "add", f"{self.address(first)}/24", "dev", "br0")
            self._in(first, "link", "set", "br0", "up")
            for number, machine in enumerate(machines[1:], 1):
                self._join(machine, f"v{number}")
        except BaseException:
            self.remove()
            raise

    def address(self, machine: str) -> str:
        """Return the address of a machine."""
        return f"10.77.0.{1 + self._machines.index(machine)}"

    def prefix(self, machine: str) -> list[str]:
        """Return what a command on a machine starts with."""
        return ["ip", "netns", "exec", self._space(machine)]

    def carried(self, machine: str) -> tuple[int, int]:
        """Return how many bytes a machine has received and sent so far, with all headers below TLS."""
        table = subprocess.run(
            [*self.prefix(machine), "cat", "/proc/net/dev"], check=True, capture_output=True, text=True
        ).stdout
        [line] = [line for line in table.splitlines() if line.strip().startswith("eth0:")]
        numbers = line.partition(":")[2].split()
        return int(numbers[0]), int(numbers[8])

    def remove(self) -> None:
        """Remove the namespaces; with them goes all that is in them."""
        for machine in self._machines:
            with contextlib.suppress(PermissionError):
                _ip("netns", "delete", self._space(machine))

    def _join(self, machine: str, port: str) -> None:
        first = self._machines[0]
        peer = ("peer", "name", "eth0", "netns", self._space(machine))
        self._in(first, "link", "add", port, "type", "veth", *peer)
        self._in(first, "link", "set", port, "master", "br0", "up")
        self._in(machine, "address", "add", f"{self.address(machine)}/24", "dev", "eth0")
        self._in(machine, "link", "set", "eth0", "up")

    def _in(self, machine: str, *arguments: str) -> None:
        _ip("-netns", self._space(machine), *arguments)

    def _space(self, machine: str) -> str:
        return f"{self._name}-{machine}"


def machines(names: Sequence[str]) -> Loopback | Namespaces:
    """Return namespaces where they are permitted, and loopback elsewhere."""
    if shutil.which("ip") is None:
        return Loopback()
    try:
        return Namespaces(names)
    except PermissionError:
        return Loopback()


def _ip(*arguments: str) -> None:
    done = subprocess.run([str(shutil.which("ip")), *arguments], check=False, capture_output=True, text=True)
    if done.returncode:
        raise PermissionError(f"ip {' '.join(arguments)}: {done.stderr.strip()}")
