"""The two errors a user may see, and the one line for a name that does not exist."""

import pytest

from fedkd.errors import RunError, UserError, brief, first_of, last_line, printable, unknown


@pytest.mark.parametrize(
    ("name", "known", "where", "expected"),
    [
        ("fedmb", ["local", "fedmd"], "", "unknown model 'fedmb': did you mean 'fedmd'? Known: fedmd, local."),
        ("zzz", ["b", "a"], "", "unknown model 'zzz': Known: a, b."),
        ("zzz", [], "", "unknown model 'zzz': Known: none."),
        ("FedMD", ["local", "fedmd"], "", "unknown model 'FedMD': did you mean 'fedmd'? Known: fedmd, local."),
        ("RESNET", ["ResNet", "mlp"], "", "unknown model 'RESNET': did you mean 'ResNet'? Known: ResNet, mlp."),
        ("x", ["y"], "run.toml", "run.toml: unknown model 'x': Known: y."),
        ("two\nlines", ["y"], "", "unknown model 'two\\nlines': Known: y."),
    ],
)
def test_an_unknown_name_is_answered_with_the_known_ones(
    name: str, known: list[str], where: str, expected: str
) -> None:
    error = unknown("model", name, iter(known), where)
    assert isinstance(error, UserError)
    assert str(error) == expected


def test_a_users_mistake_is_not_a_failed_run() -> None:
    assert issubclass(UserError, ValueError)
    assert issubclass(RunError, RuntimeError)
    assert not issubclass(UserError, RuntimeError)
    assert not issubclass(RunError, ValueError)


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
