"""The cross-modal study: which modality teaches which, by how much, and with how many pairs?

1. Synthetic features of which a share gamma is decisive in both modalities, after the modality focusing hypothesis (Xue
   et al. 2023, arXiv:2206.06487): does the gain of distillation grow with gamma?
2. Who teaches whom: accelerometer and gyroscope (HAPT), and digits by ear and by eye. The gain of the students over the
   same students alone, with at least as many gradient steps (``fedkd.gains``).
3. The same, with fewer public pairs. In HAPT a client is one person, and the pairs are other people's: windows overlap.

::

    python simulations/cross_modal.py --out runs/cross_modal
    python simulations/cross_modal.py --out runs/cross_modal-quick --quick

It writes ``gamma.csv``, ``gains.csv``, ``cross_modal.md`` (tables) and ``cross_modal.png`` and ``.svg``.
"""

import argparse
import time
from collections.abc import Sequence
from dataclasses import replace
from itertools import cycle
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import reporting
import torch
from reporting import Row
from torch import Tensor

import fedkd
from fedkd import config, gains, losses, seeding
from fedkd.data.dividing import arrays
from fedkd.data.sources import DataSet, load
from fedkd.data.sources.dataset import SPLITS

HERE = Path(__file__).parent
FILES = "cross_modal.toml", "cross_modal_motion.toml"
"""Experiments that say which data, views and architectures, and whether a client is one person."""
OVERLAPS = (0, 2, 4, 6, 8, 10)
PAIRS = (100, 300, 1000)
LABELLED = 20  # samples of each client, however many are public

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


def slopes(rows: Sequence[Row]) -> list[float]:
    """Return the slope of the gain over gamma, by least squares, in each repetition."""
    found = []
    for members in reporting.grouped(rows, "seed"):
        gamma, gain = (torch.tensor([row[key] for row in members], dtype=torch.float64) for key in ("gamma", "gain"))
        centred = gamma - gamma.mean()
        found.append(((centred * gain).sum() / centred.square().sum()).item())
    return found


# -- parts 2 and 3: who teaches whom, and with how many pairs


def views_in(file: str) -> dict[str, str]:
    """Return the views of an experiment, and the architecture that each of them is dealt."""
    settings = config.load(HERE / file).federation
    return dict(zip(settings.views, cycle(settings.architectures), strict=False))


def dealt(data: DataSet, pairs: int, clients: int, seed: int, *, people: bool) -> DataSet:
    """Return the samples of a lesson, with their splits: those of the clients, the public ones and the official tests.

    Fewer pairs are a part of more, and the clients' samples do not depend on their number.

    Args:
        data: all samples.
        pairs: number of public samples.
        clients: number of clients, with :data:`LABELLED` samples each.
        seed: of the draw.
        people: whether each client is one of the data set's owners, and all public samples are those of other owners.
    """
    assert data.official_test is not None  # noqa: S101 - true of both data sets
    assert data.groups is not None  # noqa: S101 - likewise
    rows = torch.nonzero(~data.official_test).flatten()
    rows = rows[torch.randperm(len(rows), generator=seeding.generator(seed, "lesson"))]
    if people:
        owners = data.groups[rows]
        chosen = list(dict.fromkeys(owners.tolist()))[:clients]
        private = torch.cat([rows[owners == owner][:LABELLED] for owner in chosen])
        others = rows[~torch.isin(owners, torch.tensor(chosen))]
    else:
        private, others = rows.tensor_split([LABELLED * clients])
    split = torch.full((len(data),), -1)
    for name, members in (("train", private), ("public", others[:pairs]), ("test", data.official_test)):
        split[members] = SPLITS.index(name)
    taken = torch.nonzero(split >= 0).flatten()
    return replace(data.take(taken), split=split[taken], official_test=None)


def lesson(
    file: str, teacher: str, student: str, pairs: int, seed: int, clients: int, folder: Path
) -> config.Experiment:
    """Return the experiment in which the clients of one view teach those of another, or those of their own each other.

    Args:
        file: experiment that says on what.
        teacher: view of the clients that teach.
        student: view of the clients that learn.
        pairs: number of public samples, which have both views and no labels.
        seed: of everything random.
        clients: number that hold the student's view; as many hold the teacher's.
        folder: in which its samples are written (see :func:`dealt`).
    """
    base, architectures = config.load(HERE / file), views_in(file)
    views = list(dict.fromkeys((teacher, student)))
    people = base.federation.partition == "natural"
    data = dealt(load(base.data.name), pairs, clients * len(views), seed, people=people)
    np.savez(folder / "lesson.npz", allow_pickle=False, **arrays(data))
    settings: Row = {"distil_epochs": 5, "temperature": 1.0, "calibration_share": 0.0}
    if teacher != student:
        settings["teachers"] = teacher
    return base.changed(
        **{
            "seed": seed,
            "rounds": 3,
            "strategy": "fedcqkd",
            "strategies": {"fedcqkd": settings},
            "data.name": str(folder / "lesson.npz"),
            "federation.clients": clients * len(views),
            "federation.views": views,
            "federation.architectures": [architectures[view] for view in views],
            "train.local_epochs": 50,
            "engine.workers": 0,
        }
    )


def gained(file: str, teacher: str, student: str, pairs: int, seed: int, clients: int) -> list[Row]:
    """Run one lesson, train the same clients alone, and return one row: what the students gain."""
    with TemporaryDirectory() as folder:
        experiment = lesson(file, teacher, student, pairs, seed, clients, Path(folder))
        together = fedkd.simulate(experiment)
        alone = fedkd.simulate(gains.alone(experiment, together.rounds, together.clients))
    (row,) = [row for row in gains.gains(together.clients, alone.clients) if row["view"] == student]
    data = config.load(HERE / file).data.name
    cell = {"data": data, "teacher": teacher, "student": student, "pairs": pairs, "seed": seed}
    return [cell | {key: row[key] for key in ("alone", "together", "gain")}]


def lessons(seeds: int, pairs: Sequence[int], clients: int) -> list[tuple[Any, ...]]:
    """Return the arguments of every lesson: all pairs of views with the most pairs, and the mixed ones with fewer."""
    return [
        (file, teacher, student, count, seed, clients)
        for file in FILES
        for count in sorted(pairs, reverse=True)
        for teacher in views_in(file)
        for student in views_in(file)
        for seed in range(seeds)
        if teacher != student or count == max(pairs)
    ]


# -- what came out


def gamma_table(rows: Sequence[Row]) -> list[Row]:
    """Return a row of texts for each gamma: accuracies, and the gain with its interval."""
    found = []
    for members in reporting.grouped(rows, "gamma"):
        whose = "teacher", "alone", "taught"
        scores = {who: reporting.spread([100 * row[who] for row in members], 1) for who in whose}
        gain = reporting.interval([100 * row["gain"] for row in members], 2)
        found.append({"gamma": round(members[0]["gamma"], 2), **scores, "gain": gain})
    return found


def gains_table(rows: Sequence[Row]) -> list[Row]:
    """Return a row of texts for each lesson: the students alone and taught, and the gain with its interval."""
    found = []
    for members in reporting.grouped(rows, "data", "teacher", "student", "pairs"):
        cell = {key: members[0][key] for key in ("data", "teacher", "student", "pairs")}
        for name, key in (("alone %", "alone"), ("taught %", "together")):
            cell[name] = reporting.spread([100 * row[key] for row in members], 1)
        found.append(cell | {"gain": reporting.interval([100 * row["gain"] for row in members], 1)})
    return found


def figure(synthetic: Sequence[Row], real: Sequence[Row], out: Path) -> None:
    """Draw the gain over gamma, and for each data set over the number of pairs."""
    from matplotlib.figure import Figure

    data = reporting.grouped(real, "data")
    drawing = Figure(figsize=(4 * (1 + len(data)), 3.6), layout="constrained")
    axes = drawing.subplots(1, 1 + len(data), squeeze=False)[0]
    _curve(axes[0], synthetic, "gamma", "taught")
    axes[0].set(title="Gaussian features", xlabel="gamma, share of common features", ylabel="gain, percentage points")
    for axis, members in zip(axes[1:], data, strict=True):
        for each in reporting.grouped(members, "teacher", "student"):
            _curve(axis, each, "pairs", f"{each[0]['teacher']} teaches {each[0]['student']}")
        axis.set(title=members[0]["data"], xlabel="public pairs", xscale="log")
        counts = sorted({row["pairs"] for row in members})
        axis.set_xticks(counts, list(map(str, counts)))
        axis.minorticks_off()
        axis.legend(fontsize=8)
    for axis in axes:
        axis.axhline(0, color="0.6", linewidth=0.8)
    for kind in ("png", "svg"):
        drawing.savefig(out / f"cross_modal.{kind}", dpi=130)


def _curve(axis: Any, rows: Sequence[Row], key: str, label: str) -> None:  # noqa: ANN401 - matplotlib's axes
    points = sorted(reporting.grouped(rows, key), key=lambda members: members[0][key])
    found = [reporting.mean_interval([100 * row["gain"] for row in each]) for each in points]
    middle, low, high = zip(*found, strict=True)
    below, above = ([abs(m - edge) for m, edge in zip(middle, edges, strict=True)] for edges in (low, high))
    axis.errorbar([each[0][key] for each in points], middle, (below, above), marker="o", capsize=2, label=label)


def main() -> None:
    """Run all three parts and write what came out."""
    parser = argparse.ArgumentParser(description="The cross-modal study: tables and figure in one command.")
    parser.add_argument("--seeds", type=int, default=3, help="of parts 2 and 3; at least two for an interval")
    parser.add_argument("--out", type=Path, default=Path("runs/cross_modal"))
    parser.add_argument("--workers", type=int, default=2, help="processes")
    parser.add_argument("--quick", action="store_true", help="few pairs, clients and steps: shows only that it runs")
    chosen, start = parser.parse_args(), time.perf_counter()
    seeding.pin_arithmetic(1)
    chosen.out.mkdir(parents=True, exist_ok=True)
    synthetic = by_gamma(*((3, 20) if chosen.quick else (30, 1000)))
    reporting.write_csv(chosen.out / "gamma.csv", synthetic)
    slope = reporting.interval([100 * each for each in slopes(synthetic)], 2)
    head = f"{reporting.markdown(gamma_table(synthetic))}\nSlope of the gain over gamma: {slope} points.\n"
    real: list[Row] = []
    jobs = lessons(chosen.seeds, (20, 40) if chosen.quick else PAIRS, 1 if chosen.quick else 3)
    for found in reporting.in_processes(gained, jobs, chosen.workers):  # what is there is kept if the rest is cut off
        real += found
        reporting.write_csv(chosen.out / "gains.csv", real)
        text = f"{head}\n{reporting.markdown(gains_table(real))}"
        (chosen.out / "cross_modal.md").write_text(text, encoding="utf-8")
    figure(synthetic, real, chosen.out)
    print(text)
    print(f"{time.perf_counter() - start:.0f} s; tables and figure in {chosen.out}")


if __name__ == "__main__":
    main()
