"""Being told to stop: Ctrl-C, ``kill``, and the end of the terminal's session are one and the same."""

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType


def stop_in_order() -> None:
    """Let SIGTERM and SIGHUP end the program as Ctrl-C does, so that everything started is also stopped.

    A program that was told to ignore SIGHUP (``nohup``) goes on ignoring it.
    """
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    if hasattr(signal, "SIGHUP") and signal.getsignal(signal.SIGHUP) is not signal.SIG_IGN:  # none on Windows
        signal.signal(signal.SIGHUP, signal.default_int_handler)


@contextmanager
def interrupts_wait() -> Iterator[None]:
    """Let the first interrupt wait for the end of what is done inside; a second one does not wait.

    Raises:
        KeyboardInterrupt: at the end, if there was one.
    """
    if threading.current_thread() is not threading.main_thread():  # which alone gets signals
        yield
        return
    came: list[int] = []

    def note(number: int, frame: FrameType | None) -> None:
        came.append(number)
        if len(came) > 1:
            raise KeyboardInterrupt

    before = {number: signal.getsignal(number) for number in _interrupts()}
    try:
        for number in before:
            signal.signal(number, note)
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
    if came:
        raise KeyboardInterrupt


def _interrupts() -> list[int]:
    """Return the signals that now raise KeyboardInterrupt."""
    return [number for number in signal.valid_signals() if signal.getsignal(number) is signal.default_int_handler]
