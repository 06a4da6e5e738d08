import sys

import cross_modal
import numpy as np
import pytest
import torch

from fedkd import seeding
from fedkd.data.federation import build
from fedkd.data.sources import DataSet


def draw(overlap, seeds=2, samples=500):
    plane = torch.randn(seeds, 20, generator=torch.Generator().manual_seed(0))
    return plane, cross_modal.modalities(seeds, samples, overlap, plane, torch.Generator().manual_seed(1))


@pytest.mark.parametrize("overlap", cross_modal.OVERLAPS)
def test_so_many_features_are_common_to_both_modalities(overlap):
    _, (teacher, student, labels) = draw(overlap)
    assert teacher.shape == (2, 500, 25)
    assert student.shape == (2, 500, 50)
    same = (teacher[0].T[:, None] == student[0].T[None]).all(dim=2)
    assert same.sum() == overlap
    assert set(labels.unique().tolist()) == {0, 1}


def test_both_modalities_together_decide_the_label_if_nothing_is_common():
    plane, (teacher, student, labels) = draw(0)
    features = torch.cat([student[..., :10], teacher[..., :10]], dim=2).numpy()
    expected = np.einsum("snd,sd->sn", features, plane.numpy()) > 0
    assert np.array_equal(labels.bool().numpy(), expected)


def test_linear_students_take_the_steps_of_gradient_descent():
    source = np.random.default_rng(0)
    inputs, labels, teacher = (
        source.normal(size=(2, 6, 3)),
        source.integers(2, size=(2, 6)),
        source.normal(size=(2, 6, 2)),
    )
    found = cross_modal.train_linear(*(torch.from_numpy(each) for each in (inputs, labels, teacher)), steps=2)
    for number in range(2):
        weights = np.zeros((4, 2))
        with_bias = np.concatenate([inputs[number], np.ones((6, 1))], axis=1)
        q = np.exp(teacher[number]) / np.exp(teacher[number]).sum(axis=1, keepdims=True)
        for _ in range(2):
            scores = np.exp(with_bias @ weights)
            p = scores / scores.sum(axis=1, keepdims=True)
            weights -= 0.1 * with_bias.T @ ((p - np.eye(2)[labels[number]]) + (p - q)) / 6
        assert np.allclose(found[number].numpy(), weights, atol=1e-12)


def test_the_slope_is_that_of_a_line():
    rows = [{"gamma": g, "seed": seed, "gain": (1 + seed) * g - 0.3} for seed in (0, 1) for g in (0.0, 0.25, 1.0)]
    assert cross_modal.slopes(rows) == pytest.approx([1, 2])


def test_more_common_information_teaches_more():
    rows = cross_modal.by_gamma(seeds=8, steps=200)
    slopes = cross_modal.slopes(rows)
    assert len(rows) == 8 * len(cross_modal.OVERLAPS)
    assert cross_modal.reporting.mean_interval(slopes)[1] > 0


def test_every_modality_teaches_every_other_with_the_most_pairs_only_itself_too():
    asked = {job[:4] for job in cross_modal.lessons(2, (5, 9), clients=3)}
    motion = {job[1:] for job in asked if job[0] == "cross_modal_motion.toml"}
    assert motion == {
        ("acc", "acc", 9),
        ("gyro", "gyro", 9),
        ("acc", "gyro", 9),
        ("gyro", "acc", 9),
        ("acc", "gyro", 5),
        ("gyro", "acc", 5),
    }


def people(count=12, each=60):
    """Give every sample its own number, and every one of the people as many samples; the last three are for testing."""
    owner = torch.arange(count * each) % count
    labels = torch.arange(count * each) % 5
    views = {"x": torch.arange(1.0, count * each + 1)[:, None]}
    return DataSet("people", views, labels, tuple("abcde"), official_test=owner >= count - 3, groups=owner)


def members(data, split):
    return set(data.ids[data.split == cross_modal.SPLITS.index(split)].tolist())


@pytest.mark.parametrize("people_apart", [True, False])
def test_only_the_number_of_pairs_differs_between_lessons(people_apart):
    data = people()
    fewer, more = (cross_modal.dealt(data, pairs, 4, seed=1, people=people_apart) for pairs in (30, 200))
    for split in ("train", "test"):
        assert members(fewer, split) == members(more, split)
    assert members(fewer, "public") < members(more, "public")
    assert (len(members(fewer, "public")), len(members(more, "public")), len(members(more, "train"))) == (30, 200, 80)
    assert members(more, "test") == {i for i in range(720) if i % 12 >= 9}
    assert members(more, "train") != members(cross_modal.dealt(data, 200, 4, seed=2, people=people_apart), "train")
    assert not members(more, "train") & members(more, "public")


def test_who_is_a_client_is_nobody_else():
    data = cross_modal.dealt(people(), 200, 4, seed=1, people=True)
    owners = {split: {i % 12 for i in members(data, split)} for split in ("train", "public", "test")}
    assert owners["train"] | owners["public"] | owners["test"] == set(range(12))
    assert (len(owners["train"]), len(owners["public"]), len(owners["test"])) == (4, 5, 3)
    assert np.bincount([i % 12 for i in members(data, "train")]).max() == 20


@pytest.mark.parametrize(("teacher", "clients"), [("acc", 6), ("gyro", 3)])
def test_a_lesson_is_what_was_dealt_and_a_client_a_person(shared_data, monkeypatch, tmp_path, teacher, clients):
    if not (shared_data / "hapt").is_dir():
        pytest.skip("no HAPT beside the checkout")
    monkeypatch.setenv("FEDKD_DATA", str(shared_data))
    experiment = cross_modal.lesson("cross_modal_motion.toml", teacher, "gyro", 100, 0, 3, tmp_path)
    assert experiment.strategies["fedcqkd"].get("teachers") == (teacher if teacher != "gyro" else None)
    assert set(experiment.federation.architectures) == {"signal-cnn"}
    federation = build(experiment)
    splits, data = federation.splits, federation.dataset
    assert [len(ids) for ids in (splits.public, splits.validation, splits.test)] == [100, 0, 2996]
    assert len(federation.holdings) == clients
    for held in federation.holdings.values():
        assert len(held.train) == 20
        assert len(data.groups[data.rows(held.train)].unique()) == 1


def test_a_run_writes_what_it_found(tmp_path, monkeypatch, capsys):
    """The lessons' rows are made up here; all else is as it is in a run."""

    def made_up(file, teacher, student, pairs, seed, clients):
        cell = {"data": file, "teacher": teacher, "student": student, "pairs": pairs, "seed": seed}
        return [cell | {"alone": 0.5, "together": 0.625 + seed / 100, "gain": 0.125 + seed / 100}]

    monkeypatch.setattr(cross_modal, "gained", made_up)
    monkeypatch.setattr(
        sys, "argv", ["cross_modal", "--out", str(tmp_path), "--workers", "1", "--seeds", "2", "--quick"]
    )
    with seeding.arithmetic_restored():
        cross_modal.main()
    ends = {"gamma.csv", "gains.csv", "cross_modal.md", "cross_modal.png", "cross_modal.svg"}
    assert {path.name for path in tmp_path.iterdir()} == ends
    text = (tmp_path / "cross_modal.md").read_text(encoding="utf-8")
    assert text in capsys.readouterr().out
    rows = [line for line in text.splitlines() if line.startswith("| cross_modal")]
    assert len(rows) == 2 * (4 + 2)  # files, and pairs of views with the most pairs and with fewer
    assert all("50.0 | 63.0 ± 0.7 | +13.0 (" in row for row in rows), rows[0]
