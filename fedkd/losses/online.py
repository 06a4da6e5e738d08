"""Online distillation: the teacher is trained at the same time, as a peer, as an average of the student, or as itself.

Pure functions like all losses: they return a scalar, never change their arguments, send no gradient to whoever teaches,
and run inside ``torch.func.vmap`` and ``torch.func.grad``. :func:`ema_update` and :func:`ramp_up` are what the mean
teacher needs besides its loss; they keep no state of their own either.
"""

import math
from collections.abc import Mapping

import torch
from torch import Tensor

from fedkd.checks import expect_choice, expect_finite, expect_numbers, expect_shape, expect_tensor, expect_within
from fedkd.losses._logits import divergence, received, received_pair


def mutual(own: Tensor, peers_logits: Tensor, *, peers: str = "mean") -> Tensor:
    """Deep mutual learning: ``KL(peer || own)`` for each peer, averaged over the batch; the cross-entropy is not in it.

    Call it once for each network, with the others as peers: no gradient goes to them.

    Args:
        own: logits of the network that learns, shape ``(N, C)``.
        peers_logits: logits of its ``K`` peers, shape ``(K, N, C)``; without peers the loss is zero.
        peers: ``"mean"`` over the peers, as in the paper, or ``"sum"``, as in the authors' code.

    Returns:
        The loss in nats, a scalar; zero where all peers agree with the network.

    Raises:
        ValueError: a shape does not fit, a value is not finite, or ``peers`` is none of the two.

    Formula: ``1 / (K N) * sum_kn KL(p_k || p)`` with ``p = softmax(own)``, ``p_k = softmax(peers_logits[k])``.

    Source: Zhang et al. 2018 (DML, arXiv:1706.00384), section 2; for more than two networks, eq. 7.

    Elsewhere: The authors' code sums over the peers, adds 1e-8 in the logarithm and gives each network a batch of its
    own. KD_Lib takes the squared difference of logits and lets the gradient into the peers: not mutual learning.
    """
    expect_choice("peers", peers, ("mean", "sum"))
    own, others = _received_peers(own, peers_logits)
    log_own, log_others = torch.log_softmax(own, dim=1), torch.log_softmax(others, dim=2)
    per_sample = (log_others.exp() * (log_others - log_own)).sum(dim=2)
    total = per_sample.sum(dim=0).mean()
    return total / max(1, len(others)) if peers == "mean" else total


def ensemble_mutual(own: Tensor, peers_logits: Tensor) -> Tensor:
    """Mutual learning from one teacher, the mean of the peers' probabilities: ``KL(mean || own)`` over the batch.

    It is never above :func:`mutual` with ``peers="mean"``, and has the same gradient: they differ by the peers'
    disagreement, in which ``own`` does not occur.

    Args:
        own: logits of the network that learns, shape ``(N, C)``.
        peers_logits: logits of its ``K`` peers, shape ``(K, N, C)``, one or more.

    Returns:
        The loss in nats, a scalar.

    Raises:
        ValueError: a shape does not fit, there is no peer, or a value is not finite.

    Formula: ``1 / N * sum_n KL(1/K sum_k p_k || p)`` with ``p = softmax(own)``, ``p_k = softmax(peers_logits[k])``.

    Source: Zhang et al. 2018 (DML_e, arXiv:1706.00384), section 2.

    Elsewhere: The code of FedDF has it as ``avg_probs``, and agrees.
    """
    own, others = _received_peers(own, peers_logits)
    expect_shape("peers_logits", peers_logits, "K", *own.shape)
    logits_of_mean = torch.log_softmax(others, dim=2).logsumexp(dim=0)  # up to a shift, which does not matter
    return divergence(own, logits_of_mean)


def consistency(student: Tensor, teacher: Tensor, *, cost: str = "mse") -> Tensor:
    """Mean teacher's consistency cost between the predictions of a student and of the average of its past selves.

    Both networks run in training mode, each on its own noise. Multiply by a weight that grows (:func:`ramp_up`).

    Args:
        student: logits of the student, shape ``(N, C)``.
        teacher: logits of the averaged student, shape ``(N, C)``.
        cost: ``"mse"``: squared difference of the probabilities, mean over samples *and* classes; ``"kl"``:
            ``KL(teacher || student)`` in nats, summed over classes, mean over samples.

    Returns:
        The loss, a scalar.

    Raises:
        ValueError: a shape does not fit, a value is not finite, or ``cost`` is none of the two.

    Formula: ``1 / (N C) * sum_nc (softmax(student) - softmax(teacher))^2``, or
    ``1 / N * sum_n KL(teacher || student)``.

    Source: Tarvainen & Valpola 2017 (arXiv:1703.01780), section 2; the means are those of the authors' code.

    Elsewhere: The authors' code can give the consistency a second head of logits. KD_Lib's mean teacher does not run.
    """
    student, teacher = received_pair(student, teacher)
    expect_choice("cost", cost, ("mse", "kl"))
    if cost == "kl":
        return divergence(student, teacher)
    return (torch.softmax(student, dim=1) - torch.softmax(teacher, dim=1)).square().mean()


def class_wise_self(student: Tensor, partner: Tensor, *, temperature: float = 4.0) -> Tensor:
    """Class-wise self-distillation: a sample learns from the same network's output for another one of its class.

    ``T^2 * KL(partner || student)``, averaged over the batch; the cross-entropy is not in it.

    Args:
        student: logits of the network, shape ``(N, C)``.
        partner: the same network's logits for ``N`` other samples, row by row of the same classes, shape ``(N, C)``.
        temperature: ``T``, above 0.

    Returns:
        The loss in nats, a scalar.

    Raises:
        ValueError: a shape does not fit, a value is not finite, or the temperature is not above 0.

    Formula: ``T^2 / N * sum_nc q log(q / p)`` with ``p = softmax(student / T)``, ``q = softmax(partner / T)``.

    Source: Yun et al. 2020 (CS-KD, arXiv:2003.13964), section 2; the weight is 1 and ``T = 4``.

    Elsewhere: The authors' code agrees.
    """
    student, partner = received_pair(student, partner, names=("student", "partner"))
    return divergence(student, partner, temperature)


def ema_update(
    average: Mapping[str, Tensor], current: Mapping[str, Tensor], *, step: int, decay: float = 0.999
) -> dict[str, Tensor]:
    """Return the average of a network's parameters after one more step, as new tensors without gradient.

    It is ``a * average + (1 - a) * current`` with ``a = min(1 - 1 / (step + 1), decay)``, so that the first steps
    are plain means and step 0 copies the student. What is not of floating type is copied. Give parameters only: the
    buffers of BatchNorm are not averaged, the teacher keeps its own from its own forward passes.

    Args:
        average: the mean teacher's parameters by name.
        current: the student's parameters after the step, same names and shapes.
        step: number of steps taken before this one, from 0.
        decay: the largest ``a``, from 0 to 1.

    Raises:
        ValueError: names or shapes differ, a number is not finite, or ``step`` or ``decay`` is outside its range.

    Formula: ``a average + (1 - a) current`` with ``a = min(1 - 1 / (step + 1), decay)``.

    Source: Tarvainen & Valpola 2017 (arXiv:1703.01780), section 2, with the first steps as in the authors' code, which
    counts the step just taken: its first update is ``step=1`` here, and keeps half of the average.

    Elsewhere: KD_Lib's decay is the other way round, and once per epoch instead of per step.
    """
    for name, given in (("average", average), ("current", current)):
        if not isinstance(given, Mapping):
            found = f"found {type(given).__name__}; take dict(module.named_parameters())"
            raise ValueError(f"{name}: expected parameters by name, {found}.")
    if average.keys() != current.keys():
        odd = sorted(average.keys() ^ current.keys())
        raise ValueError(f"current: expected the names of average, found only on one side: {', '.join(odd)}.")
    expect_within("step", step, 0)
    expect_within("decay", decay, 0, 1)
    keep = min(1 - 1 / (step + 1), decay)
    updated = {}
    for name, value in current.items():
        expect_shape(f"current[{name!r}]", value, *average[name].shape)
        expect_finite(f"current[{name!r}]", value)
        if keep:  # else it has no say
            expect_finite(f"average[{name!r}]", average[name])
        updated[name] = _blend(average[name].detach(), value.detach(), keep)
    return updated


def ramp_up(time: float, *, length: float) -> float:
    """Return the weight ``exp(-5 * (1 - time / length)^2)``, from 0.0067 at the start to 1 at ``length`` and after.

    Args:
        time: steps or epochs so far.
        length: steps or epochs until the weight is 1; 0 means at once. The authors' code has 30 epochs on CIFAR-10.

    Raises:
        ValueError: ``time`` or ``length`` is negative or NaN.

    Formula: ``exp(-5 (1 - min(time / length, 1))^2)``.

    Source: Laine & Aila 2017 (arXiv:1610.02242), section 3.1; Tarvainen & Valpola 2017.

    Elsewhere: The authors' code of the mean teacher agrees.
    """
    expect_within("time", time, 0)
    expect_within("length", length, 0)
    if time >= length:
        return 1.0
    return math.exp(-5 * (1 - time / length) ** 2)


def _received_peers(own: Tensor, peers_logits: Tensor) -> tuple[Tensor, Tensor]:
    own = received("own", own)
    expect_tensor("peers_logits", peers_logits)
    peers = peers_logits.shape[0] if peers_logits.ndim else "K"
    expect_shape("peers_logits", peers_logits, peers, *own.shape)
    expect_numbers("peers_logits", peers_logits)
    return own, peers_logits.detach().to(own.dtype)


def _blend(average: Tensor, current: Tensor, keep: float) -> Tensor:
    if keep == 0 or not current.is_floating_point():  # an average that is not finite yet has no say
        return current.clone()
    return keep * average + (1 - keep) * current
