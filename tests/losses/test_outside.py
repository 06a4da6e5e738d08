"""An outside check: our functions against what their authors' programs, or widely used libraries, gave.

Others' programs were run once, in float64 where they let one, on inputs that the formula of ``outside_cases`` makes.
What they gave stands in ``outside_values.json``, one line for each case, as facts: ``value``, all numbers in order;
``source``, the repository with file and commit, or the package with its version; ``factor``, by which ours is
multiplied to be theirs (1 unless their convention differs); ``rtol``; ``note``, what was particular about the call.
"""

import json
import re
from pathlib import Path
from typing import Any

import pytest
import torch

from fedkd import calibration, ensemble, losses
from tests.losses import outside_cases, outside_ensemble

CASES = outside_cases.CASES | outside_ensemble.CASES
FACTS = json.loads(Path(__file__).with_name("outside_values.json").read_text(encoding="utf-8"))
ROOMS = {"losses": losses, "ensemble": ensemble, "calibration": calibration}


def numbers(result: Any) -> list[float]:
    """Return all numbers of a result, in order."""
    if isinstance(result, dict):
        return numbers(list(result.values()))
    if isinstance(result, list | tuple):
        return [number for member in result for number in numbers(member)]
    return torch.as_tensor(result, dtype=torch.float64).flatten().tolist()


def functions() -> set[str]:
    """Return the functions that are compared, such as ``losses.kd``."""
    return {name.split()[0].rstrip(",") for name in CASES}


@pytest.mark.parametrize("name", sorted(CASES))
def test_equals_what_another_program_gave(name: str) -> None:
    case, fact = CASES[name], FACTS[name]
    result = case.call(*case.arguments, **case.settings)
    found = [fact["factor"] * number for number in numbers(result if case.part is None else result[case.part])]
    assert found == pytest.approx(fact["value"], rel=fact["rtol"], abs=0), f"{name}: {fact['source']}; {fact['note']}"


def test_every_case_has_a_fact_and_every_fact_a_source() -> None:
    assert FACTS.keys() == CASES.keys()
    unclear = [name for name, fact in FACTS.items() if not re.search(r" [0-9a-f]{10}$| \d+\.\d+\.\d+ ", fact["source"])]
    assert not unclear, "expected a commit or a version"


def test_the_numbers_can_tell_functions_apart() -> None:
    for name, fact in FACTS.items():
        assert any(fact["value"]), f"{name}: only zeros, which many functions give"
        assert 0 < fact["rtol"] <= 1e-5, name


def test_most_functions_are_compared() -> None:
    compared = functions()
    unknown = [name for name in compared if not hasattr(ROOMS[name.split(".")[0]], name.split(".")[1])]
    assert not unknown
    assert len(compared) >= 80
    assert len([name for name in compared if name.startswith("losses.")]) >= 50
