"""Averaging weights, against NumPy and against Flower's FedAvg."""

import math
import subprocess
import sys

import numpy as np
import pytest
import torch
from flwr.app import ArrayRecord, Message, MessageType, MetricRecord, RecordDict
from flwr.serverapp.strategy import FedAvg
from torch import Tensor

from fedkd.averaging import RunningAverage, average_weights
from fedkd.errors import UserError
from fedkd.flower_internals import ensure_task_identity

SAMPLES = [3, 0, 10]


def client(seed: int) -> dict[str, Tensor]:
    """Weights of one client, of every type and shape that models have."""
    values = torch.Generator().manual_seed(seed)
    return {
        "layer.weight": torch.randn(4, 3, generator=values),
        "layer.bias": torch.randn(4, generator=values, dtype=torch.float64),
        "scale": torch.randn((), generator=values),
        "half": torch.randn(5, generator=values).half(),
        "bfloat": torch.randn(5, generator=values).bfloat16(),
        "empty": torch.zeros(0),
        "num_batches_tracked": torch.tensor(100 + seed),
        "complex": torch.randn(2, 3, generator=values, dtype=torch.complex64),
        "mask": torch.tensor([seed % 2 == 0, True]),
    }


@pytest.fixture
def clients() -> list[dict[str, Tensor]]:
    return [client(seed) for seed in range(3)]


def test_equals_the_weighted_mean(clients: list[dict[str, Tensor]]) -> None:
    found = average_weights(clients, SAMPLES)
    assert list(found) == list(clients[0])
    for name in ("layer.weight", "layer.bias", "scale", "half", "bfloat", "empty"):
        values = np.stack([weights[name].double().numpy() for weights in clients])
        expected = torch.tensor(np.average(values, axis=0, weights=SAMPLES))
        tolerance = 1e-15 if expected.numel() else 0
        torch.testing.assert_close(
            found[name].double(), expected.to(found[name].dtype).double(), rtol=tolerance, atol=0
        )
        assert found[name].dtype == clients[0][name].dtype
        assert found[name].shape == clients[0][name].shape


def test_complex_weights_have_a_mean_too(clients: list[dict[str, Tensor]]) -> None:
    found = average_weights(clients, SAMPLES)["complex"]
    expected = np.average(np.stack([weights["complex"].numpy() for weights in clients]), axis=0, weights=SAMPLES)
    assert found.dtype == torch.complex64
    torch.testing.assert_close(found, torch.tensor(expected).to(torch.complex64), rtol=1e-6, atol=0)


def test_one_after_another_gives_the_bits_of_all_at_once(clients: list[dict[str, Tensor]]) -> None:
    average = RunningAverage()
    for number, (weights, count) in enumerate(zip(clients, SAMPLES, strict=True), start=1):
        average.add(weights, count)
        so_far = average.value()
        expected = average_weights(clients[:number], SAMPLES[:number])
        assert all(torch.equal(so_far[name], expected[name]) for name in expected)
        for tensor in so_far.values():
            tensor.zero_()  # which is the receiver's own


def test_equal_weights_stay_as_they_are_bit_by_bit() -> None:
    weights = {"w": torch.randn(100, dtype=torch.float64, generator=torch.Generator().manual_seed(0))}
    assert torch.equal(average_weights([weights] * 7, [1, 3, 0, 5, 7, 11, 13])["w"], weights["w"])


def test_without_samples_there_is_no_average() -> None:
    average = RunningAverage()
    average.add(client(0), 0)
    with pytest.raises(UserError, match="expected at least one client with samples, found none"):
        average.value()


def test_counters_and_masks_are_those_of_the_first_client(clients: list[dict[str, Tensor]]) -> None:
    found = average_weights(clients[1:], SAMPLES[1:])
    assert torch.equal(found["num_batches_tracked"], torch.tensor(101))
    assert torch.equal(found["mask"], torch.tensor([False, True]))


def test_sums_in_float64() -> None:
    values = [1.0, 2.0**-24, 2.0**-24]  # in float32 the small ones would be lost one by one
    found = average_weights([{"w": torch.tensor([value])} for value in values], [1, 1, 1])
    assert found["w"].item() == np.float32(sum(values) / 3)


def test_results_are_new_tensors_and_inputs_stay(clients: list[dict[str, Tensor]]) -> None:
    found = average_weights(clients[:1], [5])
    for name, value in clients[0].items():
        assert torch.equal(found[name], value)
        found[name].zero_()
        assert torch.equal(clients[0][name], client(0)[name])


def test_takes_parameters_and_integers_alone() -> None:
    found = average_weights([{"w": torch.nn.Parameter(torch.ones(2))}], [1])
    assert not found["w"].requires_grad
    assert average_weights([{"n": torch.tensor(3)}, {"n": torch.tensor(5)}], [1, 1]) == {"n": torch.tensor(3)}


def test_equals_flowers_fedavg() -> None:
    ensure_task_identity()
    source = torch.Generator().manual_seed(0)
    clients = [{"w": torch.randn(7, 5, generator=source), "b": torch.randn(7, generator=source)} for _ in range(20)]
    samples = [1 + 3 * k for k in range(20)]
    replies = [
        Message(
            RecordDict({"arrays": ArrayRecord(weights), "metrics": MetricRecord({"num-examples": count})}),
            dst_node_id=0,
            message_type=MessageType.TRAIN,
        )
        for weights, count in zip(clients, samples, strict=True)
    ]
    theirs, _ = FedAvg().aggregate_train(server_round=1, replies=replies)
    assert theirs is not None
    ours = average_weights(clients, samples)
    for name, tensor in theirs.to_torch_state_dict().items():  # which Flower has summed in float32
        torch.testing.assert_close(ours[name], tensor.float(), rtol=1e-5, atol=1e-6)


def test_refuses_entries_that_differ(clients: list[dict[str, Tensor]]) -> None:
    clients[1].pop("layer.bias")
    with pytest.raises(UserError, match=r"client 1 and of client 0 differ in 'layer\.bias'"):
        average_weights(clients, SAMPLES)
    clients[1] = client(1) | {"layer.bias": torch.zeros(5, dtype=torch.float64)}
    with pytest.raises(UserError, match=r"'layer\.bias' of client 1: expected \(4,\) torch\.float64.*found \(5,\)"):
        average_weights(clients, SAMPLES)
    clients[1] = client(1) | {"layer.bias": torch.zeros(4)}
    with pytest.raises(UserError, match=r"found \(4,\) torch\.float32"):
        average_weights(clients, SAMPLES)


@pytest.mark.parametrize("samples", [[0, 0, 0], [1, -1, 1], [1, math.inf, 1], [math.nan, 1, 1], [1, 2]])
def test_refuses_numbers_that_cannot_weigh(clients: list[dict[str, Tensor]], samples: list[int]) -> None:
    with pytest.raises(UserError, match="num_samples"):
        average_weights(clients, samples)


def test_refuses_no_client() -> None:
    with pytest.raises(UserError, match="at least one client"):
        average_weights([], [])


def test_importing_does_not_import_flower() -> None:
    code = "import sys, fedkd.averaging; sys.exit(any(name.partition('.')[0] == 'flwr' for name in sys.modules))"
    subprocess.run([sys.executable, "-c", code], check=True)


def test_the_order_of_a_clients_entries_does_not_matter(clients: list[dict[str, Tensor]]) -> None:
    turned = [clients[0], dict(reversed(clients[1].items())), clients[2]]
    expected = average_weights(clients, SAMPLES)
    assert all(torch.equal(tensor, expected[name]) for name, tensor in average_weights(turned, SAMPLES).items())
