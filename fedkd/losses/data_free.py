"""Data-free distillation: what a generator, or an image itself, is trained with where there are no data.

The teacher is frozen, but here the gradient does flow *through* its outputs and features, to the input that made them.
Otherwise these are pure functions like all losses: they return a scalar, never change their arguments, and run inside
``torch.func.vmap`` and ``torch.func.grad``. What is stored of the data, such as running statistics, is constant.
"""

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from fedkd.checks import expect_choice, expect_numbers, expect_shape, expect_tensor
from fedkd.losses._logits import at, divergence, received
from fedkd.numerics import wide


def one_hot(teacher: Tensor) -> Tensor:
    """Cross-entropy of the teacher's outputs with the class it holds most likely: samples shall look certain to it.

    Args:
        teacher: logits of the teacher for generated samples, shape ``(N, C)``.

    Returns:
        The loss in nats, a scalar, above zero.

    Raises:
        ValueError: the shape does not fit, or a value is not finite.

    Formula: ``-1 / N * sum_n log max_c softmax(teacher)_c``.

    Source: Chen et al. 2019 (DAFL, arXiv:1904.01186), one-hot loss.

    Elsewhere: Official code and DataFree agree.
    """
    teacher = received("teacher", teacher)
    return -at(torch.log_softmax(teacher, dim=1), teacher.detach().argmax(dim=1)).mean()


def information_entropy(teacher: Tensor, *, variant: str = "paper") -> Tensor:
    """``sum_c q_c log q_c`` of the teacher's mean probabilities ``q`` over the batch: all classes shall be as frequent.

    Args:
        teacher: logits of the teacher for generated samples, shape ``(N, C)``.
        variant: the base of the logarithm: ``"paper"`` is e, ``"code"`` is 10 (0.43 of it).
            The sum over classes is not divided by their number in either.

    Returns:
        The loss, negative, a scalar: in nats from ``-log C``, where all classes are equally frequent, to 0.

    Raises:
        ValueError: the shape does not fit, a value is not finite, or the variant is none.

    Formula: ``sum_c q_c log q_c`` with ``q = 1/N sum_n softmax(teacher_n)``.

    Source: Chen et al. 2019 (DAFL, arXiv:1904.01186), information entropy loss.

    Elsewhere: The authors' code has the logarithm to base 10 (``variant="code"``), DataFree the natural one.
    """
    teacher = received("teacher", teacher)
    expect_choice("variant", variant, ("paper", "code"))
    # By way of logarithms: a probability that is 0 in this precision would have an infinite gradient.
    log_mean = torch.log_softmax(teacher, dim=1).logsumexp(dim=0) - math.log(len(teacher))
    nats = (log_mean.exp() * log_mean).sum()
    return nats if variant == "paper" else nats / math.log(10)


def activation(features: Tensor, *, variant: str = "code") -> Tensor:
    """Minus the size of the teacher's features: real samples excite its filters more than noise does.

    Args:
        features: features of the teacher for generated samples, after their activation function, shape ``(N, ...)``.
        variant: ``"code"``: minus the mean absolute entry, to which the published weights (0.1 on MNIST) belong;
            ``"paper"``: minus the sum over a sample's entries (its L1 norm), averaged over samples.

    Returns:
        The loss in units of the features, zero or negative, a scalar.

    Raises:
        ValueError: the shape does not fit, a value is not finite, or the variant is none.

    Formula: code: ``-mean |features|``; paper: ``-1 / N * sum_n |features_n|_1``.

    Source: Chen et al. 2019 (DAFL, arXiv:1904.01186), activation loss.

    Elsewhere: Official code and DataFree have the mean.
    """
    expect_tensor("features", features)
    expect_shape("features", features, "N", *"d" * max(1, features.ndim - 1))
    expect_numbers("features", features)
    expect_choice("variant", variant, ("paper", "code"))
    sizes = wide(features).abs().flatten(1)
    return -(sizes.mean() if variant == "code" else sizes.sum(dim=1).mean())


def batchnorm_statistics(features: Tensor, running_mean: Tensor, running_var: Tensor) -> Tensor:
    """Distance of a batch's statistics from those that a BatchNorm layer of the teacher has stored.

    The Euclidean length of the difference of means plus that of the difference of variances, neither squared. The
    batch's variance is the biased one. Sum it over layers.

    Args:
        features: what comes into the layer for generated samples, shape ``(N, C)`` or ``(N, C, ...)``.
        running_mean: the layer's stored mean, shape ``(C,)``.
        running_var: the layer's stored variance, shape ``(C,)``.

    Returns:
        The loss, a scalar; zero exactly where the statistics agree.

    Raises:
        ValueError: a shape does not fit, or a value is not finite.

    Formula: ``|mean - running_mean|_2 + |var - running_var|_2``.

    Source: Yin et al. 2020 (DeepInversion, arXiv:1912.08795), the feature distribution regulariser.

    Elsewhere: The paper and its code agree. Their further Jensen-Shannon term is none: it has ``T = 3`` and clamps at
    0.01 and 0.99.
    """
    expect_tensor("features", features)
    expect_shape("features", features, "N", "C", *"d" * (features.ndim - 2))
    for name, value in (("running_mean", running_mean), ("running_var", running_var)):
        expect_shape(name, value, features.shape[1])
        expect_numbers(name, value)
    expect_numbers("features", features)
    features = wide(features)
    by_channel = features.transpose(0, 1).flatten(1)
    means = by_channel.mean(dim=1)
    variances = (by_channel - means[:, None]).square().mean(dim=1)
    differences = means - running_mean.detach(), variances - running_var.detach()
    return torch.stack([torch.linalg.vector_norm(difference) for difference in differences]).sum()


def dfad_generator(student: Tensor, teacher: Tensor, *, variant: str = "paper") -> Tensor:
    """DFAD's term for the generator: student and teacher shall differ on what it makes.

    The student's term is :func:`fedkd.losses.logit_mae`.

    Args:
        student: logits of the student for generated samples, shape ``(N, C)``.
        teacher: logits of the teacher for the same samples, shape ``(N, C)``. The gradient goes to both.
        variant: ``"paper"``: ``-log(1 + d)``, whose gradient shrinks where they differ much; ``"code"``: ``-d``;
            ``d`` is the mean absolute difference over samples and classes.

    Returns:
        The loss, zero or negative, a scalar.

    Raises:
        ValueError: a shape does not fit, a value is not finite, or the variant is none.

    Formula: paper: ``-log(1 + d)``; code: ``-d``; ``d = 1 / (N C) * sum_nc |student - teacher|``.

    Source: Fang et al. 2019 (DFAD, arXiv:1912.11006), generation stage.

    Elsewhere: The authors' programs have both: ``-d`` on MNIST, ``-log(1 + d)`` on NYUv2.
    """
    student, teacher = _received_both(student, teacher)
    expect_choice("variant", variant, ("paper", "code"))
    difference = (student - teacher).abs().mean()
    return -torch.log1p(difference) if variant == "paper" else -difference


def zskt_generator(student: Tensor, teacher: Tensor, *, temperature: float = 1.0, variant: str = "paper") -> Tensor:
    """Zero-shot transfer's term for the generator: ``-KL(teacher || student)``, averaged over the batch.

    The student's term is the same divergence without the sign (:func:`fedkd.losses.kd`), beside attention transfer.

    Args:
        student: logits of the student for generated samples, shape ``(N, C)``.
        teacher: logits of the teacher for the same samples, shape ``(N, C)``. The gradient goes to both.
        temperature: of both softmaxes, above 0; no factor ``T^2``.
        variant: ``"paper"`` sums over classes; ``"code"`` takes the mean over them too, as the authors' code does.

    Returns:
        The loss in nats, zero or negative, a scalar.

    Raises:
        ValueError: a shape does not fit, a value is not finite, or a setting is none.

    Formula: ``-1 / N * sum_nc q log(q / p)`` with ``p = softmax(student / T)``, ``q = softmax(teacher / T)``.

    Source: Micaelli & Storkey 2019 (ZSKT, arXiv:1905.09768), algorithm 1.

    Elsewhere: The authors' code takes the mean over the classes too (``variant="code"``). DataFree's option ``--T`` has
    no effect.
    """
    student, teacher = _received_both(student, teacher)
    expect_choice("variant", variant, ("paper", "code"))
    loss = -divergence(student, teacher, temperature) / temperature**2
    return loss if variant == "paper" else loss / student.shape[1]


def metadata_reconstruction(activations: Sequence[Tensor], targets: Sequence[Tensor]) -> Tensor:
    """Distance of a batch's rectified activations from sampled ones: ``sum_l mean((relu(a*) - relu(a))^2) / d_l``.

    The mean is over samples and the ``d_l`` entries of a layer. With one layer it is the authors' "top layer" objective
    divided by its width.

    Args:
        activations: the teacher's activations for the samples being made, one tensor ``(N, d_l)`` for each layer.
        targets: activations drawn from what is stored of the data (:func:`sample_activations`), same shapes.

    Returns:
        The loss in squared units of the activations, a scalar.

    Raises:
        ValueError: there is no layer, their numbers or a shape differ, or a value is not finite.

    Formula: ``sum_l 1 / d_l * mean_n mean((relu(targets) - relu(activations))^2)``.

    Source: Lopes et al. 2017 (arXiv:1710.07535), section 3, as in the authors' code for all layers.

    Elsewhere: The authors' "spectral" objectives are the same as this one.
    """
    if not activations or len(activations) != len(targets):
        raise ValueError(
            f"targets: expected one for each of {len(activations)} layers (1 or more), found {len(targets)}."
        )
    terms = []
    for number, (found, wanted) in enumerate(zip(activations, targets, strict=True)):
        expect_shape(f"activations[{number}]", found, "N", "d")
        expect_shape(f"targets[{number}]", wanted, *found.shape)
        expect_numbers(f"activations[{number}]", found)
        expect_numbers(f"targets[{number}]", wanted)
        rectified = wide(found).relu()
        difference = wanted.detach().to(rectified.dtype).relu() - rectified
        terms.append(difference.square().mean() / found.shape[1])
    return torch.stack(terms).sum()


def sample_activations(mean: Tensor, covariance: Tensor, noise: Tensor) -> Tensor:
    """Turn standard normal noise into activations with a stored mean and covariance.

    Args:
        mean: stored mean of a layer for one class, shape ``(d,)``.
        covariance: its stored covariance, symmetric and without negative eigenvalues, shape ``(d, d)``. Units that
            never fire make it singular, so its square root is taken by eigenvalues, not by Cholesky's method.
        noise: standard normal numbers, shape ``(N, d)``.

    Returns:
        Activations ``(N, d)``, without gradient.

    Raises:
        ValueError: a shape does not fit, or a value is not finite.

    Formula: ``mean + noise S^(1/2)`` with ``S^(1/2) = V diag(sqrt(l))`` of ``S = V diag(l) V^T``.

    Source: Lopes et al. 2017 (arXiv:1710.07535), section 3.

    Elsewhere: The authors' code multiplies by the covariance itself, whose square is then that of what it draws.
    """
    expect_shape("mean", mean, "d")
    expect_shape("covariance", covariance, len(mean), len(mean))
    expect_shape("noise", noise, "N", len(mean))
    for name, value in (("mean", mean), ("covariance", covariance), ("noise", noise)):
        expect_numbers(name, value)
    values, vectors = torch.linalg.eigh(wide(covariance).detach())
    root = vectors * values.clamp(min=0).sqrt()
    with torch.autocast(mean.device.type, enabled=False):  # it would round the product to half precision
        drawn: Tensor = mean.detach() + wide(noise).detach() @ root.mT
    return drawn


def _received_both(student: Tensor, teacher: Tensor) -> tuple[Tensor, Tensor]:
    student = received("student", student)
    expect_shape("teacher", teacher, *student.shape)
    return student, received("teacher", teacher)
