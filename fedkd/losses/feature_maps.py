"""Feature-based losses on what maps have in common: attention, factors, flow, selectivity.

They summarise each map first, so that student and teacher may differ in size and, but for :func:`fsp`, in channels. The
larger map is averaged down to the size of the smaller. All are pure, send no gradient to the teacher side, and run
inside ``torch.func.vmap`` and ``torch.func.grad``.
"""

from typing import Literal

from torch import Tensor

from fedkd.checks import expect_choice, expect_positive, expect_shape
from fedkd.losses._arguments import maps
from fedkd.numerics import products, root, to_smaller, unit

Pair = tuple[Tensor, Tensor]


def attention(
    student: Tensor, teacher: Tensor, *, variant: Literal["code", "paper"] = "code", power: float = 2.0
) -> Tensor:
    """Difference of attention maps: where in the image the activations are strong, whatever the channel.

    The attention map of a sample is the mean over channels of ``|f|^power``, scaled to length one.

    Args:
        student: maps of the student, shape ``(N, C, H, W)``.
        teacher: maps of the teacher, shape ``(N, D, H', W')``.
        variant: ``"code"``: squared difference, averaged over samples and places, as in the authors' code (customary
            weight 1000); ``"paper"``: length of the difference, averaged over samples.
        power: the paper's ``p``, above 0; below 1 the gradient is infinite where a feature is zero.

    Returns:
        The loss, a number without unit: at most ``2 / (H W)`` for ``"code"`` and ``2**0.5`` for ``"paper"``.

    Raises:
        ValueError: a shape does not fit, a value is not a finite number, or a setting is out of range.

    Formula: code: ``1 / (N H W) * sum |Q - Q'|^2``; paper: ``1 / N * sum_n |Q - Q'|``; ``Q = v / |v|``,
    ``v = mean_c |f_c|^power``.

    Source: Zagoruyko & Komodakis 2017 (arXiv:1612.03928), eq. 2 without the factor beta/2, which is the loss's weight.

    Elsewhere: RepDistiller, mdistiller and mmrazor have "code", torchdistill both. KD_Lib applies it to logits, where
    it is always 0.
    """
    expect_choice("variant", variant, ("code", "paper"))
    expect_positive("power", power)
    student, teacher = to_smaller(*maps(student, teacher))
    squares = (_attention_map(student, power) - _attention_map(teacher, power)).square()
    return squares.mean() if variant == "code" else root(squares.sum(dim=1)).mean()


def factor_transfer(
    student: Tensor,
    teacher: Tensor,
    *,
    variant: Literal["code", "paper", "attention"] = "code",
    norm: Literal[1, 2] = 1,
) -> Tensor:
    """Difference of factors, each scaled to length one over all its entries.

    The teacher's factors come from a paraphraser (an autoencoder of its maps), the student's from a translator.

    Args:
        student: factors of the student, shape ``(N, C, H, W)``.
        teacher: factors of the teacher, shape ``(N, C, H', W')``.
        variant: ``"code"``: averaged over samples and entries; ``"paper"``: the norm of each sample's difference,
            averaged over samples; ``"attention"``: as ``"code"``, but on the mean over channels of the squares, as the
            much used RepDistiller has it, where any maps may stand for factors and channels may differ.
        norm: the paper's ``p``; 2 means squares for ``"code"`` and ``"attention"``.

    Returns:
        The loss, a number without unit.

    Raises:
        ValueError: a shape does not fit, a value is not a finite number, or there is no such setting.

    Formula: code: ``mean |u - u'|^norm``; paper: ``1 / N * sum_n |u - u'|_norm``; ``u = f / |f|_2`` over all entries of
    a sample.

    Source: Kim et al. 2018 (arXiv:1802.04977), the factor transfer loss.

    Elsewhere: The authors' code is ``variant="code"`` with ``norm = 1`` and weight 500. RepDistiller has "attention",
    without paraphraser and translator.
    """
    expect_choice("variant", variant, ("code", "paper", "attention"))
    expect_choice("norm", str(norm), ("1", "2"))
    student, teacher = to_smaller(*maps(student, teacher))
    if variant == "attention":
        student, teacher = (entries.square().mean(dim=1) for entries in (student, teacher))
    else:
        expect_shape("teacher", teacher, *student.shape)
    difference = unit(student.flatten(1)) - unit(teacher.flatten(1))
    sizes = difference.abs() if norm == 1 else difference.square()
    if variant != "paper":
        return sizes.mean()
    return (sizes.sum(dim=1) if norm == 1 else root(sizes.sum(dim=1))).mean()


def fsp(student: Pair, teacher: Pair, *, variant: Literal["code", "paper"] = "code") -> Tensor:
    """Squared difference of flow matrices: the products between two layers' channels, averaged over places.

    Args:
        student: maps at the start and at the end of a part of the student, shapes ``(N, C, H, W)`` and
            ``(N, D, H', W')``; the larger is averaged down to the smaller (the paper takes maxima).
        teacher: the same of the teacher, with equal numbers of channels; sizes may differ from the student's.
        variant: ``"code"``: averaged over samples and entries of the matrices, as in public code (customary weight
            50); ``"paper"``: summed over the entries, averaged over samples.

    Returns:
        The loss in units of the features to the fourth power, a scalar.

    Raises:
        ValueError: a shape does not fit, a value is not a finite number, or there is no such variant.

    Formula: code: ``1 / (N C D) * sum (F - F')^2``; paper: ``1 / N * sum (F - F')^2``;
    ``F_cd = 1 / (H W) * sum_hw first_chw second_dhw``.

    Source: Yim et al. 2017 (A gift from knowledge distillation, CVPR), eq. 1 and 2.

    Elsewhere: RepDistiller is ``variant="code"``. The paper and torchdistill pool the larger map by maxima, not by
    averages.
    """
    expect_choice("variant", variant, ("code", "paper"))
    for name, pair in (("student", student), ("teacher", teacher)):
        if not isinstance(pair, tuple | list) or len(pair) != len(("first", "second")):
            raise ValueError(f"{name}: expected a pair of maps (first, second), found {type(pair).__name__}.")
    taken = []
    for place in range(2):
        names = (f"student[{place}]", f"teacher[{place}]")
        taken.append(maps(student[place], teacher[place], names=names))
        expect_shape(names[1], teacher[place], len(student[0]), student[place].shape[1], "H'", "W'")
    (ours, theirs) = zip(*taken, strict=True)
    squares = (_flow(*ours) - _flow(*theirs)).square()
    return squares.mean() if variant == "code" else squares.sum() / len(squares)


def nst(student: Tensor, teacher: Tensor) -> Tensor:
    """Neuron selectivity transfer: squared maximum mean discrepancy between the two sets of channel maps.

    A channel's map over the places of a sample, scaled to length one, is one element of the set; the kernel is the
    squared inner product. Averaged over samples; customary weight 50.

    Args:
        student: maps of the student, shape ``(N, C, H, W)``.
        teacher: maps of the teacher, shape ``(N, D, H', W')``.

    Returns:
        The loss, a number without unit, 0 or above but for rounding.

    Raises:
        ValueError: a shape does not fit, or a value is not a finite number.

    Formula: ``mean_ij k(u_i, u_j) + mean_ij k(u'_i, u'_j) - 2 mean_ij k(u_i, u'_j)`` with ``k(x, y) = (x y)^2``,
    ``u_c = f_c / |f_c|`` over places.

    Source: Huang & Wang 2017 (arXiv:1707.01219), with the polynomial kernel of degree 2 and offset 0.

    Elsewhere: RepDistiller and mdistiller agree.
    """
    student, teacher = (unit(entries.flatten(2)) for entries in to_smaller(*maps(student, teacher)))
    pairs = ((student, student), (teacher, teacher), (student, teacher))
    ours, theirs, between = (products(*pair).square().mean() for pair in pairs)
    return ours + theirs - 2 * between


def _attention_map(features: Tensor, power: float) -> Tensor:
    """Return the attention maps of features ``(N, C, H, W)``, flattened to ``(N, H W)`` and of length one."""
    strength = features.square() if power == 2 else features.abs().pow(power)  # noqa: PLR2004 - exact, and usual
    return unit(strength.mean(dim=1).flatten(1))


def _flow(first: Tensor, second: Tensor) -> Tensor:
    """Return the flow matrices ``(N, C, D)`` between maps ``(N, C, H, W)`` and ``(N, D, H', W')``."""
    first, second = (entries.flatten(2) for entries in to_smaller(first, second))
    return products(first, second) / first.shape[2]
