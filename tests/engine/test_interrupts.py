"""Being told to stop: by whatever signal, in order, and not in the middle of what has to end first."""

import os
import signal
import threading
import time

import pytest

from fedkd.engine.interrupts import interrupts_wait, stop_in_order

ALL = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


@pytest.fixture(autouse=True)
def handlers():
    """Put the signals' handlers back."""
    before = {number: signal.getsignal(number) for number in ALL}
    yield
    for number, handler in before.items():
        signal.signal(number, handler)


def interrupt(number: int) -> None:
    os.kill(os.getpid(), number)
    time.sleep(0.05)  # in which Python handles it


@pytest.mark.parametrize("number", ALL)
def test_every_end_is_an_interrupt(number):
    stop_in_order()

    with pytest.raises(KeyboardInterrupt):
        interrupt(number)


def test_a_program_started_by_nohup_does_not_hear_of_the_end_of_its_session():
    signal.signal(signal.SIGHUP, signal.SIG_IGN)

    stop_in_order()
    interrupt(signal.SIGHUP)

    assert signal.getsignal(signal.SIGHUP) is signal.SIG_IGN


def interrupted(numbers: list[int]) -> list[int]:
    """Be interrupted by one signal after the other; return those after which it went on, if it ended by one."""
    done = []
    try:
        with interrupts_wait():
            for number in numbers:
                interrupt(number)
                done.append(number)
    except KeyboardInterrupt:
        return done
    raise AssertionError("nobody was told of the interrupt")


@pytest.mark.parametrize("number", ALL)
def test_an_interrupt_waits_for_the_end(number):
    stop_in_order()

    assert interrupted([number]) == [number]
    assert [signal.getsignal(each) for each in ALL] == [signal.default_int_handler] * 3


def test_a_second_interrupt_does_not_wait():
    stop_in_order()

    assert interrupted([signal.SIGINT, signal.SIGTERM]) == [signal.SIGINT]


def test_without_an_interrupt_nothing_happens():
    with interrupts_wait():
        done = True

    assert done
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler


def test_a_thread_that_gets_no_signals_is_let_through():
    found = []

    def inside() -> None:
        with interrupts_wait():
            found.append("inside")

    thread = threading.Thread(target=inside)
    thread.start()
    thread.join()

    assert found == ["inside"]
