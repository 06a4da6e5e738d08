"""The two errors a user may see, and the one line for a name that does not exist."""

import pytest

from fedkd.errors import RunError, UserError, unknown


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
