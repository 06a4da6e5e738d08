"""Making a classifier calibrated: a temperature, or a scale and a shift per class, fitted on held-out samples."""

import math
from dataclasses import dataclass
from numbers import Real

import torch
from torch import Tensor

from fedkd.calibration._checks import expect_pairs
from fedkd.checks import expect_positive, expect_shape, expect_tensor

_STEPS = 200  # of a search that needs 60 at worst, when it only halves
_RESOLUTION = 1e-12  # of the logarithm of a temperature


def fit_temperature(logits: Tensor, labels: Tensor, *, low: float = 0.01, high: float = 100.0) -> float:
    """Find the temperature whose softmax of ``logits / T`` has the smallest negative log-likelihood.

    The likelihood is concave in ``1/T``, so that there is one optimum, and the slope says on which side it lies: a
    search by Newton's method on ``log T`` that halves its bounds where Newton would leave them. It uses no random
    number and no start value.

    Args:
        logits: class scores before the softmax, on held-out samples, shape ``(N, C)``.
        labels: class numbers, int64, shape ``(N,)``.
        low: smallest temperature; returned where the likelihood still grows there, as it does if all samples are
            right.
        high: largest temperature; returned where the likelihood still grows there, as it does if the classifier is
            worse than chance.

    Returns:
        The temperature. Where every temperature is equally good, since no row has two different numbers, 1 or the
        bound next to it.

    Raises:
        ValueError: a shape or type does not fit, there is no sample or no such class, a logit is not finite, or the
            bounds are not finite with ``0 < low < high``.

    Formula: ``argmin_T -1 / N * sum_n log softmax(logits / T)_y``.

    Source: temperature scaling, Guo et al. 2017 (arXiv:1706.04599), section 4.2; the search is ours.

    Elsewhere: The authors' program takes L-BFGS from 1.5 with a learning rate of 0.01 and no line search; it returned
    3.6 where 8 was right.
    """
    expect_pairs("logits", logits, labels)
    if not all(isinstance(bound, Real) for bound in (low, high)) or not 0 < low < high < math.inf:
        raise ValueError(f"low and high: expected finite numbers with 0 < low < high, found {low!r} and {high!r}.")
    rows = logits.detach().double()
    rows = rows - rows.amax(dim=1, keepdim=True)  # no probability changes, and no exponential overflows
    truth = rows.gather(1, labels[:, None]).mean().item()
    rows = rows.T.contiguous()  # a softmax over few classes that lie side by side takes four times as long
    if not rows.any():
        return min(max(1.0, low), high)
    bounds = [math.log(low), math.log(high)]
    if _slope(rows, truth, bounds[0])[0] <= 0:
        return low
    if _slope(rows, truth, bounds[1])[0] >= 0:
        return high
    at = min(max(0.0, bounds[0]), bounds[1])
    for _ in range(_STEPS):
        slope, bend = _slope(rows, truth, at)
        bounds[0 if slope > 0 else 1] = at
        inverse = math.exp(-at) - slope / bend if bend > 0 else 0.0  # Newton's step, in 1/T
        guess = -math.log(inverse) if inverse > 0 else math.inf
        middle = (bounds[0] + bounds[1]) / 2
        step = guess if bounds[0] < guess < bounds[1] else middle
        if slope == 0 or abs(step - at) < _RESOLUTION or bounds[1] - bounds[0] < _RESOLUTION:
            break
        at = step
    return math.exp(at)


def fit_temperatures(logits: Tensor, labels: Tensor, *, low: float = 0.01, high: float = 100.0) -> Tensor:
    """Find a temperature for each client, as :func:`fit_temperature` does; divided by it, their logits compare.

    Args:
        logits: outputs of ``K`` clients for the same held-out samples, shape ``(K, N, C)``.
        labels: class numbers, int64, shape ``(N,)``.
        low: smallest temperature.
        high: largest temperature.

    Returns:
        Temperatures, float64, shape ``(K,)``, where the logits are: ``logits / temperatures[:, None, None]``.

    Raises:
        ValueError: a shape or type does not fit, there is no client, no sample or no such class, a logit is not
            finite, or the bounds do not fit.

    Formula: ``argmin_T -1 / N * sum_n log softmax(logits_k / T)_y`` for each ``k``.

    Source: Guo et al. 2017 (arXiv:1706.04599), section 4.2, for each client.
    """
    expect_tensor("logits", logits)
    if logits.ndim != 3 or not len(logits):  # noqa: PLR2004 - (K, N, C)
        raise ValueError(f"logits: expected shape (K, N, C) with K at least 1, found {tuple(logits.shape)}.")
    found = [fit_temperature(client, labels, low=low, high=high) for client in logits]
    return torch.tensor(found, dtype=torch.float64, device=logits.device)


@dataclass(frozen=True)
class Scaling:
    """An affine map of logits.

    Attributes:
        weight: float64; one factor per class, shape ``(C,)``, or a matrix, shape ``(C, C)``, whose row ``c`` makes
            the new logit of class ``c``.
        bias: float64, shape ``(C,)``.
    """

    weight: Tensor
    bias: Tensor

    def __call__(self, logits: Tensor) -> Tensor:
        """Return scaled logits of the same type, shape ``(N, C)``.

        Raises:
            ValueError: the logits have another number of classes.
        """
        expect_shape("logits", logits, "N", len(self.bias))
        return _scaled(logits.double(), self.weight, self.bias).to(logits.dtype)


def fit_vector_scaling(logits: Tensor, labels: Tensor, *, penalty: float = 1e-6) -> Scaling:
    """Fit a factor and a shift for each class by the negative log-likelihood.

    Args:
        logits: class scores before the softmax, on held-out samples, shape ``(N, C)``.
        labels: class numbers, int64, shape ``(N,)``.
        penalty: what is added to the loss, in nats, per squared distance from the identity; above 0, since without it
            there are samples (all right, for one) for which no map is the best.

    Returns:
        The map, with a weight of shape ``(C,)``.

    Raises:
        ValueError: a shape or type does not fit, there is no sample or no such class, a logit is not finite, or the
            penalty is not a finite number above 0.

    Formula: ``argmin_(w, b) -1 / N * sum_n log softmax(w * logits + b)_y + penalty (|w - 1|^2 + |b|^2)``.

    Source: vector scaling, Guo et al. 2017 (arXiv:1706.04599), section 4.2; the penalty is ours.
    """
    expect_pairs("logits", logits, labels)
    return _fitted(logits, labels, torch.ones(logits.shape[1], dtype=torch.float64), penalty)


def fit_matrix_scaling(logits: Tensor, labels: Tensor, *, penalty: float = 1e-6) -> Scaling:
    """Fit a matrix and a shift by the negative log-likelihood: ``C * C + C`` numbers, so mind the number of samples.

    Args:
        logits: class scores before the softmax, on held-out samples, shape ``(N, C)``.
        labels: class numbers, int64, shape ``(N,)``.
        penalty: as of :func:`fit_vector_scaling`.

    Returns:
        The map, with a weight of shape ``(C, C)``.

    Raises:
        ValueError: a shape or type does not fit, there is no sample or no such class, a logit is not finite, or the
            penalty is not a finite number above 0.

    Formula: ``argmin_(W, b) -1 / N * sum_n log softmax(W logits + b)_y + penalty (|W - I|^2 + |b|^2)``.

    Source: matrix scaling, Guo et al. 2017 (arXiv:1706.04599), section 4.2; a penalty as in Kull et al. 2019
    (arXiv:1910.12656), but on all entries alike.
    """
    expect_pairs("logits", logits, labels)
    return _fitted(logits, labels, torch.eye(logits.shape[1], dtype=torch.float64), penalty)


def _slope(rows: Tensor, truth: float, log_temperature: float) -> tuple[float, float]:
    """First and second derivative of the mean negative log-likelihood with respect to ``1/T``.

    Args:
        rows: logits whose largest number is 0 for each sample, float64, shape ``(C, N)``.
        truth: mean logit of the labels.
        log_temperature: logarithm of ``T``.
    """
    weighted = torch.softmax(rows * math.exp(-log_temperature), dim=0).mul_(rows)
    means = weighted.sum(dim=0)
    squares = weighted.mul_(rows).sum(dim=0)
    return means.mean().item() - truth, (squares - means.square()).mean().item()


def _scaled(rows: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    return (rows * weight if weight.ndim == 1 else rows @ weight.T) + bias


def _fitted(logits: Tensor, labels: Tensor, identity: Tensor, penalty: float) -> Scaling:
    """Minimise a convex loss over maps, from the identity, by L-BFGS with a line search."""
    expect_positive("penalty", penalty)
    with torch.inference_mode(False), torch.enable_grad():  # copies, as tensors of inference mode have no gradient
        return _minimised(logits.detach().double().clone(), labels.clone(), identity.clone(), penalty)


def _minimised(rows: Tensor, labels: Tensor, identity: Tensor, penalty: float) -> Scaling:
    identity = identity.to(rows.device)
    weight, bias = identity.clone().requires_grad_(), torch.zeros_like(rows[0]).requires_grad_()
    optimiser = torch.optim.LBFGS(
        [weight, bias], max_iter=2000, tolerance_grad=1e-10, tolerance_change=0, line_search_fn="strong_wolfe"
    )

    def loss() -> Tensor:
        optimiser.zero_grad()
        likelihood = torch.nn.functional.cross_entropy(_scaled(rows, weight, bias), labels)
        value = likelihood + penalty * ((weight - identity).square().sum() + bias.square().sum())
        value.backward()
        return value

    optimiser.step(loss)
    return Scaling(weight.detach(), bias.detach())
