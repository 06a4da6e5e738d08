"""Averaging model weights over clients; Flower's own ``FedAvg`` does the arithmetic."""

import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from fedkd.errors import UserError
from fedkd.flower_internals import ensure_task_identity, quiet

if TYPE_CHECKING:
    from flwr.app import Message

Weights = Mapping[str, Tensor]

_FLAT = "weights"  # all entries as one array: averaging looks at each number alone


def average_weights(weights: Sequence[Weights], num_samples: Sequence[int]) -> dict[str, Tensor]:
    """Average the clients' weights, each weighted by its number of samples.

    Floating-point entries are averaged in float64, in the order given, and cast back to their own type. Other entries,
    such as BatchNorm's ``num_batches_tracked`` (int64), have no mean of their type and are those of the first client.

    Args:
        weights: one mapping from name to tensor for each client, all with the same names, shapes and types.
        num_samples: number of samples behind each client's weights, zero or above, not all zero.

    Returns:
        New tensors by name, in the first client's order and on its devices.

    Raises:
        UserError: no client; names, shapes or types that differ; numbers of samples that cannot be weights.

    Source: FedAvg, McMahan et al. 2017 (arXiv:1602.05629), algorithm 1, by ``flwr.serverapp.strategy.FedAvg``.
    """
    from flwr.serverapp.strategy import FedAvg

    _expect_same_entries(weights)
    _expect_weighting(num_samples, clients=len(weights))
    with quiet():
        names = [name for name, value in weights[0].items() if value.is_floating_point()]
        messages = [_as_reply(*reply, names) for reply in zip(weights, num_samples, strict=True)]
        averaged, _ = FedAvg().aggregate_train(server_round=1, replies=messages)
    assert averaged is not None  # noqa: S101 - said to the type checker: there is at least one reply
    means = iter(torch.from_numpy(averaged[_FLAT].numpy()).split([weights[0][name].numel() for name in names]))
    return {
        name: next(means).reshape(first.shape).to(first, copy=True) if first.is_floating_point() else first.clone()
        for name, first in ((name, value.detach()) for name, value in weights[0].items())
    }


def _as_reply(weights: Weights, num_samples: int, names: Sequence[str]) -> "Message":
    """Wrap the entries of these names of one client the way ``FedAvg`` expects a reply."""
    from flwr.app import Array, ArrayRecord, Message, MessageType, MetricRecord, RecordDict

    class InMemory(Array):
        """Hands its numbers to ``FedAvg`` when it asks for them, without writing and reading them as bytes first."""

        def numpy(self) -> NDArray[np.float64]:
            """Return all entries, one after the other, in float64."""
            flat = [weights[name].detach().reshape(-1).double().cpu() for name in names]
            return torch.cat([torch.empty(0, dtype=torch.float64), *flat]).numpy()

    ensure_task_identity()
    size = sum(weights[name].numel() for name in names)
    arrays = ArrayRecord()
    arrays[_FLAT] = InMemory(dtype="float64", shape=(size,), stype="in memory", data=b"")
    content = RecordDict({"arrays": arrays, "metrics": MetricRecord({"num-examples": float(num_samples)})})
    return Message(content, dst_node_id=0, message_type=MessageType.TRAIN)


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
            expected, found = _shape_and_type(first[name]), _shape_and_type(value)
            if expected != found:
                raise UserError(
                    f"average_weights: {name!r} of client {client}: expected {expected} as for client 0, found {found}."
                )


def _shape_and_type(value: Tensor) -> str:
    """Describe a tensor for a message."""
    return f"{tuple(value.shape)} {value.dtype}"


def _expect_weighting(num_samples: Sequence[int], clients: int) -> None:
    """Refuse numbers of samples that cannot serve as weights of a mean."""
    if len(num_samples) != clients:
        raise UserError(f"num_samples: expected {clients} numbers, one for each client, found {len(num_samples)}.")
    for client, count in enumerate(num_samples):
        if not math.isfinite(count) or count < 0:
            raise UserError(f"num_samples of client {client}: expected a finite number, zero or above, found {count}.")
    if not any(num_samples):
        raise UserError("num_samples: expected at least one client with samples, found only zeros.")
