import cross_modal
import numpy as np
import pytest
import torch

from fedkd.data.federation import build


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


@pytest.mark.parametrize(("teacher", "clients"), [("acc", 6), ("gyro", 3)])
def test_a_lesson_changes_only_its_pairs(shared_data, monkeypatch, teacher, clients):
    if not (shared_data / "hapt").is_dir():
        pytest.skip("no HAPT beside the checkout")
    monkeypatch.setenv("FEDKD_DATA", str(shared_data))
    for pairs in (100, 1000):
        experiment = cross_modal.lesson("cross_modal_motion.toml", teacher, "gyro", pairs, 0, 3)
        assert experiment.strategies["fedcqkd"].get("teachers") == (teacher if teacher != "gyro" else None)
        splits = build(experiment).splits
        assert (len(splits.public), len(splits.train)) == (pairs, 20 * clients)
