"""Averaging model weights over clients."""

import math
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from fedkd.errors import UserError

Weights = Mapping[str, Tensor]


def average_weights(weights: Sequence[Weights], num_samples: Sequence[int]) -> dict[str, Tensor]:
    """Average the clients' weights, each weighted by its number of samples.

    Floating-point entries are summed in float64, in the order given, and cast back to their own type. Other entries,
    such as BatchNorm's ``num_batches_tracked`` (int64), have no mean of their type and are those of the first client.

    Args:
        weights: one mapping from name to tensor for each client, all with the same names, shapes and types.
        num_samples: number of samples behind each client's weights, zero or above, not all zero.

    Returns:
        New tensors by name, in the first client's order and on its devices.

    Raises:
        UserError: no client; names, shapes or types that differ; numbers of samples that cannot be weights.

    Source: FedAvg, McMahan et al. 2017 (arXiv:1602.05629), algorithm 1.
    """
    _expect_same_entries(weights)
    _expect_weighting(num_samples, clients=len(weights))
    total = math.fsum(num_samples)
    shares = [count / total for count in num_samples]
    with torch.no_grad():
        return {name: _mean([client[name] for client in weights], shares) for name in weights[0]}


def _mean(values: Sequence[Tensor], shares: Sequence[float]) -> Tensor:
    first = values[0].detach()
    if not first.is_floating_point():
        return first.clone()
    # Own arithmetic and not Flower's FedAvg, against which the tests hold it: decision 10 has the figures.
    total = torch.zeros(first.shape, dtype=torch.float64, device=first.device)
    for value, share in zip(values, shares, strict=True):
        total.add_(value.to(first.device), alpha=share)
    return total.to(first.dtype)


def _expect_same_entries(weights: Sequence[Weights]) -> None:
    """Refuse clients whose names, shapes or types differ, naming the first offender."""
    if not weights:
        raise UserError("average_weights: expected the weights of at least one client, found none.")
    first = weights[0]
    for client, other in enumerate(weights):
        if different := sorted(first.keys() ^ other.keys()):
            raise UserError(
                f"average_weights: weights of client {client} and of client 0 differ in {different[0]!r}: "
                "only one of them has it. Average clients of the same architecture only."
            )
        for name, value in other.items():
            if value.shape != first[name].shape or value.dtype != first[name].dtype:
                expected, found = (f"{tuple(t.shape)} {t.dtype}" for t in (first[name], value))
                raise UserError(
                    f"average_weights: {name!r} of client {client}: expected {expected} as for client 0, found {found}."
                )


def _expect_weighting(num_samples: Sequence[int], clients: int) -> None:
    """Refuse numbers of samples that cannot serve as weights of a mean."""
    if len(num_samples) != clients:
        raise UserError(f"num_samples: expected {clients} numbers, one for each client, found {len(num_samples)}.")
    for client, count in enumerate(num_samples):
        if not math.isfinite(count) or count < 0:
            raise UserError(f"num_samples of client {client}: expected a finite number, zero or above, found {count}.")
    if not any(num_samples):
        raise UserError("num_samples: expected at least one client with samples, found only zeros.")
