"""Run the client halves of many clients: one by one, or in lockstep so that equal requests are answered together.

A client half is ordinary Python for one client. It reaches the outside only by asking (``client.fit``,
``client.predict``, ...). One by one, each question is answered at once. In lockstep every client runs in a greenlet of
its own until it asks; equal questions are then answered in one vectorised call, and every client goes on.
"""

from collections import defaultdict
from collections.abc import Callable, Hashable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, TypeVar

import torch

from fedkd.learner.cohort import answer_together
from fedkd.learner.fit import answer
from fedkd.learner.requests import Answer, Ask, Request

T = TypeVar("T")
Program = Callable[[Ask], T]
Executor = Callable[[Sequence[Program[T]]], list["T | Exception"]]


def one_by_one(programs: Sequence[Program[T]]) -> list[T | Exception]:
    """Run each program to its end before the next one starts.

    Args:
        programs: one per client; each is given the function to ask with.

    Returns:
        For each program what it returned, or the exception that ended it: one client's mistake is not another's.
    """
    return [_outcome(program) for program in programs]


def lockstep(programs: Sequence[Program[T]]) -> list[T | Exception]:
    """Run all programs together (see :func:`one_by_one` for arguments and result)."""
    import greenlet  # only here: a real client, which runs alone, has no need of it

    hub = greenlet.getcurrent()

    workers = [greenlet.greenlet(lambda program=program: _outcome(program, hub.switch)) for program in programs]
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


def _outcome(program: Program[T], ask: Ask = answer) -> T | Exception:
    def neutrally(request: Request) -> Answer:
        with _switches_as_usual():
            return ask(request)

    try:
        return program(neutrally)
    except SystemExit as error:  # a strategy that exits ends its own round, never the run
        return RuntimeError(f"the client half called exit({error.code})")
    except Exception as error:
        return error


@contextmanager
def _switches_as_usual() -> Iterator[None]:
    """Answer as if the client had left torch's switches alone: there is one of each for the thread of all clients."""
    with (
        torch.inference_mode(False),
        torch.enable_grad(),
        torch.autocast("cpu", enabled=False),
        torch.autocast("cuda", enabled=False),
    ):
        yield


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
    """Answer equal requests together; if that fails, each as a cohort of its own, whose bits are the same.

    What fails there too, such as an objective that looks at values, which vmap does not allow, the plain loop does.
    """
    try:
        return answer_together(requests)
    except Exception:
        if len(requests) > 1:
            return [alone for one in requests for alone in _together([one])]
    try:
        return [answer(requests[0])]
    except Exception as error:
        return [error]
