"""Run the client halves of many clients: one by one, or in lockstep so that equal requests are answered together.

A client half is ordinary Python for one client. It reaches the outside only by asking (``client.fit``,
``client.predict``, ...). One by one, each question is answered at once. In lockstep every client runs in a greenlet of
its own until it asks; equal questions are then answered in one vectorised call, and every client goes on.
"""

import logging
import os
import re
from collections import defaultdict
from collections.abc import Callable, Hashable, Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from functools import cache
from typing import Any, TypeVar

import torch

from fedkd.learner.cohort import answer_together
from fedkd.learner.fit import answer, is_of_memory
from fedkd.learner.requests import Answer, Ask, Fit, Request

LOG = logging.getLogger("fedkd")
T = TypeVar("T")
Program = Callable[[Ask], T]
Executor = Callable[[Sequence[Program[T]]], list["T | Exception"]]


@contextmanager
def _switches_as_usual() -> Iterator[None]:
    """Have gradients on, inference mode and autocast off: there is one switch of each for the thread of all clients."""
    with (
        torch.inference_mode(False),
        torch.enable_grad(),
        torch.autocast("cpu", enabled=False),
        torch.autocast("cuda", enabled=False),
    ):
        yield


def _are_as_usual() -> bool:
    narrow = torch.is_autocast_enabled("cpu") or torch.is_autocast_enabled("cuda")
    return torch.is_grad_enabled() and not torch.is_inference_mode_enabled() and not narrow


class _Process(ExitStack):
    """What of a process a client may change, to be put back before anybody else computes."""

    def __init__(self) -> None:
        super().__init__()
        self.dtype, self.threads, self.folder = torch.get_default_dtype(), torch.get_num_threads(), _folder()
        self.device = torch.get_default_device()

    def end_client(self) -> None:
        """Put back whatever a client leaves behind, for those who follow."""
        if not _are_as_usual():  # looked at first: thousands of clients switch nothing
            self.enter_context(_switches_as_usual())  # and not set: what has been entered may hold a switch
        self.restore()

    def restore(self) -> None:
        """Put everything back but for the switches, which requests look after."""
        if torch.get_default_dtype() != self.dtype:
            torch.set_default_dtype(self.dtype)
        if torch.get_default_device() != self.device:
            torch.set_default_device(None)  # torch's own: one that is set costs time at every call
            if torch.get_default_device() != self.device:
                torch.set_default_device(self.device)
        if torch.get_num_threads() != self.threads:
            torch.set_num_threads(self.threads)
        if self.folder is not None and _folder() != self.folder:
            with suppress(OSError):  # it is gone
                os.chdir(self.folder)


def _folder() -> str | None:
    """Return the working directory, if it is still there."""
    with suppress(OSError):
        return os.getcwd()
    return None


@_switches_as_usual()
def one_by_one(programs: Sequence[Program[T]]) -> list[T | Exception]:
    """Run each program to its end before the next one starts.

    Args:
        programs: one per client; each is given the function to ask with.

    Returns:
        For each program what it returned, or the exception that ended it: one client's mistake is not another's.
    """
    with _Process() as process:
        return [_outcome(program, answer, process) for program in programs]


@_switches_as_usual()
def lockstep(programs: Sequence[Program[T]]) -> list[T | Exception]:
    """Run all programs together (see :func:`one_by_one` for arguments and result)."""
    import greenlet  # only here: a real client, which runs alone, has no need of it

    hub = greenlet.getcurrent()

    def ask(request: Request) -> Answer:
        asked_within_an_objective = greenlet.getcurrent() is hub
        return answer(request) if asked_within_an_objective else hub.switch(request)

    with _Process() as process:
        workers = [greenlet.greenlet(lambda program=program: _outcome(program, ask, process)) for program in programs]
        try:
            return _to_the_end(workers)
        finally:  # interrupted: what waits ends here, and not when it is collected, in the middle of anything
            for worker in workers:
                if not worker.dead:
                    worker.throw()


def _to_the_end(workers: Sequence[Any]) -> list[Any]:
    """Run greenlets, each until it asks, answer all of them, and so on until none asks any more."""
    results: list[Any] = [worker.switch() for worker in workers]
    while waiting := [k for k, worker in enumerate(workers) if not worker.dead]:
        answers = _answer_all({k: results[k] for k in waiting})
        for k in waiting:
            given = answers[k]
            if isinstance(given, Exception):  # with its traceback, which says where in the objective it was raised
                results[k] = workers[k].throw(type(given), given, given.__traceback__)
            else:
                results[k] = workers[k].switch(given)
    return results


def _outcome(program: Program[T], ask: Ask, process: _Process) -> T | Exception:
    def neutrally(request: Request) -> Answer:
        process.restore()
        with _switches_as_usual():
            return ask(request)

    try:
        return program(neutrally)
    except BaseException as error:
        return _told(error)
    finally:
        process.end_client()


def _told(error: BaseException) -> Exception:
    """Return what ended a client: a strategy that exits ends its own round, never the run.

    Raises:
        KeyboardInterrupt: that is the user's.
    """
    if isinstance(error, Exception):
        return error
    if isinstance(error, KeyboardInterrupt):
        raise error
    if isinstance(error, SystemExit):
        return RuntimeError(f"the client half called exit({error.code})")
    return RuntimeError(f"the client half raised {type(error).__name__}: {error}")


def _answer_all(requests: dict[int, Request]) -> dict[int, Answer | Exception]:
    """Answer the requests, by client: equal ones together."""
    groups: defaultdict[Hashable, list[int]] = defaultdict(list)
    for k, request in requests.items():
        groups[type(request), request.key].append(k)
    answers: dict[int, Answer | Exception] = {}
    for members in groups.values():
        answers.update(zip(members, _together([requests[k] for k in members]), strict=True))
    return answers


def _together(requests: Sequence[Request]) -> list[Answer | Exception]:
    """Answer equal requests together; if that fails, in halves, whose bits are the same.

    What fails alone too, such as an objective that looks at values, which vmap does not allow, the plain loop does.
    """
    half = len(requests) // 2
    try:
        return answer_together(requests)
    except BaseException as error:
        if isinstance(error, KeyboardInterrupt):
            raise
        if not half and is_of_memory(error):  # a machine with more would not train in another way
            return [_told(error)]
        said = re.split(r"\. |\n", f"{type(error).__name__}: {error}".strip())[0]  # torch goes on with advice
    # Here, where the error is gone, and with it the memory of all that it was raised in.
    if half:
        return [*_together(requests[:half]), *_together(requests[half:])]
    return [_plainly(request, said) for request in requests]


def _plainly(request: Request, failure: str) -> Answer | Exception:
    """Answer a request that cannot be answered together with others, and say once why it cannot."""
    try:
        answered = answer(request)
    except BaseException as error:
        return _told(error)
    if isinstance(request, Fit):
        architectures = sorted({model.spec.architecture for model in request.models.values()})
        _tell(", ".join(architectures), failure)
    return answered


@cache
def _tell(architectures: str, reason: str) -> None:
    """Say what is not trained in cohorts, though the plan has it so; once, as the answer is kept."""
    LOG.warning("cohorts: clients with %s are trained one by one, since vmap fails: %.200s", architectures, reason)
