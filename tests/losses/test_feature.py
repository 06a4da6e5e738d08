"""Feature-based losses against formulas in float64 NumPy, and their properties."""

import math
from statistics import NormalDist

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.func import grad, vmap

from fedkd import losses
from tests.losses.conftest import draw

FEATURES = np.array([[0.5, -1.0], [2.0, 0.3], [-0.7, 1.1], [0.0, 0.4]])
TEACHER = np.array([[1.5, 0.2], [-0.6, 0.8], [0.9, -1.3], [0.1, 0.0]])
PROTOTYPES = np.array([[1.0, 0.0], [np.nan, np.nan], [-0.5, 2.0]])
PRESENT = np.array([True, False, True])
LABELS = np.array([0, 1, 2, 0])


@pytest.fixture
def features() -> Tensor:
    return torch.tensor(FEATURES, requires_grad=True)


@pytest.fixture
def known() -> tuple[Tensor, Tensor, Tensor]:
    """Prototypes, which of them are present, and labels; the absent prototype is NaN."""
    return torch.tensor(PROTOTYPES), torch.tensor(PRESENT), torch.tensor(LABELS)


def test_hint_equals_the_formula(features: Tensor) -> None:
    expected = ((FEATURES - TEACHER) ** 2).sum() / FEATURES.size
    assert losses.hint(features, torch.tensor(TEACHER)).item() == pytest.approx(expected, rel=1e-9)


def test_hint_takes_feature_maps_and_scales_with_the_square(features: Tensor) -> None:
    maps, teacher = features.reshape(2, 2, 2, 1), torch.tensor(TEACHER).reshape(2, 2, 2, 1)
    assert losses.hint(3 * maps, 3 * teacher).item() == pytest.approx(9 * losses.hint(maps, teacher).item(), rel=1e-12)


def test_hint_is_zero_at_equality_only(features: Tensor) -> None:
    assert losses.hint(features, features).item() == 0.0
    assert losses.hint(features, torch.tensor(TEACHER)).item() > 0.0


def test_hint_gradcheck_and_vectorised(features: Tensor) -> None:
    teacher = torch.tensor(TEACHER)
    assert torch.autograd.gradcheck(lambda student: losses.hint(student, teacher), features)
    students, teachers = torch.stack([features, -features]).detach(), torch.stack([teacher, teacher.flip(0)])
    together = vmap(grad(losses.hint))(students, teachers)
    for client in range(2):
        alone = grad(losses.hint)(students[client], teachers[client])
        torch.testing.assert_close(together[client], alone, rtol=1e-12, atol=0)


def test_hint_sends_no_gradient_to_the_teacher_and_keeps_inputs(features: Tensor) -> None:
    teacher = torch.tensor(TEACHER, requires_grad=True)
    losses.hint(features, teacher).backward()
    assert teacher.grad is None
    assert np.array_equal(teacher.detach().numpy(), TEACHER)
    assert np.array_equal(features.detach().numpy(), FEATURES)


def test_prototype_equals_the_formula(features: Tensor, known: tuple[Tensor, Tensor, Tensor]) -> None:
    total = sum(((FEATURES[row] - PROTOTYPES[label]) ** 2).sum() for row, label in enumerate(LABELS) if PRESENT[label])
    assert losses.prototype(features, *known).item() == pytest.approx(total / FEATURES.size, rel=1e-9)


def test_prototype_is_zero_at_equality_and_without_prototypes(known: tuple[Tensor, Tensor, Tensor]) -> None:
    prototypes, present, labels = known
    at_home = torch.nan_to_num(prototypes)[labels]
    assert losses.prototype(at_home, prototypes, present, labels).item() == 0.0
    assert losses.prototype(at_home + 7, prototypes, torch.zeros_like(present), labels).item() == 0.0


def test_prototype_gradcheck_and_no_pull_without_a_prototype(
    features: Tensor, known: tuple[Tensor, Tensor, Tensor]
) -> None:
    (gradient,) = torch.autograd.grad(losses.prototype(features, *known), features)
    assert gradient[1].tolist() == [0.0, 0.0]  # the sample of the absent class
    seen = [0, 2, 3]
    prototypes, present, labels = known
    assert torch.autograd.gradcheck(
        lambda rows: losses.prototype(rows, prototypes, present, labels[seen]), features[seen].detach().requires_grad_()
    )


def test_prototype_sends_no_gradient_to_prototypes_and_keeps_inputs(
    features: Tensor, known: tuple[Tensor, Tensor, Tensor]
) -> None:
    prototypes, present, labels = known
    losses.prototype(features, prototypes.requires_grad_(), present, labels).backward()
    assert prototypes.grad is None
    assert np.array_equal(prototypes.detach().numpy(), PROTOTYPES, equal_nan=True)
    assert np.array_equal(features.detach().numpy(), FEATURES)


def test_prototype_order_of_samples_is_irrelevant(features: Tensor, known: tuple[Tensor, Tensor, Tensor]) -> None:
    prototypes, present, labels = known
    order = [3, 1, 0, 2]
    expected = losses.prototype(features, *known).item()
    found = losses.prototype(features[order], prototypes, present, labels[order]).item()
    assert found == pytest.approx(expected, rel=1e-12)


def test_prototype_vectorised_over_clients(features: Tensor, known: tuple[Tensor, Tensor, Tensor]) -> None:
    prototypes, present, labels = known
    students = torch.stack([features, 2 * features]).detach()
    all_labels = torch.stack([labels, labels.flip(0)])
    masks = torch.stack([present, torch.tensor([True, False, False])])
    gradient = grad(losses.prototype)
    together = vmap(gradient, in_dims=(0, None, 0, 0))(students, prototypes, masks, all_labels)
    for client in range(2):
        alone = gradient(students[client], prototypes, masks[client], all_labels[client])
        torch.testing.assert_close(together[client], alone, rtol=1e-12, atol=0)


def test_refuses_other_shapes(features: Tensor, known: tuple[Tensor, Tensor, Tensor]) -> None:
    prototypes, present, labels = known
    with pytest.raises(ValueError, match=r"teacher: expected shape \(4, 2\), found \(4, 3\)"):
        losses.hint(features, torch.zeros(4, 3))
    with pytest.raises(ValueError, match=r"student: expected shape \(N,\), found \(\)"):
        losses.hint(torch.tensor(1.0), torch.tensor(1.0))
    with pytest.raises(ValueError, match=r"prototypes: expected shape \(C, 2\), found \(3, 5\)"):
        losses.prototype(features, torch.zeros(3, 5), present, labels)
    with pytest.raises(ValueError, match=r"present: expected shape \(3,\), found \(2,\)"):
        losses.prototype(features, prototypes, present[:2], labels)
    with pytest.raises(ValueError, match=r"present: expected booleans, found torch.int64"):
        losses.prototype(features, prototypes, present.long(), labels)
    with pytest.raises(ValueError, match=r"labels: expected shape \(4,\), found \(3,\)"):
        losses.prototype(features, prototypes, present, labels[:3])


# --- cross-modal L2, activation boundaries


def test_cross_modal_l2_equals_the_formulas() -> None:
    ours, theirs = draw(0, 4, 3, 2), draw(1, 4, 3, 2)
    total = sum((ours[place] - theirs[place]) ** 2 for place in np.ndindex(ours.shape))
    pair = torch.tensor(ours), torch.tensor(theirs)
    assert losses.cross_modal_l2(*pair).item() == pytest.approx(total / 24, rel=1e-9)
    assert losses.cross_modal_l2(*pair, variant="code").item() == pytest.approx(total / 8, rel=1e-9)
    assert losses.cross_modal_l2(pair[0], pair[0]).item() == 0.0


def test_activation_boundary_equals_the_formula() -> None:
    ours, theirs, margin = draw(0, 4, 3, 2, 2), draw(1, 4, 3, 2, 2), 0.7
    total = 0.0
    for place in np.ndindex(ours.shape):
        sign = 1 if theirs[place] > 0 else -1
        total += max(0.0, margin - sign * ours[place]) ** 2
    found = losses.activation_boundary(torch.tensor(ours), torch.tensor(theirs), margin=margin)
    assert found.item() == pytest.approx(total / 4, rel=1e-9)


def test_activation_boundary_by_hand_and_its_zero_region() -> None:
    ours = torch.tensor([[0.5, -0.5, 2.0, -3.0]], dtype=torch.float64, requires_grad=True)
    theirs = torch.tensor([[1.0, 1.0, 9.0, -1.0]], dtype=torch.float64)
    loss = losses.activation_boundary(ours, theirs)
    assert loss.item() == 0.5**2 + 1.5**2  # the last two are on the right side by more than the margin
    (gradient,) = torch.autograd.grad(loss, ours)
    assert gradient.tolist() == [[-1.0, -3.0, 0.0, 0.0]]
    assert losses.activation_boundary(ours, 100 * theirs).item() == loss.item()  # only signs count


# --- OFD


def test_ofd_equals_the_formula() -> None:
    ours, theirs, margin = draw(0, 4, 3, 2, 2), draw(1, 4, 3, 2, 2), np.array([-0.2, -1.0, 0.0])
    total = 0.0
    for n, c, h, w in np.ndindex(ours.shape):
        target = max(theirs[n, c, h, w], margin[c])
        if ours[n, c, h, w] > target or target > 0:
            total += (ours[n, c, h, w] - target) ** 2
    pair = torch.tensor(ours), torch.tensor(theirs)
    assert losses.ofd(*pair, torch.tensor(margin)).item() == pytest.approx(total / 4, rel=1e-9)
    assert losses.ofd(*pair, torch.tensor(margin).reshape(1, 3, 1, 1)).item() == pytest.approx(total / 4, rel=1e-9)


def test_ofd_leaves_alone_what_the_relu_cuts_off() -> None:
    theirs = torch.tensor([[-0.3, -2.0, -2.0, 1.0]], dtype=torch.float64)
    margin = torch.full((4,), -0.5, dtype=torch.float64)
    ours = torch.tensor([[-0.4, -0.5, -7.0, 1.0]], dtype=torch.float64, requires_grad=True)
    loss = losses.ofd(ours, theirs, margin)
    (gradient,) = torch.autograd.grad(loss, ours)
    assert loss.item() == 0.0
    assert not gradient.any()
    assert losses.ofd(ours.detach() + 0.2, theirs, margin).item() > 0


def test_ofd_margin_equals_the_formula() -> None:
    weight, bias = [0.8, -1.3, 0.5, 0.2], [0.3, -0.4, 0.0, 2.0]
    expected = []
    for deviation, mean in zip(map(abs, weight), bias, strict=True):
        tail = NormalDist(mean, deviation).cdf(0)
        density = math.exp(-((mean / deviation) ** 2) / 2) / math.sqrt(2 * math.pi)
        expected.append(mean - deviation * density / tail if tail > 1e-3 else -3 * deviation)
    norm = nn.BatchNorm2d(4).double()
    norm.weight.data, norm.bias.data = (torch.tensor(values, dtype=torch.float64) for values in (weight, bias))
    np.testing.assert_allclose(losses.ofd_margin(norm).numpy(), expected, rtol=1e-9)
    assert expected[3] == pytest.approx(-0.6)  # hardly ever negative: three deviations


def test_ofd_margin_is_the_mean_of_the_negative_half() -> None:
    norm = nn.BatchNorm1d(3).double()
    assert losses.ofd_margin(norm).tolist() == pytest.approx([-math.sqrt(2 / math.pi)] * 3, rel=1e-12)
    norm.bias.data = torch.tensor([-50.0, 0.5, -0.5], dtype=torch.float64)
    margin = losses.ofd_margin(norm)
    assert margin[0].item() == pytest.approx(-50.0, rel=1e-9)
    samples = torch.randn(200_000, dtype=torch.float64, generator=torch.Generator().manual_seed(0)) + 0.5
    assert margin[1].item() == pytest.approx(samples[samples < 0].mean().item(), abs=0.01)
    norm.weight.data = -norm.weight.data
    assert torch.equal(losses.ofd_margin(norm), margin)


def test_ofd_margin_of_constant_channels_and_of_none() -> None:
    norm = nn.BatchNorm2d(2)
    norm.weight.data.zero_()
    norm.bias.data = torch.tensor([-1.5, 2.0])
    assert losses.ofd_margin(norm).tolist() == [-1.5, 0.0]
    with pytest.raises(ValueError, match="batchnorm: expected a BatchNorm with weight and bias"):
        losses.ofd_margin(nn.BatchNorm2d(2, affine=False))


# --- ReviewKD


def pooled(maps: np.ndarray, side: int) -> np.ndarray:
    """Adaptive average pooling, place by place."""
    height, width = maps.shape[2:]
    result = np.zeros((*maps.shape[:2], side, side))
    for i, j in np.ndindex(side, side):
        rows = slice(i * height // side, -(-(i + 1) * height // side))
        columns = slice(j * width // side, -(-(j + 1) * width // side))
        result[:, :, i, j] = maps[:, :, rows, columns].mean(axis=(2, 3))
    return result


@pytest.mark.parametrize(("side", "levels"), [(1, []), (2, [1]), (4, [2, 1]), (7, [4, 2, 1])])
def test_review_kd_equals_the_formula(side: int, levels: list[int]) -> None:
    ours, theirs = draw(0, 3, 2, side, side), draw(1, 3, 2, side, side)
    total, weights = ((ours - theirs) ** 2).mean(), 1.0
    for power, level in enumerate(levels, start=1):
        total += 0.5**power * ((pooled(ours, level) - pooled(theirs, level)) ** 2).mean()
        weights += 0.5**power
    pair = torch.tensor(ours), torch.tensor(theirs)
    assert losses.review_kd(*pair).item() == pytest.approx(total / weights, rel=1e-9)
    assert losses.review_kd([pair[0]] * 2, [pair[1]] * 2).item() == pytest.approx(2 * total / weights, rel=1e-9)


@pytest.mark.parametrize("shape", [(2, 3, 1, 1), (2, 3, 4, 4), (2, 3, 5, 9), (2, 3, 16, 16)])
def test_review_kd_of_a_constant_offset_is_its_square(shape: tuple[int, ...]) -> None:
    maps = torch.tensor(draw(0, *shape))
    assert losses.review_kd(maps, maps + 0.3).item() == pytest.approx(0.09, rel=1e-12)
    assert losses.review_kd(maps, maps).item() == 0.0


def test_refuses_other_stages_margins_and_settings() -> None:
    maps = torch.zeros(2, 3, 4, 4)
    with pytest.raises(ValueError, match="teacher: expected as many stages as the student's, found 1 for 2"):
        losses.review_kd([maps, maps], [maps])
    with pytest.raises(ValueError, match=r"student: expected shape \(N, C, H, W\), found \(2, 3\)"):
        losses.review_kd(torch.zeros(2, 3), torch.zeros(2, 3))
    with pytest.raises(ValueError, match=r"margin: expected shape \(3,\), found \(4,\)"):
        losses.ofd(maps, maps, torch.zeros(4))
    with pytest.raises(ValueError, match=r"margin: expected a finite number above 0, found 0"):
        losses.activation_boundary(maps, maps, margin=0)
    with pytest.raises(ValueError, match="variant: expected one of 'mean', 'code', found 'caffe'"):
        losses.cross_modal_l2(maps, maps, variant="caffe")  # type: ignore[arg-type]
