"""What machines say, put into words for people."""

from traceback import format_exception
from typing import Any

import pytest
import torch

from fedkd.knowledge import SoftLabels
from fedkd.learner.executor import one_by_one
from fedkd.learner.requests import Ask
from fedkd.strategy.base import expect_payload
from fedkd.wording import brief, first_of, last_line, printable, traceback_of, where_they_differ


def test_of_a_traceback_the_last_line_is_told() -> None:
    text = "it failed:\nTraceback (most recent call last):\n  File x\nOSError: disk full\n\n"
    assert last_line(text) == "OSError: disk full"
    assert brief(text) == "it failed: OSError: disk full"
    assert (brief("one line"), last_line("one line"), brief(""), last_line("\n ")) == ("one line", "one line", "", "")


def test_no_terminal_obeys_what_others_say() -> None:
    assert last_line("a\x1b[2Jb\rc") == "c", "a carriage return ends a line"
    assert brief("a\x1b[2Jb\tc\u202ed") == "a [2Jb c d"
    assert printable("x" * 10, 8) == "xxxxx..."
    assert printable("x" * 8, 8) == "xxxxxxxx"


def test_of_many_names_the_first_are_told() -> None:
    assert first_of(["a", "b", "c"]) == "a, b, c"
    assert first_of(["a", "b", "c", "d"]) == "a, b, c and 1 more"


def test_of_a_long_setting_the_part_that_differs_is_shown() -> None:
    mine, theirs = (f"views = [{', '.join(20 * ['image@16'])}, {last}]" for last in ("image@4", "image@8"))
    shown = where_they_differ(mine, theirs)
    assert shown[0].startswith("...")
    assert shown[0].endswith("image@4]")
    assert shown[1].endswith("image@8]")
    assert len(shown[1]) < 80
    assert where_they_differ("a" * 200, "b" * 200) == ("a" * 80, "b" * 80)
    digests = [repr(letter * 64) for letter in "ab"]
    assert where_they_differ(*digests) == ("'aaaaaaaa...'", "'bbbbbbbb...'")
    assert where_they_differ("abc", "abcd") == ("abc", "abcd")


def test_a_traceback_begins_with_the_users_own_frame() -> None:
    def half(ask: Ask) -> None:
        raise LookupError("lost its data")

    def broken(ask: Ask) -> None:
        ask(None)  # type: ignore[arg-type] - fails in our own code, below the user's

    for program, last in ((half, "LookupError: lost its data"), (broken, "AttributeError")):
        [error] = one_by_one([program])
        assert isinstance(error, Exception)
        lines = traceback_of(error).strip().splitlines()
        assert lines[0] == "Traceback (most recent call last):"
        assert __file__ in lines[1]
        assert lines[-1].startswith(last)
    assert "executor.py" in "".join(format_exception(error))


def test_of_a_check_of_ours_only_what_it_says_is_shown() -> None:
    with pytest.raises(TypeError) as caught:
        expect_payload("client_round", None, SoftLabels)
    error = caught.value
    assert error.__traceback__ is not None
    assert __file__ in traceback_of(error)
    error = error.with_traceback(error.__traceback__.tb_next)  # as if we had called it, and not this test
    assert traceback_of(error) == "TypeError: client_round: the card says SoftLabels, found None\n"


@pytest.mark.parametrize("program", [None, torch.no_grad()(None)])
def test_a_traceback_of_ours_and_of_libraries_is_shown_whole(program: Any) -> None:
    [error] = one_by_one([program])
    assert isinstance(error, Exception)
    assert traceback_of(error) == "".join(format_exception(error))
    assert "executor.py" in traceback_of(error)
