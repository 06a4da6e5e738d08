"""Averaging model weights over clients."""

import math
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from fedkd.errors import UserError

Weights = Mapping[str, Tensor]


def average_weights(weights: Sequence[Weights], num_samples: Sequence[int]) -> dict[str, Tensor]:
    """Average the clients' weights, each weighted by its number of samples.

    Floating-point and complex entries are averaged in float64 or complex128, in the order given, and cast back to their
    own type. Other entries, such as BatchNorm's ``num_batches_tracked`` (int64), have no mean of their type and are
    those of the first client.

    Args:
        weights: one mapping from name to tensor for each client, all with the same names, shapes and types.
        num_samples: number of samples behind each client's weights, zero or above, not all zero.

    Returns:
        New tensors by name, in the first client's order and on its devices.

    Raises:
        UserError: no client; names, shapes or types that differ; numbers of samples that cannot be weights.

    Source: FedAvg, McMahan et al. 2017 (arXiv:1602.05629), algorithm 1.
    """
    if not weights:
        raise UserError("average_weights: expected the weights of at least one client, found none.")
    _expect_weighting(num_samples, clients=len(weights))
    average = RunningAverage()
    for one, count in zip(weights, num_samples, strict=True):
        average.add(one, count)
    return average.value()


class RunningAverage:
    """The average of weights that are added one after another: it takes no more memory than one client's.

    Each client moves it by its share of the samples so far, in float64:
    ``mean += n_k / (n_1 + ... + n_k) * (w_k - mean)``.
    Its bits depend on the order in which the clients are added, so add them in the order of their keys.
    """

    def __init__(self) -> None:
        """Start without any client."""
        self._first: Weights = {}
        self._mean: dict[str, Tensor] = {}
        self._clients = 0
        self._samples = 0

    @torch.no_grad()
    def add(self, weights: Weights, num_samples: int) -> None:
        """Add one client's weights.

        Args:
            weights: by name, with the names, shapes and types of the first client's.
            num_samples: number of samples behind them, zero or above.

        Raises:
            UserError: names, shapes or types differ from the first client's.
        """
        if not self._clients:
            self._first = {name: value.detach() for name, value in weights.items()}
            self._mean = {
                name: torch.zeros_like(value, dtype=torch.complex128 if value.is_complex() else torch.float64)
                for name, value in self._first.items()
                if value.is_floating_point() or value.is_complex()
            }
        _expect_same_entries(weights, self._first, self._clients)
        self._clients += 1
        self._samples += num_samples
        if num_samples:
            share = num_samples / self._samples
            for name, mean in self._mean.items():
                mean.lerp_(weights[name].to(mean), share)

    def value(self) -> dict[str, Tensor]:
        """Return the average as new tensors by name, in the first client's order, of its types and on its devices.

        Raises:
            UserError: nobody with samples was added.
        """
        if not self._samples:
            raise UserError("average: expected at least one client with samples, found none.")
        return {
            name: self._mean[name].to(value.dtype, copy=True) if name in self._mean else value.clone()
            for name, value in self._first.items()
        }


def _expect_same_entries(weights: Weights, first: Weights, client: int) -> None:
    """Refuse a client whose names, shapes or types are not those of the first one."""
    if different := sorted(first.keys() ^ weights.keys()):
        raise UserError(
            f"average_weights: weights of client {client} and of client 0 differ in {different[0]!r}: "
            "only one of them has it. Average clients of the same architecture only."
        )
    for name, value in weights.items():
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
