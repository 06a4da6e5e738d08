import csv
from dataclasses import dataclass, replace

import cqkd
import numpy as np
import pytest
import torch

from fedkd.data.sources import DataSet, load
from fedkd.models import ModelSpec, build

SIZES = cqkd.Sizes(train=100, calibration=60, test=80, steps=4)  # batches of 64 and 36: two steps are an epoch
FULL_SIDE, LOW_SIDES = 8, {4, 2}


@pytest.fixture
def digits(monkeypatch):
    """Digits of 8x8 pixels, the last 400 of which are the test set."""
    whole = load("digits")
    data = replace(whole, official_test=torch.arange(len(whole)) >= len(whole) - 400)
    monkeypatch.setattr(cqkd, "load", lambda name: data)
    return data


@dataclass(frozen=True)
class Forward:
    """One forward pass."""

    architecture: str
    side: int
    training: bool
    gradient: bool
    samples: int


@pytest.fixture
def forwards(monkeypatch):
    """Every forward pass of the networks that the study builds, in their order."""
    noted = []

    def recording(spec):
        module = build(spec)

        def note(module, inputs):
            images = inputs[0]
            noted.append(
                Forward(spec.architecture, images.shape[-1], module.training, torch.is_grad_enabled(), len(images))
            )

        module.register_forward_pre_hook(note)
        return module

    monkeypatch.setattr(cqkd, "build", recording)
    return noted


def small(architecture, side, seed=0):
    torch.manual_seed(seed)
    return build(ModelSpec(architecture, (1, side, side), 10))


def split_of(n, seed=0):
    source = torch.Generator().manual_seed(seed)
    full = torch.rand(n, 1, 8, 8, generator=source)
    return cqkd.Split(full, full[..., ::2, ::2], torch.arange(n) % 10)


# -- the invariants


def test_the_teacher_sees_the_full_view_and_teaches_in_evaluation_mode(digits, forwards):
    cqkd.study("digits", 0, SIZES)
    by_teacher = [each for each in forwards if each.architecture == cqkd.TEACHER]
    assert {each.side for each in by_teacher} == {FULL_SIDE}
    first_student = next(i for i, each in enumerate(forwards) if each.architecture == cqkd.STUDENT)
    own_training = [each for each in forwards[:first_student] if each.training]
    assert sum(each.samples for each in own_training) == 2 * 100  # two epochs of its own, and never again
    teaching = [each for each in forwards[first_student:] if each.architecture == cqkd.TEACHER]
    assert sum(each.samples for each in teaching) == 2 * (6 * 100 + 2 * 60)  # six of CQKD, two of them fitted
    assert not any(each.training or each.gradient for each in teaching)


def test_students_see_the_low_views_and_train_in_training_mode(digits, forwards):
    cqkd.study("digits", 0, SIZES)
    by_student = [each for each in forwards if each.architecture == cqkd.STUDENT]
    assert {each.side for each in by_student} == LOW_SIDES
    trained = [each for each in by_student if each.gradient]
    assert all(each.training for each in trained)
    assert (
        sum(each.samples for each in trained) == 2 * 9 * 2 * 100
    )  # resolutions, students (two of DML), epochs, samples
    assert not any(each.training for each in by_student if not each.gradient)


def test_an_evaluation_in_between_does_not_freeze_a_student(forwards):
    student = cqkd.build(ModelSpec(cqkd.STUDENT, (1, 4, 4), 10))
    train = split_of(20)
    cqkd.predict(student, train.low)
    before = student.features[1].running_mean.clone()
    cqkd.fit([student], train.low, lambda outputs, rows: outputs[0].square().mean(), epochs=1, seed=0)
    assert [each.training for each in forwards] == [False, True]
    assert not torch.equal(student.features[1].running_mean, before)


@pytest.mark.parametrize("method", [each for each in cqkd.METHODS if each.name.startswith("cqkd")], ids=str)
def test_teaching_leaves_the_teacher_as_it_is_down_to_its_buffers(method):
    teacher = small("cnn-bn", 8).requires_grad_(False).eval()
    before = {name: value.clone() for name, value in teacher.state_dict().items()}
    splits = {"train": split_of(70), "calibration": split_of(30, seed=1)}
    cqkd.train_student(method, [small("cnn-bn", 4, seed=1)], teacher, splits, 1, 0)
    assert all(torch.equal(value, before[name]) for name, value in teacher.state_dict().items())


def test_splits_are_disjoint_and_the_test_set_is_the_publishers(digits):
    rows = {name: set(ids.tolist()) for name, ids in cqkd.row_numbers(digits, SIZES, 3).items()}
    assert {name: len(ids) for name, ids in rows.items()} == {"train": 100, "calibration": 60, "test": 80}
    assert len(set.union(*rows.values())) == 240
    assert min(rows["test"]) >= len(digits) - 400 > max(rows["train"] | rows["calibration"])


def test_both_views_are_of_the_same_samples():
    shades = torch.linspace(0, 1, 90)  # every image is of one shade, which no down-scaling changes
    data = DataSet(
        "shades", {"image": shades[:, None, None, None].expand(90, 1, 8, 8).clone()}, torch.zeros(90).long(), ("a",)
    )
    rows = {"train": torch.tensor([5, 80, 33]), "test": torch.tensor([7])}
    splits = cqkd.splits_in(data, rows, "image@4")
    for name, ids in rows.items():
        assert splits[name].low.shape[2:] == (4, 4)
        assert torch.allclose(splits[name].full.amax(dim=(1, 2, 3)), shades[ids])
        assert torch.allclose(splits[name].low.amax(dim=(1, 2, 3)), shades[ids], atol=1e-6)


def test_the_test_set_only_measures(digits, monkeypatch):
    methods = [cqkd.Method("cqkd-fitted", 4.0)]
    seen = cqkd.study("digits", 0, SIZES, methods)
    images = digits.views["image"].clone()
    images[digits.official_test] = 1 - images[digits.official_test]
    monkeypatch.setattr(cqkd, "load", lambda name: replace(digits, views={"image": images}))
    changed = cqkd.study("digits", 0, SIZES, methods)
    assert [row["own_temperature"] for row in changed] == [row["own_temperature"] for row in seen]
    assert all(a["nll"] != b["nll"] for a, b in zip(seen, changed, strict=True))


def test_the_teachers_temperature_is_that_of_the_calibration_split():
    teacher, held_out = small("cnn", 8).eval(), split_of(50)
    logits = 30 * cqkd.predict(teacher, held_out.full).double().numpy()
    labels = logits.argmax(axis=1)
    labels[::4] = (labels[::4] + 1) % 10  # a quarter is wrong, so that there is a best temperature
    held_out = replace(held_out, labels=torch.from_numpy(labels))
    grid = np.exp(np.linspace(np.log(0.01), np.log(100), 20001))
    scaled = logits[None] / 30 / grid[:, None, None]
    nll = np.log(np.exp(scaled).sum(axis=2)) - scaled[:, np.arange(50), labels]
    best = grid[nll.mean(axis=1).argmin()]
    fitted = cqkd.own_temperature(cqkd.Method("cqkd-fitted", 4.0), teacher, held_out)
    assert fitted == pytest.approx(best, rel=1e-3)
    assert cqkd.own_temperature(cqkd.Method("cqkd", 4.0), teacher, held_out) == 1


# -- objectives, against NumPy


def log_softmax(rows):
    return rows - np.log(np.exp(rows).sum(axis=1, keepdims=True))


def kl(teacher, student, temperature=1.0):
    q, p = log_softmax(teacher / temperature), log_softmax(student / temperature)
    return (np.exp(q) * (q - p)).sum(axis=1).mean()


def cross_entropy(logits, labels):
    return -log_softmax(logits)[np.arange(len(labels)), labels].mean()


def test_cqkd_weighs_labels_and_teacher_equally():
    source = np.random.default_rng(0)
    student, teacher, labels = source.normal(size=(4, 3)), source.normal(size=(9, 3)), source.integers(3, size=9)
    rows = np.array([8, 0, 3, 5])
    expected = 0.5 * cross_entropy(student, labels[rows]) + 0.5 * 16 * kl(teacher[rows], student, 4.0)
    found = cqkd.taught(
        [torch.from_numpy(student)],
        torch.from_numpy(rows),
        labels=torch.from_numpy(labels),
        teacher=torch.from_numpy(teacher),
        temperature=4.0,
    )
    assert found.item() == pytest.approx(expected, rel=1e-12)


def test_peers_learn_from_each_other_and_not_for_each_other():
    source = np.random.default_rng(1)
    one, two, labels = source.normal(size=(5, 3)), source.normal(size=(5, 3)), source.integers(3, size=5)
    expected = 0.5 * (cross_entropy(one, labels) + kl(two, one) + cross_entropy(two, labels) + kl(one, two))
    networks = [torch.from_numpy(each).requires_grad_() for each in (one, two)]
    total = cqkd.mutual(networks, torch.arange(5), labels=torch.from_numpy(labels))
    assert total.item() == pytest.approx(expected, rel=1e-12)
    total.backward()
    truth = np.eye(3)[labels]
    own, peer = np.exp(log_softmax(one)), np.exp(log_softmax(two))
    # the gradient of CE is p - y, that of KL(peer || own) is p - p_peer
    assert np.allclose(networks[0].grad, 0.5 * ((own - truth) + (own - peer)) / 5)


# -- what is counted


@pytest.mark.parametrize(
    ("name", "students", "expected"),
    [
        ("supervised", 1, (210, 210, 0)),
        ("cqkd", 1, (210, 210, 70)),
        ("cqkd-fitted", 1, (210, 210, 100)),
        ("dml", 2, (420, 420, 0)),
    ],
)
def test_samples_are_counted_forward_and_backward(name, students, expected):
    splits = {"train": split_of(70), "calibration": split_of(30, seed=1)}
    teacher = small("cnn", 8).requires_grad_(False).eval()
    networks = [small("cnn-bn", 4, seed) for seed in range(students)]
    row = cqkd.train_student(cqkd.Method(name, 4.0), networks, teacher, splits, 3, 0)
    assert (row["forward"], row["backward"], row["teacher_forward"]) == expected


def test_steps_become_whole_epochs():
    assert [cqkd.Sizes(steps=320).epochs(n) for n in (2000, 1001, 64)] == [10, 20, 320]


def test_students_of_a_resolution_share_their_start(digits):
    rows = cqkd.study("digits", 0, replace(SIZES, steps=0), [cqkd.Method("supervised"), cqkd.Method("cqkd", 4.0)])
    assert rows[1]["nll"] == rows[2]["nll"] != rows[3]["nll"] == rows[4]["nll"]


def test_the_quick_run_writes_table_and_figure(shared_data, tmp_path, monkeypatch, capsys):
    if not (shared_data / "fashion-mnist").is_dir():
        pytest.skip("no Fashion-MNIST beside the checkout")
    monkeypatch.setenv("FEDKD_DATA", str(shared_data))
    settings = ["--data", "fashion-mnist", "--seeds", "0", "--workers", "1", "--quick", "--out", str(tmp_path)]
    monkeypatch.setattr("sys.argv", ["cqkd.py", *settings])
    cqkd.main()
    with (tmp_path / "cqkd.csv").open(encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == 1 + 2 * len(cqkd.METHODS)
    assert {row["side"] for row in rows} == {"28", "14", "7"}
    assert (tmp_path / "cqkd.md").read_text(encoding="utf-8") in capsys.readouterr().out
    assert (tmp_path / "cqkd.png").read_bytes()[:4] == b"\x89PNG"
    assert (tmp_path / "cqkd.svg").stat().st_size > 0
