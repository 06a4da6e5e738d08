"""Facts are found on this very machine, and on servers that the tests start."""

import contextlib
import http.server
import itertools
import os
import shutil
import socket
import ssl
import threading
from collections.abc import Callable, Iterator
from datetime import timedelta
from email.utils import formatdate

import numpy as np
import pytest

from fedkd.deploy import facts
from fedkd.deploy.keys import make_authority, make_server, utc_now
from fedkd.deploy.transport import Address
from fedkd.errors import UserError

HOST = "127.0.0.1"


class Quiet(http.server.BaseHTTPRequestHandler):
    behind = 0.0

    def do_HEAD(self):
        self.send_response_only(404)
        self.send_header("Date", formatdate(facts.time.time() - self.behind, usegmt=True))
        self.end_headers()


@contextlib.contextmanager
def serving(context=None, behind=0.0):
    server = http.server.ThreadingHTTPServer((HOST, 0), type("Late", (Quiet,), {"behind": behind}))
    if context is not None:
        server.socket = context.wrap_socket(server.socket, server_side=True, do_handshake_on_connect=False)
    server.handle_error = lambda *about: None  # a client that distrusts us hangs up
    thread = threading.Thread(target=server.serve_forever, args=(0.01,))
    thread.start()
    try:
        yield Address(HOST, server.server_address[1])
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


@pytest.fixture
def tls(tmp_path):
    """Return a function that makes a server's context, and the authority's file."""
    authority = make_authority(utc_now())
    (tmp_path / "ca.crt").write_bytes(authority.public)

    def context(names=("127.0.0.1",), since=timedelta(0), days=100):
        pair = make_server(authority, names, utc_now() + since, days)
        (tmp_path / "server.pem").write_bytes(pair.public + pair.private)
        made = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        made.load_cert_chain(tmp_path / "server.pem")
        return made

    return context, tmp_path / "ca.crt"


def test_a_trusted_superlink(tls):
    context, authority = tls
    with serving(context()) as address:
        link = facts.look_at_superlink(address, authority)

    assert (link.error, link.tls, link.untrusted) == (None, True, None)
    assert 99.9 < link.days_left <= 100


@pytest.mark.parametrize("behind", [0.0, 60.0, -60.0])
def test_the_clock_is_measured_to_a_second_or_two(behind):
    with serving(behind=behind) as address:
        link = facts.look_at_superlink(address, None)

    assert not link.tls
    assert abs(link.ahead - behind) <= link.uncertain + 0.1
    assert 1 <= link.uncertain < 3


def test_an_untrusted_one_is_still_looked_at(tls):
    context, _ = tls
    with serving(context()) as address:
        link = facts.look_at_superlink(address, None)

    assert link.tls
    assert "unable to get local issuer certificate" in link.untrusted
    assert link.days_left > 99
    assert link.ahead is not None


def test_an_expired_one(tls):
    context, authority = tls
    with serving(context(since=timedelta(days=-12), days=10)) as address:
        link = facts.look_at_superlink(address, authority)

    assert "expired" in link.untrusted
    assert -2.1 < link.days_left < -1.9


def test_nobody_there():
    with socket.socket() as probe:
        probe.bind((HOST, 0))
        port = probe.getsockname()[1]

    assert facts.look_at_superlink(Address(HOST, port), None).error == "Connection refused"


@contextlib.contextmanager
def answering(answer: Callable[[socket.socket, int], object]) -> Iterator[Address]:
    """Listen, and let every connection be answered so; it is given its number too."""
    over = threading.Event()
    with socket.create_server((HOST, 0)) as server:

        def serve() -> None:
            for number in itertools.count():
                with contextlib.suppress(OSError), server.accept()[0] as peer:
                    answer(peer, number)
                if over.is_set():
                    return

        thread = threading.Thread(target=serve)
        thread.start()
        try:
            yield Address(HOST, server.getsockname()[1])
        finally:
            over.set()
            server.shutdown(socket.SHUT_RDWR)
            thread.join()


def shake_hands(context: ssl.SSLContext, peer: socket.socket) -> None:
    with context.wrap_socket(peer, server_side=True):
        pass


def test_what_is_no_superlink_is_not_called_one_in_plain_text():
    def ssh(peer: socket.socket, number: int) -> None:
        peer.sendall(b"SSH-2.0-OpenSSH_9\r\n")
        peer.recv(1000)

    with answering(ssh) as address:
        link = facts.look_at_superlink(address, None)

    assert "no SuperLink, neither with TLS nor without" in link.error


def test_a_failed_handshake_is_not_plain_text():
    without_a_certificate = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)

    with answering(lambda peer, number: shake_hands(without_a_certificate, peer)) as address:
        link = facts.look_at_superlink(address, None)

    assert "no SuperLink, neither with TLS nor without" in link.error


def test_one_that_goes_away_before_the_second_look_is_an_answer_too(tls):
    context = tls[0]()

    def once(peer: socket.socket, number: int) -> None:
        if number == 0:
            shake_hands(context, peer)

    with answering(once) as address:
        link = facts.look_at_superlink(address, None)

    assert link.error


@pytest.mark.parametrize("text", [None, "no certificate"])
def test_a_file_that_is_no_certificate_is_a_mistake(tmp_path, text):
    path = tmp_path / "ca.crt"
    if text is not None:
        path.write_text(text)

    with pytest.raises(UserError, match=r"--root-certificates: expected a PEM file such as ca\.crt"):
        facts.look_at_superlink(Address(HOST), path)


def test_who_listens_on_a_port():
    with socket.create_server((HOST, 0)) as server:
        port = server.getsockname()[1]
        assert f"process {os.getpid()}" in facts.listener(port)

    assert facts.listener(port) is None


def test_packages():
    assert facts.look_at_package("numpy") == (np.__version__, None)
    assert facts.look_at_package("no-such-package") == (None, None)


def test_a_package_that_cannot_be_imported_says_why(tmp_path, monkeypatch):
    (tmp_path / "broken_one.py").write_text("raise RuntimeError('first line\\nlast line')")
    (tmp_path / "broken_one-1.2.dist-info").mkdir()
    (tmp_path / "broken_one-1.2.dist-info" / "METADATA").write_text("Name: broken_one\nVersion: 1.2\n")
    monkeypatch.syspath_prepend(tmp_path)

    assert facts.look_at_package("broken_one") == ("1.2", "last line")


def test_sizes_are_those_of_this_machine():
    available, total = facts.memory()

    assert 0 < available <= total <= os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    assert 1 <= facts.cpus() <= os.cpu_count()
    free = facts.shared_memory()
    assert free is None or 0 <= free <= shutil.disk_usage("/dev/shm").total  # noqa: S108
    assert facts.open_files() is None or facts.open_files() > 0


def test_data_is_loaded_and_described(tmp_path):
    np.savez(tmp_path / "own.npz", labels=np.arange(20) % 2, sensor=np.zeros((20, 3)), other=np.ones((20, 4, 5)))

    assert facts.look_at_data(str(tmp_path / "own.npz")) == (
        "20 samples, 2 classes, views other (4, 5), sensor (3,)",
        None,
    )
    found, error = facts.look_at_data(str(tmp_path / "none.npz"))
    assert found is None
    assert "none.npz" in error
