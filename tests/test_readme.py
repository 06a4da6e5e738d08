import inspect
import re
from pathlib import Path

import pytest

import fedkd
from fedkd import ensemble
from fedkd.config import Experiment, load

README = (Path(__file__).resolve().parents[1] / "README.md").read_text(encoding="utf-8")
BLOCKS = re.findall(r"```python\n(.*?)```", README, re.DOTALL)
OWN = next(block for block in BLOCKS if "strategies/median_md.py" in block)
SMALL = {"strategy": "median_md", "rounds": 2, "federation.clients": 4, "federation.architectures": ["mlp", "linear"]}


@pytest.fixture
def own_strategy(tmp_path, monkeypatch):
    (tmp_path / "strategies").mkdir()
    (tmp_path / "strategies" / "median_md.py").write_text(OWN)
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))


def test_the_strategy_in_the_readme_has_under_40_lines():
    assert len(OWN.splitlines()) < 40


def test_it_runs_by_its_name(own_strategy):
    metrics = fedkd.simulate(Experiment().changed(**SMALL)).metrics
    assert 0 < metrics["clients_global"]["accuracy"] <= 1


@pytest.mark.parametrize("plan", ["one-by-one", "cohorts"])
def test_the_model_of_ones_own_runs(tmp_path, monkeypatch, plan):
    (tmp_path / "mymodels.py").write_text(next(block for block in BLOCKS if "# mymodels.py" in block))
    monkeypatch.syspath_prepend(str(tmp_path))
    changes = {**SMALL, "strategy": "fedmd", "federation.architectures": ["mymodels:small", "cnn"], "engine.plan": plan}
    assert 'federation.architectures=["mymodels:small", "cnn"]' in README
    assert fedkd.simulate(Experiment().changed(**changes)).metrics["clients_global"]["accuracy"] > 0.2


@pytest.mark.ray
def test_it_runs_on_ray_with_the_same_digest(own_strategy):
    digests = {fedkd.simulate(Experiment().changed(**SMALL, **{"engine.workers": n})).digest for n in (0, 1)}
    assert len(digests) == 1


@pytest.mark.flower
def test_it_runs_on_flower_with_the_same_digest(own_strategy):
    engines = [{"engine.name": "local"}, {"engine.name": "flower", "engine.workers": 2}]
    digests = {fedkd.simulate(Experiment().changed(**SMALL, **engine)).digest for engine in engines}
    assert len(digests) == 1


def test_the_python_example_runs():
    example = next(block for block in BLOCKS if "fedkd.simulate" in block)
    exec(compile(example, "README.md", "exec"), {})  # noqa: S102 - our own README


def test_the_example_of_own_data_runs(tmp_path, monkeypatch):
    text = (Path(__file__).resolve().parents[1] / "docs" / "data.md").read_text(encoding="utf-8")
    monkeypatch.chdir(tmp_path)
    exec(compile(re.search(r"```python\n(.*?)```", text, re.DOTALL)[1], "data.md", "exec"), {})  # noqa: S102
    own = {"data.name": "measurements.npz", "federation.views": ["sensor"], "federation.architectures": ["mlp"]}
    assert all(f"--set {key}=" in text or f"--set '{key}=" in text for key in own)
    quickstart = Path(__file__).resolve().parents[1] / "simulations" / "quickstart.toml"
    assert f"fedkd run simulations/{quickstart.name} --set" in text
    metrics = fedkd.simulate(load(quickstart).changed(rounds=1, **own)).metrics
    assert 0.25 < metrics["clients_global"]["accuracy"] <= 1


def test_the_experiment_across_two_views_of_ones_own_has_15_lines_and_runs(tmp_path, monkeypatch):
    text = (Path(__file__).resolve().parents[1] / "docs" / "views.md").read_text(encoding="utf-8")
    monkeypatch.chdir(tmp_path)
    exec(compile(re.search(r"```python\n(.*?)```", text, re.DOTALL)[1], "views.md", "exec"), {})  # noqa: S102
    example = next(block for block in re.findall(r"```toml\n(.*?)```", text, re.DOTALL) if "ward.npz" in block)
    assert len(example.splitlines()) <= 15
    Path("ward.toml").write_text(example)
    result = fedkd.simulate(load(Path("ward.toml")))
    assert {row["view"] for row in result.clients} == {"pulse", "blood"}
    assert all(row["global"]["accuracy"] > 1 / 3 for row in result.clients)


def test_the_guide_of_the_library_runs_from_top_to_bottom():
    text = (Path(__file__).resolve().parents[1] / "docs" / "library.md").read_text(encoding="utf-8")
    scope = {}
    for block in re.findall(r"```python\n(.*?)```", text, re.DOTALL):
        exec(compile(block, "library.md", "exec"), scope)  # noqa: S102 - our own guide
    assert scope["after"] < scope["before"]
    assert scope["each"].shape == (3,)
    assert scope["back"].logits.shape == (16, 10)


def test_the_guide_says_of_every_rule_what_it_gives():
    text = (Path(__file__).resolve().parents[1] / "docs" / "library.md").read_text(encoding="utf-8")
    row = {
        cells[1].strip(): set(re.findall(r"`(\w+)`", cells[2]))
        for line in text.splitlines()
        if len(cells := line.split("|")) == 4
    }
    for name in sorted(row["logits"] | row["probabilities"]):
        doc = " ".join(getattr(ensemble, name).__doc__.split())
        assert ("Logits, shape" in doc or "is logits" in doc) == (name in row["logits"]), name
    rules = {name for name, value in vars(ensemble).items() if inspect.isfunction(value) and "_weights" not in name}
    assert set.union(row["logits"], row["probabilities"], row["probabilities of probabilities"]) == rules - {
        "leave_one_out",
        "weighted_class_means",
    }
