"""Information-based losses: bounds on what the student's features tell about the teacher's.

All are pure, return a scalar, send no gradient to the teacher side, and run inside ``torch.func.vmap`` and
``torch.func.grad``. Their minimum is not zero.
"""

import math
from numbers import Real
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn.functional import softplus

from fedkd.checks import (
    expect_integer,
    expect_labels,
    expect_number,
    expect_numbers,
    expect_positive,
    expect_shape,
    expect_tensor,
)
from fedkd.losses._arguments import alike, expect_all_positive, rows
from fedkd.numerics import products, unit, wide

_VARIANCE_FLOOR = 1e-5
_CRD_EPS = 1e-7


def vid(mean: Tensor, teacher: Tensor, *, variance: Tensor) -> Tensor:
    """Variational information distillation: the negative log-likelihood of the teacher's features, less a constant.

    The student predicts a normal distribution: ``((mean - teacher)^2 / variance + log(variance)) / 2``, averaged over
    samples and entries. Where the mean is right, half the mean log-variance is left.

    Args:
        mean: what a regressor makes of the student's features, shape ``(N, C, ...)``.
        teacher: features of the teacher, same shape.
        variance: in squared units of the features, above 0: of each channel ``(C,)``, or of each entry in the shape
            of ``mean``; trained with the regressor, see :func:`vid_variance`.

    Returns:
        The loss in nats per entry, a scalar; below zero where the variance is small enough.

    Raises:
        ValueError: a shape does not fit, a value is not a finite number, or a variance is not above 0.

    Formula: ``1/2 mean((mean - teacher)^2 / variance + log variance)``.

    Source: Ahn et al. 2019 (arXiv:1904.05835), section 2, with a variance for each channel.

    Elsewhere: mdistiller keeps the variances in a plain list: untrained, 5 for ever.
    """
    expect_tensor("mean", mean)
    expect_tensor("variance", variance)
    expect_shape("mean", mean, "N", "C", *"d" * (mean.ndim - 2))
    channels = mean.shape[1]
    expect_shape("variance", variance, *((channels,) if variance.ndim == 1 else mean.shape))
    expect_all_positive("variance", variance)
    mean, teacher = alike(mean, teacher, names=("mean", "teacher"))
    variance = wide(variance)
    if variance.ndim == 1:
        variance = variance.reshape(1, channels, *[1] * (mean.ndim - 2))
    return ((mean - teacher).square() / variance + variance.log()).mean() / 2


def vid_variance(raw: Tensor) -> Tensor:
    """Return the variance, above 0, that an unbounded trained parameter stands for: ``softplus(raw) + 1e-5``.

    Args:
        raw: any shape.

    Raises:
        ValueError: a value is not a finite number.

    Formula: ``log(1 + exp(raw)) + 1e-5``.

    Source: Ahn et al. 2019 (arXiv:1904.05835), section 2, with the floor of the authors' code.

    Elsewhere: RepDistiller agrees.
    """
    expect_numbers("raw", raw)
    return softplus(wide(raw)) + _VARIANCE_FLOOR


def vid_start(variance: float = 5.0) -> float:
    """Return the ``raw`` from which :func:`vid_variance` gives this variance; the authors start from 5.

    Raises:
        ValueError: the variance is not above the floor of 1e-5.

    Formula: ``log(exp(variance - 1e-5) - 1)``.

    Source: Ahn et al. 2019 (arXiv:1904.05835), with the start of the authors' code.

    Elsewhere: RepDistiller agrees.
    """
    if not isinstance(variance, Real) or not _VARIANCE_FLOOR < variance < math.inf:
        raise ValueError(f"variance: expected a finite number above {_VARIANCE_FLOOR}, found {variance!r}.")
    return variance - _VARIANCE_FLOOR + math.log(-math.expm1(_VARIANCE_FLOOR - variance))


class CrdMemory(NamedTuple):
    """Embeddings of all ``M`` samples as they were last seen.

    The first memory comes from :func:`crd_start`, the next from :func:`crd_remember`.

    Attributes:
        student: rows of length one, shape ``(M, d)``.
        teacher: rows of length one, shape ``(M, d)``.
        student_scale: the constant ``Z`` of the student's scores, a scalar; 0 as long as there is none.
        teacher_scale: likewise, of the teacher's.
    """

    student: Tensor
    teacher: Tensor
    student_scale: Tensor
    teacher_scale: Tensor


def crd_start(samples: int, width: int, *, generator: torch.Generator | None = None) -> CrdMemory:
    """Return the first memory: random rows of length one for every sample, and no ``Z`` yet.

    Args:
        samples: number of samples ``M`` that will ever be compared.
        width: length ``d`` of an embedding.
        generator: where the random numbers come from; torch's own if absent. The memory is on its device.

    Raises:
        ValueError: a number is not a whole one of 1 or more.

    Formula: ``unit(x)`` of ``x`` uniform in ``[-1, 1]^d``.

    Source: the authors' code of Tian et al. 2020 (arXiv:1910.10699), but scaled to length one.

    Elsewhere: RepDistiller's rows are uniform in ``[-1/sqrt(d/3), 1/sqrt(d/3)]^d``, of length one on average.
    """
    expect_integer("samples", samples, 1)
    expect_integer("width", width, 1)
    device = generator.device if generator is not None else None
    sides = [unit(torch.rand(samples, width, generator=generator, device=device) * 2 - 1) for _ in range(2)]
    return CrdMemory(sides[0], sides[1], torch.zeros((), device=device), torch.zeros((), device=device))


def crd(
    student: Tensor,
    teacher: Tensor,
    *,
    temperature: float = 0.07,
    symmetric: bool = False,
    memory: CrdMemory | None = None,
    contrast: Tensor | None = None,
) -> Tensor:
    """Contrastive representation distillation: tell the teacher's embedding of the same sample from those of others.

    Without a memory, the others are the rest of the batch (InfoNCE): the cross-entropy of picking the right teacher
    row by its cosine. That needs no index of all samples, so that it suits clients of a federation. With a memory, it
    is the paper's noise-contrastive estimate against remembered embeddings.

    Embeddings are scaled to length one here. The teacher's are constant; where a layer that embeds the teacher's
    features is trained as well, as in the paper, add ``crd(teacher, student)``, with the memory's sides swapped too.

    Args:
        student: embeddings of the student, shape ``(N, d)``.
        teacher: embeddings of the teacher, shape ``(N, d)``.
        temperature: ``T``, above 0; divides the cosines.
        symmetric: without a memory, whether the teacher picks among the student's rows as well; the two are averaged.
        memory: remembered embeddings, or None.
        contrast: with a memory, its rows to compare with, int64, shape ``(N, 1 + K)``: each sample's own row first,
            then K others, drawn by the caller.

    Returns:
        The loss in nats, a scalar. Without a memory, ``log N`` if all embeddings are equal.

    Raises:
        ValueError: a shape does not fit, a value is not a finite number, the temperature is not above 0, or one of
            ``memory`` and ``contrast`` comes without the other.

    Formula: ``-1 / N * sum_n log softmax_m(s_n t_m / T)_n`` of unit rows; with a memory
    ``-1 / N * sum_n (log h(t_n) + sum_k log(1 - h(t_k)))`` with ``h(t) = g / (g + K / M)``, ``g = exp(s t / T) / Z``,
    and the same for the teacher's rows.

    Source: Tian et al. 2020 (arXiv:1910.10699), eq. 18 with the estimate of ``Z`` of the authors' code; without a
    memory, van den Oord et al. 2018 (arXiv:1807.03748), eq. 4.

    Elsewhere: The authors have 16384 others, embeddings of 128 entries, and CUDA only. torchdistill's sampler fails
    unless it is given the others.
    """
    expect_positive("temperature", temperature)
    if (memory is None) != (contrast is None):
        found = "none" if contrast is None else "one without memory"
        raise ValueError(f"contrast: expected with a memory, and only then, found {found}.")
    student, teacher = _embeddings(student, teacher)
    if memory is None or contrast is None:
        scores = products(student, teacher) / temperature
        picked = torch.log_softmax(scores, dim=1).diagonal().mean()
        back = torch.log_softmax(scores, dim=0).diagonal().mean()
        return -(picked + back) / 2 if symmetric else -picked
    _expect_contrast(memory, contrast, student)
    ours, theirs = _scores(student, teacher, memory, contrast, temperature)
    student_scale, teacher_scale = _scales(ours, theirs, memory)
    samples = len(memory.student)
    return _estimate(ours / student_scale, samples) + _estimate(theirs / teacher_scale, samples)


def crd_remember(
    memory: CrdMemory,
    student: Tensor,
    teacher: Tensor,
    contrast: Tensor,
    *,
    temperature: float = 0.07,
    momentum: float = 0.5,
) -> CrdMemory:
    """Return the memory after a batch: its samples' rows drawn towards their new embeddings, and ``Z`` once known.

    Args:
        memory: as it was for this batch; stays as it is.
        student: embeddings of the student, shape ``(N, d)``.
        teacher: embeddings of the teacher, shape ``(N, d)``.
        contrast: rows of the memory that the batch was compared with, own row first, int64, shape ``(N, 1 + K)``.
        temperature: as in :func:`crd`.
        momentum: share of the old row, from 0 to below 1.

    Returns:
        New tensors without gradient; every row has length one.

    Raises:
        ValueError: a shape does not fit, a value is not a finite number, or a setting is out of range.

    Formula: ``unit(momentum row + (1 - momentum) new)``; ``Z = M mean(exp(s t / T))`` of the first batch.

    Source: the authors' code of Tian et al. 2020 (arXiv:1910.10699).

    Elsewhere: RepDistiller agrees.
    """
    expect_positive("temperature", temperature)
    expect_number("momentum", momentum)
    if not 0 <= momentum < 1:
        raise ValueError(f"momentum: expected a number from 0 to below 1, found {momentum}.")
    student, teacher = _embeddings(student, teacher)
    student = student.detach()
    _expect_contrast(memory, contrast, student)
    scales = _scales(*_scores(student, teacher, memory, contrast, temperature), memory)
    own = contrast[:, 0]
    fresh = [
        rows_.index_copy(0, own, unit(momentum * rows_[own] + (1 - momentum) * new))
        for rows_, new in ((memory.student, student), (memory.teacher, teacher))
    ]
    return CrdMemory(fresh[0], fresh[1], *scales)


def _embeddings(student: Tensor, teacher: Tensor) -> tuple[Tensor, Tensor]:
    expect_shape("student", student, "N", "d")
    expect_shape("teacher", teacher, *student.shape)
    student, teacher = rows(student, teacher)
    return unit(student), unit(teacher)


def _expect_contrast(memory: CrdMemory, contrast: Tensor, student: Tensor) -> None:
    if not isinstance(memory, CrdMemory):
        raise ValueError(f"memory: expected a CrdMemory, found {type(memory).__name__}; crd_start makes one.")
    expect_shape("memory.student", memory.student, "M", student.shape[1])
    expect_shape("memory.teacher", memory.teacher, *memory.student.shape)
    expect_shape("memory.student_scale", memory.student_scale)
    expect_shape("memory.teacher_scale", memory.teacher_scale)
    for name, value in zip(memory._fields, memory, strict=True):
        expect_numbers(f"memory.{name}", value)
    expect_shape("contrast", contrast, len(student), "K")
    expect_labels("contrast", contrast.flatten(), contrast.numel(), len(memory.student), of="row numbers")


def _scores(
    student: Tensor, teacher: Tensor, memory: CrdMemory, contrast: Tensor, temperature: float
) -> tuple[Tensor, Tensor]:
    """Return both sides' scores ``(N, 1 + K)``: each against what the memory holds of the other side."""
    ours = products(memory.teacher.detach().to(student.dtype)[contrast], student[:, None, :])[..., 0]
    theirs = products(memory.student.detach().to(teacher.dtype)[contrast], teacher[:, None, :])[..., 0]
    return (ours / temperature).exp(), (theirs / temperature).exp()


def _scales(ours: Tensor, theirs: Tensor, memory: CrdMemory) -> tuple[Tensor, Tensor]:
    """Return the two constants ``Z``: the memory's, or this batch's estimate of the sum over all samples."""
    scales = [
        torch.where(known > 0, known, scores.mean() * len(memory.student)).detach()
        for known, scores in ((memory.student_scale, ours), (memory.teacher_scale, theirs))
    ]
    return scales[0], scales[1]


def _estimate(probabilities: Tensor, samples: int) -> Tensor:
    """Return the noise-contrastive loss of ``(N, 1 + K)`` probabilities, the first of each row that of the match."""
    noise = (probabilities.shape[1] - 1) / samples
    total = probabilities + noise + _CRD_EPS
    matches, others = (probabilities[:, 0] / total[:, 0]).log(), (noise / total[:, 1:]).log()
    return -(matches.sum() + others.sum()) / len(probabilities)
