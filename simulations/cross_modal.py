"""The cross-modal study: which modality teaches which, by how much, and with how many pairs?

1. Synthetic features of which a share gamma is decisive in both modalities, after the modality focusing hypothesis (Xue
   et al. 2023, arXiv:2206.06487): does the gain of distillation grow with gamma?
2. Who teaches whom: accelerometer and gyroscope (HAPT), and digits by ear and by eye. The gain of the students over the
   same students alone, with at least as many gradient steps (``fedkd.gains``).
3. The same, with fewer public pairs.

::

    python simulations/cross_modal.py --out runs/cross_modal
    python simulations/cross_modal.py --out runs/cross_modal-quick --quick

It writes ``gamma.csv``, ``gains.csv``, ``cross_modal.md`` (tables) and ``cross_modal.png`` and ``.svg``.
"""

import argparse
import time
from pathlib import Path
from typing import Any

import reporting
import torch
from reporting import Row
from torch import Tensor

import fedkd
from fedkd import config, gains, losses, seeding

HERE = Path(__file__).parent
VIEWS = {
    "cross_modal.toml": {"audio@logmel": "spectrogram-cnn", "image": "cnn"},
    "cross_modal_motion.toml": {"acc": "signal-cnn", "gyro": "signal-cnn"},
}
"""Experiments, and the view that each kind of client holds, with its architecture."""
OVERLAPS = (0, 2, 4, 6, 8, 10)
PAIRS = (100, 300, 1000)
LABELLED = 20  # samples of each client

# -- part 1: gamma

DECISIVE = 10  # features of each modality that say something of the label
WIDTHS = 25, 50  # of the teacher's and the student's modality; the others are noise


def modalities(seeds: int, samples: int, overlap: int, plane: Tensor, source: torch.Generator) -> list[Tensor]:
    """Draw both modalities and the labels of independent repetitions.

    A label says on which side of a plane through 0, in twenty Gaussian features, a sample lies. The student sees ten of
    them, and so does the teacher: ``overlap`` of them are the same, and as many of the twenty nobody sees.

    Args:
        seeds: number of repetitions ``S``.
        samples: of each, ``N``.
        overlap: features that both see, 0 to 10; gamma is this share of the features that one or both see.
        plane: its normal vectors, shape ``(S, 20)``.
        source: of all random numbers.

    Returns:
        The teacher's modality ``(S, N, 25)``, the student's ``(S, N, 50)``, and labels 0 and 1, int64, ``(S, N)``.
    """
    features = torch.randn(seeds, samples, 2 * DECISIVE, generator=source)
    labels = (torch.einsum("snd,sd->sn", features, plane) > 0).long()
    teacher, student = (torch.randn(seeds, samples, width, generator=source) for width in WIDTHS)
    student[..., :DECISIVE] = features[..., :DECISIVE]
    teacher[..., :DECISIVE] = features[..., DECISIVE - overlap : 2 * DECISIVE - overlap]
    return [teacher, student, labels]


def train_linear(inputs: Tensor, labels: Tensor, teacher: Tensor | None, steps: int) -> Tensor:
    """Train a linear classifier for each repetition, side by side, by full-batch gradient descent from 0.

    Args:
        inputs: shape ``(S, N, d)``.
        labels: shape ``(S, N)``.
        teacher: logits to learn from beside the labels, shape ``(S, N, 2)``; none without distillation.
        steps: of gradient descent, with a learning rate of 0.1.

    Returns:
        Weights with the bias in the last row, shape ``(S, d + 1, 2)``.
    """
    weights = inputs.new_zeros(len(inputs), inputs.shape[2] + 1, 2).requires_grad_()
    optimiser = torch.optim.SGD([weights], lr=0.1)
    for _ in range(steps):
        logits = outputs(weights, inputs).flatten(0, 1)
        loss = losses.cross_entropy(logits, labels.flatten())
        if teacher is not None:
            loss = loss + losses.kd(logits, teacher.flatten(0, 1), temperature=1.0)
        optimiser.zero_grad()
        (len(inputs) * loss).backward()  # the mean over all repetitions: each gets the gradient of its own mean
        optimiser.step()
    return weights.detach()


def outputs(weights: Tensor, inputs: Tensor) -> Tensor:
    """Return the logits of each repetition's linear classifier, shape ``(S, N, 2)``."""
    return inputs @ weights[:, :-1] + weights[:, -1:]


def by_gamma(seeds: int, steps: int) -> list[Row]:
    """Distil at every share of common information; a row for each repetition."""
    rows = []
    for overlap in OVERLAPS:
        source = seeding.generator(0, "gamma", overlap)
        plane = torch.randn(seeds, 2 * DECISIVE, generator=seeding.generator(0, "plane"))
        seen, tested = (modalities(seeds, n, overlap, plane, source) for n in (200, 1000))
        teacher = train_linear(seen[0], seen[2], None, steps)
        trained = {
            "teacher": (teacher, tested[0]),
            "alone": (train_linear(seen[1], seen[2], None, steps), tested[1]),
            "taught": (train_linear(seen[1], seen[2], outputs(teacher, seen[0]), steps), tested[1]),
        }
        scores = {
            who: (outputs(*pair).argmax(dim=2) == tested[2]).double().mean(dim=1) for who, pair in trained.items()
        }
        for number in range(seeds):
            row = {who: accuracy[number].item() for who, accuracy in scores.items()}
            gamma = overlap / (2 * DECISIVE - overlap)
            rows.append({"gamma": gamma, "seed": number, **row, "gain": row["taught"] - row["alone"]})
    return rows


def slopes(rows: list[Row]) -> list[float]:
    """Return the slope of the gain over gamma, by least squares, in each repetition."""
    found = []
    for members in reporting.grouped(rows, "seed"):
        gamma, gain = (torch.tensor([row[key] for row in members], dtype=torch.float64) for key in ("gamma", "gain"))
        centred = gamma - gamma.mean()
        found.append(((centred * gain).sum() / centred.square().sum()).item())
    return found


# -- parts 2 and 3: who teaches whom, and with how many pairs


def lesson(file: str, teacher: str, student: str, pairs: int, seed: int, clients: int) -> config.Experiment:
    """Return the experiment in which the clients of one view teach those of another, or of their own, each other.

    Args:
        file: experiment that says on what.
        teacher: view of the clients that teach.
        student: view of the clients that learn.
        pairs: number of public samples, without labels.
        seed: of everything random.
        clients: number that hold the student's view; as many hold the teacher's.
    """
    views = list(dict.fromkeys((teacher, student)))
    changes: Row = {
        "name": "lesson",
        "seed": seed,
        "rounds": 3,
        "strategy": "fedcqkd",
        "data.public": pairs,
        "federation.clients": clients * len(views),
        "federation.views": views,
        "federation.architectures": [VIEWS[file][view] for view in views],
        "train.local_epochs": 50,
        "engine.workers": 0,
        "strategies": {"fedcqkd": {"distil_epochs": 5, "temperature": 1.0, "calibration_share": 0.0}},
    }
    if teacher != student:
        changes["strategies.fedcqkd.teacher_view"] = teacher
    return config.load(HERE / file, changes)
