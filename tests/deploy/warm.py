"""Client halves that start warm: processes forked from one that has imported torch, Flower and fedkd already.

A SuperNode starts a program ``flwr-clientapp`` for every message, and most of the time of a test would go by while it
imports torch. :func:`program` writes one of the same name that asks the process of :func:`serve` for a fork of itself,
with its own arguments, environment, folder, output and network namespace. Linux only.
"""

import contextlib
import ctypes
import json
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from pathlib import Path

PROGRAM = """#!{python} -IS
import json, os, socket, sys
with socket.socket(socket.AF_UNIX) as server:
    server.connect({address!r})
    about = json.dumps([sys.argv, dict(os.environ), os.getcwd()]).encode()
    space = os.open("/proc/self/ns/net", os.O_RDONLY)
    socket.send_fds(server, [len(about).to_bytes(4, "big")], [1, 2, space])
    server.sendall(about)
    sys.exit(int(server.makefile().read() or 1))
"""


def start(folder: Path) -> subprocess.Popen[bytes]:
    """Start the process to be forked; return when it is ready, with ``folder/bin/flwr-clientapp`` as the program."""
    address, program = folder / "socket", folder / "bin" / "flwr-clientapp"
    program.parent.mkdir()
    program.write_text(PROGRAM.format(python=sys.executable, address=str(address)), encoding="utf-8")
    program.chmod(0o755)
    env = {**os.environ, "PYTHONPATH": str(Path(__file__).resolve().parents[2])}
    process = subprocess.Popen([sys.executable, __file__, str(address)], env=env)
    deadline = time.monotonic() + 120
    while not address.exists():
        assert process.poll() is None, "the process to be forked has ended"
        assert time.monotonic() < deadline, "the process to be forked did not get ready"
        time.sleep(0.1)
    return process


def serve(address: str) -> None:
    """Fork for every program that asks, for ever."""
    from flwr.supernode.cli.flwr_clientapp import flwr_clientapp

    import fedkd.app.flower

    assert fedkd.app.flower.client_app
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)  # nobody waits for them: they tell their programs how they ended
    with socket.socket(socket.AF_UNIX) as door:
        door.bind(address + ".new")
        door.listen(64)
        os.rename(address + ".new", address)
        while True:
            caller, _ = door.accept()
            if os.fork() == 0:
                door.close()
                os._exit(_become(caller, flwr_clientapp))
            caller.close()


def _become(caller, main) -> int:
    """Be the program that has called; tell it at last what it is to exit with."""
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    length, (out, err, space), *_ = socket.recv_fds(caller, 4, 3)
    argv, environment, folder = json.loads(caller.makefile("rb").read(int.from_bytes(length, "big")))
    assert ctypes.CDLL(None).setns(space, 0) == 0 or os.geteuid() != 0
    threading.Thread(target=_die_with, args=(caller,), daemon=True).start()
    os.dup2(out, 1)
    os.dup2(err, 2)
    os.environ.clear()
    os.environ.update(environment)
    os.chdir(folder)
    sys.argv = argv
    code = 0
    try:
        main()
    except SystemExit as ended:
        code = ended.code if isinstance(ended.code, int) else int(ended.code is not None)
    except BaseException:
        sys.excepthook(*sys.exc_info())
        code = 1
    sys.stdout.flush()
    sys.stderr.flush()
    caller.sendall(str(code).encode())
    return code


def _die_with(caller) -> None:
    """End when the program that has called is killed: it is the one that others see."""
    with contextlib.suppress(OSError):
        caller.recv(1)  # it says no more
    os._exit(1)


if __name__ == "__main__":
    serve(sys.argv[1])
