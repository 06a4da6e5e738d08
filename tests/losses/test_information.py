"""Information-based losses against formulas in float64 NumPy, and their properties."""

import math

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.func import grad, vmap

from fedkd import losses
from fedkd.losses import CrdMemory
from tests.losses.conftest import draw, length_one

N, WIDTH, SAMPLES = 4, 3, 9
OURS, THEIRS = draw(0, N, WIDTH), draw(1, N, WIDTH)
CONTRAST = np.array([[0, 3, 7], [4, 1, 2], [8, 0, 1], [2, 5, 5]])


def both(ours: np.ndarray = OURS, theirs: np.ndarray = THEIRS) -> tuple[Tensor, Tensor]:
    return torch.tensor(ours), torch.tensor(theirs)


# --- VID


def test_vid_equals_the_formula() -> None:
    mean, teacher, variance = draw(2, N, 3, 2, 2), draw(3, N, 3, 2, 2), np.array([0.3, 1.0, 4.0])
    total = sum(
        ((mean[n, c, h, w] - teacher[n, c, h, w]) ** 2 / variance[c] + math.log(variance[c])) / 2
        for n, c, h, w in np.ndindex(mean.shape)
    )
    found = losses.vid(*both(mean, teacher), variance=torch.tensor(variance))
    assert found.item() == pytest.approx(total / mean.size, rel=1e-9)
    every_entry = torch.tensor(np.broadcast_to(variance[:, None, None], mean.shape).copy())
    assert losses.vid(*both(mean, teacher), variance=every_entry).item() == pytest.approx(found.item(), rel=1e-12)


def test_vid_has_its_minimum_where_mean_and_variance_are_right() -> None:
    variance = torch.tensor([0.3, 1.0, 4.0], dtype=torch.float64)
    mean, teacher = both()
    assert losses.vid(teacher, teacher, variance=variance).item() == pytest.approx(
        variance.log().mean().item() / 2, rel=1e-9
    )
    right = (mean - teacher).square().requires_grad_()
    (gradient,) = torch.autograd.grad(losses.vid(mean, teacher, variance=right), right)
    assert gradient.abs().max() < 1e-12
    for factor in (0.9, 1.1):
        assert losses.vid(mean, teacher, variance=factor * right) > losses.vid(mean, teacher, variance=right)


def test_vid_variance_is_trained_and_starts_where_asked() -> None:
    assert losses.vid_start() == pytest.approx(math.log(math.exp(5 - 1e-5) - 1), rel=1e-12)
    for variance in (1e-3, 0.5, 5.0, 800.0):
        raw = torch.tensor(losses.vid_start(variance), dtype=torch.float64)
        assert losses.vid_variance(raw).item() == pytest.approx(variance, rel=1e-9)
    raw = torch.zeros(WIDTH, dtype=torch.float64, requires_grad=True)
    mean, teacher = both()

    def loss(raw: Tensor) -> Tensor:
        return losses.vid(mean, teacher, variance=losses.vid_variance(raw))

    assert torch.autograd.gradcheck(loss, raw)
    many = torch.stack([raw, raw + 1]).detach()
    together = vmap(grad(loss))(many)
    for client in range(2):
        torch.testing.assert_close(together[client], grad(loss)(many[client]), rtol=1e-12, atol=0)


def test_vid_refuses_a_variance_that_is_none() -> None:
    mean, teacher = both()
    with pytest.raises(ValueError, match=r"variance: expected numbers above 0, found -1\.0"):
        losses.vid(mean, teacher, variance=torch.tensor([1.0, -1.0, 2.0]))
    with pytest.raises(ValueError, match=r"variance: expected numbers above 0, found 0\.0"):
        losses.vid(mean, teacher, variance=torch.tensor([1.0, 0.0, 2.0]))
    with pytest.raises(ValueError, match=r"variance: expected finite numbers, found nan"):
        losses.vid(mean, teacher, variance=torch.tensor([1.0, float("nan"), 2.0]))
    with pytest.raises(ValueError, match=r"variance: expected shape \(3,\), found \(4,\)"):
        losses.vid(mean, teacher, variance=torch.ones(4))
    with pytest.raises(ValueError, match="variance: expected a finite number above 1e-05"):
        losses.vid_start(0.0)


# --- CRD within the batch


def test_crd_equals_the_formula() -> None:
    scores = length_one(OURS) @ length_one(THEIRS).T / 0.07
    picks = [math.log(sum(math.exp(s) for s in scores[i])) - scores[i, i] for i in range(N)]
    back = [math.log(sum(math.exp(s) for s in scores[:, i])) - scores[i, i] for i in range(N)]
    assert losses.crd(*both()).item() == pytest.approx(sum(picks) / N, rel=1e-9)
    assert losses.crd(*both(), symmetric=True).item() == pytest.approx(sum(picks + back) / (2 * N), rel=1e-9)


def test_crd_of_constant_embeddings_is_the_logarithm_of_the_batch() -> None:
    constant = torch.ones(7, 3, dtype=torch.float64)
    for symmetric in (False, True):
        assert losses.crd(constant, constant, symmetric=symmetric).item() == pytest.approx(math.log(7), rel=1e-12)
    assert losses.crd(constant[:1], constant[:1]).item() == 0.0


def test_crd_ignores_scale_and_a_common_rotation() -> None:
    rotation = np.linalg.qr(draw(5, WIDTH, WIDTH))[0]
    expected = losses.crd(*both()).item()
    for ours, theirs in ((OURS * [[2], [0.1], [7], [1]], 3 * THEIRS), (OURS @ rotation, THEIRS @ rotation)):
        assert losses.crd(*both(ours, theirs)).item() == pytest.approx(expected, rel=1e-9)
    assert losses.crd(*both(THEIRS, THEIRS)).item() < expected


# --- CRD against a memory


def memory(student_scale: float = 15.0, teacher_scale: float = 11.0) -> CrdMemory:
    held = (torch.tensor(length_one(draw(seed, SAMPLES, WIDTH))) for seed in (6, 7))
    return CrdMemory(*held, *(torch.tensor(scale, dtype=torch.float64) for scale in (student_scale, teacher_scale)))


def scores_of(new: np.ndarray, held: Tensor, temperature: float) -> np.ndarray:
    scores = np.zeros(CONTRAST.shape)
    for i, k in np.ndindex(scores.shape):
        scores[i, k] = math.exp(length_one(new)[i] @ held.numpy()[CONTRAST[i, k]] / temperature)
    return scores


def estimate(scores: np.ndarray, scale: float) -> float:
    others, total = scores.shape[1] - 1, 0.0
    for row in scores / scale:
        for k, probability in enumerate(row):
            noise = others / SAMPLES
            total -= math.log((probability if k == 0 else noise) / (probability + noise + 1e-7))
    return total / N


def test_crd_with_a_memory_equals_the_formula() -> None:
    held = memory()
    ours, theirs = scores_of(OURS, held.teacher, 0.3), scores_of(THEIRS, held.student, 0.3)
    found = losses.crd(*both(), temperature=0.3, memory=held, contrast=torch.tensor(CONTRAST)).item()
    assert found == pytest.approx(estimate(ours, 15) + estimate(theirs, 11), rel=1e-9)


def test_crd_estimates_the_scale_from_the_first_batch() -> None:
    held = memory(0.0, 0.0)
    ours, theirs = scores_of(OURS, held.teacher, 0.3), scores_of(THEIRS, held.student, 0.3)
    scales = ours.mean() * SAMPLES, theirs.mean() * SAMPLES
    contrast = torch.tensor(CONTRAST)
    found = losses.crd(*both(), temperature=0.3, memory=held, contrast=contrast).item()
    assert found == pytest.approx(estimate(ours, scales[0]) + estimate(theirs, scales[1]), rel=1e-9)
    after = losses.crd_remember(held, *both(), contrast, temperature=0.3)
    assert (after.student_scale.item(), after.teacher_scale.item()) == pytest.approx(scales, rel=1e-9)
    again = losses.crd_remember(after, *both(THEIRS, OURS), contrast, temperature=0.3)
    assert torch.equal(again.student_scale, after.student_scale)  # once known, it stays


def test_crd_remember_draws_the_rows_of_the_batch_to_their_new_embeddings() -> None:
    held, contrast = memory(), torch.tensor(CONTRAST)
    before = [part.clone() for part in held]
    ours, theirs = (part.requires_grad_() for part in both())
    after = losses.crd_remember(held, ours, theirs, contrast, momentum=0.8)
    for found, old, new in ((after.student, held.student, OURS), (after.teacher, held.teacher, THEIRS)):
        expected = old.numpy().copy()
        for sample, row in zip(length_one(new), CONTRAST[:, 0], strict=True):
            expected[row] = length_one(0.8 * expected[row] + 0.2 * sample)
        np.testing.assert_allclose(found.numpy(), expected, rtol=1e-12)
        np.testing.assert_allclose(found.norm(dim=1).numpy(), 1, rtol=1e-12)
        assert not found.requires_grad
    assert all(torch.equal(part, old) for part, old in zip(held, before, strict=True))


def test_crd_trains_a_layer_of_the_teachers_with_the_sides_swapped() -> None:
    held, contrast = memory(), torch.tensor(CONTRAST)
    swapped = CrdMemory(held.teacher, held.student, held.teacher_scale, held.student_scale)
    ours, theirs = both()
    forth = losses.crd(ours, theirs.requires_grad_(), temperature=0.3, memory=held, contrast=contrast)
    back = losses.crd(theirs, ours, temperature=0.3, memory=swapped, contrast=contrast)
    assert back.item() == pytest.approx(forth.item(), rel=1e-12)
    assert torch.autograd.grad(back, theirs)[0].abs().sum() > 0
    assert not forth.requires_grad


def test_crd_refuses_what_does_not_fit() -> None:
    held, contrast = memory(), torch.tensor(CONTRAST)
    with pytest.raises(ValueError, match="contrast: expected with a memory, and only then, found none"):
        losses.crd(*both(), memory=held)
    with pytest.raises(ValueError, match="contrast: expected with a memory, and only then, found one without memory"):
        losses.crd(*both(), contrast=contrast)
    with pytest.raises(ValueError, match=r"contrast: expected shape \(4, K\), found \(3, 3\)"):
        losses.crd(*both(), memory=held, contrast=contrast[:3])
    with pytest.raises(ValueError, match=r"memory.student: expected shape \(M, 2\), found \(9, 3\)"):
        losses.crd(*both(OURS[:, :2], THEIRS[:, :2]), memory=held, contrast=contrast)
    with pytest.raises(ValueError, match=r"teacher: expected shape \(4, 3\), found \(4, 2\)"):
        losses.crd(*both(OURS, THEIRS[:, :2]))
    with pytest.raises(ValueError, match="temperature: expected a finite number above 0, found 0"):
        losses.crd(*both(), temperature=0)
    with pytest.raises(ValueError, match=r"momentum: expected a number from 0 to below 1, found 1\.0"):
        losses.crd_remember(held, *both(), contrast, momentum=1.0)


def test_the_first_memory_has_unit_rows_and_no_scale_and_repeats_with_its_generator() -> None:
    memory = losses.crd_start(40, 8, generator=torch.Generator().manual_seed(1))
    again = losses.crd_start(40, 8, generator=torch.Generator().manual_seed(1))
    for side, same in ((memory.student, again.student), (memory.teacher, again.teacher)):
        np.testing.assert_allclose(np.linalg.norm(side.numpy(), axis=1), 1, rtol=1e-5)
        assert side.shape == (40, 8)
        assert torch.equal(side, same)
    assert not torch.equal(memory.student, memory.teacher)
    assert memory.student_scale.item() == memory.teacher_scale.item() == 0
    contrast = torch.tensor([[3, 0, 7], [5, 1, 2]])
    loss = losses.crd(torch.ones(2, 8), torch.ones(2, 8), memory=memory, contrast=contrast)
    assert loss.isfinite()
    later = losses.crd_remember(memory, torch.ones(2, 8), torch.ones(2, 8), contrast)
    assert later.student_scale > 0
    assert torch.equal(later.student[[0, 1]], memory.student[[0, 1]])


def test_a_pair_of_tensors_is_no_memory() -> None:
    rows, contrast = torch.ones(2, 8), torch.tensor([[0, 1], [1, 0]])
    with pytest.raises(ValueError, match=r"^memory: expected a CrdMemory, found tuple; crd_start makes one\.$"):
        losses.crd(rows, rows, memory=(rows, rows), contrast=contrast)  # type: ignore[arg-type]
