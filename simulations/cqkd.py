"""The CQKD study: does a teacher at full resolution help a student that sees a lower one, and at which temperature?

Supervised students, CQKD (Cuk et al. 2023, arXiv:2304.07593) at several temperatures and with a teacher that was
calibrated first, and deep mutual learning (DML), at a half and a quarter of the resolution, over several seeds::

    python simulations/cqkd.py --out runs/cqkd
    python simulations/cqkd.py --out runs/cqkd-quick --quick --data fashion-mnist

It writes ``cqkd.csv`` (a row for every student), ``cqkd.md`` (tables) and ``cqkd.png`` and ``.svg``. The teacher always
gets the full view, and in evaluation mode; students are in training mode whenever they are trained; temperatures are
fitted on a calibration split of the training samples, and the test set only measures.
"""

import argparse
import csv
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from functools import partial
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from fedkd import calibration, losses, metrics, seeding
from fedkd.data.sources import DataSet, load
from fedkd.data.views import shape, view
from fedkd.models import ModelSpec, build

ALPHA = 0.5
BATCH = 64
FULL = "image"
TEACHER, STUDENT = "cnn-wide", "cnn-bn"  # a student with BatchNorm, to which the mode matters
SHRINK = (2, 4)
TEMPERATURES = (1.0, 4.0, 10.0, 20.0)
FITTED = (1.0, 4.0)

Row = dict[str, Any]
Objective = Callable[[Sequence[Tensor], Tensor], Tensor]


@dataclass(frozen=True)
class Sizes:
    """How many samples of each split there are at most, and how many passes are made over the first."""

    train: int = 2000
    calibration: int = 500
    test: int = 2000
    epochs: int = 15
    teacher_epochs: int = 15


QUICK = Sizes(train=300, calibration=100, test=300, epochs=2, teacher_epochs=2)


@dataclass(frozen=True)
class Method:
    """How a student is trained.

    Attributes:
        name: ``supervised``, ``cqkd``, ``cqkd-fitted`` (the teacher's own temperature is fitted first) or ``dml``.
        temperature: T of the distillation; None without.
    """

    name: str
    temperature: float | None = None

    @property
    def label(self) -> str:
        """The method in words."""
        return self.name if self.temperature is None else f"{self.name}, T = {self.temperature:g}"


METHODS = (
    Method("supervised"),
    *(Method("cqkd", temperature) for temperature in TEMPERATURES),
    *(Method("cqkd-fitted", temperature) for temperature in FITTED),
    Method("dml"),
)


@dataclass(frozen=True)
class Split:
    """One split of the samples: in full, in the student's view, and what they show."""

    full: Tensor
    low: Tensor
    labels: Tensor


Splits = dict[str, Split]


class Passes:
    """Counts the samples that go through networks, forward and backward, from now on."""

    def __init__(self, networks: Sequence[nn.Module]) -> None:
        self.forward = self.backward = 0
        for network in networks:
            network.register_forward_hook(self._count)

    def _count(self, network: nn.Module, inputs: tuple[Tensor, ...], logits: Tensor) -> None:
        self.forward += len(logits)
        if logits.requires_grad:
            logits.register_hook(self._count_back)

    def _count_back(self, gradient: Tensor) -> None:
        self.backward += len(gradient)


# -- samples


def row_numbers(dataset: DataSet, sizes: Sizes, seed: int) -> dict[str, Tensor]:
    """Draw which samples are for training, calibration and test: row numbers by the split's name, disjoint.

    The test set comes from the publisher's, the others from the rest.
    """
    assert dataset.official_test is not None  # noqa: S101 - true of all image data sets but digits
    order = torch.randperm(len(dataset), generator=seeding.generator(seed, "cqkd", "split"))
    test, rest = order[dataset.official_test[order]], order[~dataset.official_test[order]]
    held_out, train = rest.split([sizes.calibration, len(rest) - sizes.calibration])
    return {"train": train[: sizes.train], "calibration": held_out, "test": test[: sizes.test]}


def splits_in(dataset: DataSet, rows: dict[str, Tensor], low: str) -> Splits:
    """Return the splits with the student's view of the same samples beside the full one."""
    full, small = view(dataset, FULL), view(dataset, low)
    return {name: Split(full[ids], small[ids], dataset.labels[ids]) for name, ids in rows.items()}


# -- training


def network(dataset: DataSet, view_name: str, architecture: str, seed: int) -> nn.Module:
    """Build a network for a view; the same seed gives the same start."""
    seeding.seed_torch(seed)
    return build(ModelSpec(architecture, shape(dataset, view_name), len(dataset.classes)))


def fit(networks: Sequence[nn.Module], inputs: Tensor, objective: Objective, epochs: int, seed: int) -> None:
    """Train networks side by side on the same batches, in training mode.

    Args:
        networks: one, or the peers of mutual learning.
        inputs: their view of the training samples, shape ``(N, ...)``.
        objective: maps each network's logits for some rows, and the row numbers, to the sum of the networks' losses.
        epochs: passes over the samples.
        seed: of the order of the samples.
    """
    optimiser = torch.optim.Adam([parameter for each in networks for parameter in each.parameters()])
    order = torch.Generator().manual_seed(seed)
    for each in networks:
        each.train()
    for _ in range(epochs):
        for rows in torch.randperm(len(inputs), generator=order).split(BATCH):
            loss = objective([each(inputs[rows]) for each in networks], rows)
            optimiser.zero_grad()
            loss.backward()
            optimiser.step()


@torch.no_grad()
def predict(trained: nn.Module, inputs: Tensor) -> Tensor:
    """Return logits, shape ``(N, C)``, in evaluation mode and without gradient."""
    trained.eval()
    return torch.cat([trained(part) for part in inputs.split(500)])


def supervised(outputs: Sequence[Tensor], rows: Tensor, *, labels: Tensor) -> Tensor:
    """Cross-entropy of the only network."""
    return losses.cross_entropy(outputs[0], labels[rows])


def taught(outputs: Sequence[Tensor], rows: Tensor, *, labels: Tensor, teacher: Tensor, temperature: float) -> Tensor:
    """``(1 - alpha) * CE + alpha * T^2 * KL(teacher || student)``."""
    distilled = losses.kd(outputs[0], teacher[rows], temperature=temperature)
    return (1 - ALPHA) * losses.cross_entropy(outputs[0], labels[rows]) + ALPHA * distilled


def mutual(outputs: Sequence[Tensor], rows: Tensor, *, labels: Tensor) -> Tensor:
    """``(1 - alpha) * CE + alpha * KL(peer || own)``, summed over the peers; no gradient goes to whoever teaches."""
    total = outputs[0].new_zeros(())
    for number, own in enumerate(outputs):
        peers = torch.stack([*outputs[:number], *outputs[number + 1 :]])
        total = total + (1 - ALPHA) * losses.cross_entropy(own, labels[rows]) + ALPHA * losses.mutual(own, peers)
    return total


# -- one student, and all of one data set and seed


def train_student(method: Method, students: Sequence[nn.Module], teacher: nn.Module, splits: Splits, **how: int) -> Row:
    """Train the first student by a method (with the others, if it is mutual), and return what that took."""
    train, start = splits["train"], time.perf_counter()
    by_student, by_teacher = Passes(students), Passes([teacher])
    if method.name == "supervised":
        objective: Objective = partial(supervised, labels=train.labels)
    elif method.name == "dml":
        objective = partial(mutual, labels=train.labels)
    else:
        own = 1.0
        if method.name == "cqkd-fitted":
            held_out = splits["calibration"]
            own = calibration.fit_temperature(predict(teacher, held_out.full), held_out.labels)
        logits = predict(teacher, train.full) / own
        objective = partial(taught, labels=train.labels, teacher=logits, temperature=method.temperature or 1.0)
    fit(students, train.low, objective, **how)
    return {
        "forward": by_student.forward,
        "backward": by_student.backward,
        "teacher_forward": by_teacher.forward,
        "seconds": time.perf_counter() - start,
    }


def measure(trained: nn.Module, calibration_set: tuple[Tensor, Tensor], test_set: tuple[Tensor, Tensor]) -> Row:
    """Measure a network on the test set: as it is, and with its own temperature, fitted on the calibration split."""
    logits, labels = predict(trained, test_set[0]), test_set[1]
    own = calibration.fit_temperature(predict(trained, calibration_set[0]), calibration_set[1])
    scaled = metrics.evaluate(logits / own, labels)
    gap = calibration.confidence_gap(logits.double().softmax(dim=1), labels).item()
    return metrics.evaluate(logits, labels) | {"gap": gap, "own_t": own, "ece_scaled": scaled["ece"]}


def study(name: str, seed: int, sizes: Sizes = Sizes(), methods: Sequence[Method] = METHODS) -> list[Row]:
    """Train the teacher and all students of one data set and seed.

    Args:
        name: built-in data set of images.
        seed: of splits, starts and order; the students of a resolution share all three.
        sizes: how many samples and epochs.
        methods: how students are trained.

    Returns:
        A row for the teacher and one for each student.
    """
    seeding.pin_threads(1)
    dataset = load(name)
    rows, side = row_numbers(dataset, sizes, seed), shape(dataset, FULL)[-1]
    teacher = network(dataset, FULL, TEACHER, seeding.derive_seed(seed, "teacher"))
    seconds = -time.perf_counter()
    whole, passes = splits_in(dataset, rows, FULL), Passes([teacher])
    learn = partial(supervised, labels=whole["train"].labels)
    fit([teacher], whole["train"].full, learn, epochs=sizes.teacher_epochs, seed=seeding.derive_seed(seed, "order"))
    teacher.requires_grad_(False).eval()
    took = {"forward": passes.forward, "backward": passes.backward, "teacher_forward": 0}
    took["seconds"] = seconds + time.perf_counter()
    scores = measure(teacher, *((whole[key].full, whole[key].labels) for key in ("calibration", "test")))
    found = [{"data": name, "side": side, "seed": seed, "method": "teacher", "temperature": "", **scores, **took}]
    for factor in SHRINK:
        low = f"{FULL}@{side // factor}"
        splits = splits_in(dataset, rows, low)
        for method in methods:
            starts = [seeding.derive_seed(seed, "student", peer) for peer in range(1 + (method.name == "dml"))]
            students = [network(dataset, low, STUDENT, start) for start in starts]
            how = {"epochs": sizes.epochs, "seed": seeding.derive_seed(seed, "order")}
            took = train_student(method, students, teacher, splits, **how)
            scores = measure(students[0], *((splits[key].low, splits[key].labels) for key in ("calibration", "test")))
            cell = {"data": name, "side": side // factor, "seed": seed, "method": method.name}
            found.append({**cell, "temperature": method.temperature or "", **scores, **took})
    return found
