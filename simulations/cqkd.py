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
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Self

import reporting
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

COLUMNS = {
    "accuracy %": ("accuracy", 100, 1),
    "NLL": ("nll", 1, 3),
    "Brier": ("brier", 1, 3),
    "ECE %": ("ece", 100, 1),
    "gap %": ("gap", 100, 1),
    "entropy": ("entropy", 1, 2),
    "own T": ("own_temperature", 1, 2),
    "ECE % at own T": ("ece_scaled", 100, 1),
    "k forward": ("forward", 1e-3, 1),
    "k backward": ("backward", 1e-3, 1),
    "k teacher": ("teacher_forward", 1e-3, 1),
    "CPU s": ("seconds", 1, 1),
}
"""Columns of the first table: key, factor and digits; passes are thousands of samples."""
CHANGES = {"accuracy": ("accuracy", 100, 1), "NLL": ("nll", 1, 3), "ECE": ("ece", 100, 1), "entropy": ("entropy", 1, 2)}

Row = dict[str, Any]
Objective = Callable[[Sequence[Tensor], Tensor], Tensor]


@dataclass(frozen=True)
class Sizes:
    """How many samples of each split there are at most, and for how many steps networks are trained (in epochs)."""

    train: int = 1000
    calibration: int = 500
    test: int = 2000
    steps: int = 320

    def epochs(self, samples: int) -> int:
        """Return how many passes over so many samples these steps are, rounded up."""
        return -(-self.steps // -(-samples // BATCH))


QUICK = Sizes(train=300, calibration=100, test=300, steps=10)


@dataclass(frozen=True)
class Method:
    """How a student is trained.

    Attributes:
        name: ``supervised``, ``cqkd``, ``cqkd-fitted`` (the teacher's own temperature is fitted first) or ``dml``.
        temperature: T of the distillation; None without.
    """

    name: str
    temperature: float | None = None


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
    """Counts the samples that go through networks, forward and backward, until it is closed."""

    def __init__(self, networks: Sequence[nn.Module]) -> None:
        self.forward = self.backward = 0
        self._handles = [each.register_forward_hook(self._count) for each in networks]

    def close(self) -> None:
        """Stop counting."""
        for handle in self._handles:
            handle.remove()

    def _count(self, module: nn.Module, inputs: tuple[Tensor, ...], logits: Tensor) -> None:
        self.forward += len(logits)
        if logits.requires_grad:
            logits.register_hook(self._count_back)

    def _count_back(self, gradient: Tensor) -> None:
        self.backward += len(gradient)


class Effort:
    """Measures what the training of students takes: samples through them and their teacher, processor time."""

    def __init__(self, students: Sequence[nn.Module], teacher: nn.Module | None) -> None:
        self.students, self.teacher = Passes(students), Passes([] if teacher is None else [teacher])
        self.seconds = -time.process_time()  # what other programs do does not count

    def __enter__(self) -> Self:
        """Measure from here."""
        return self

    def __exit__(self, *_: object) -> None:
        """Stop measuring."""
        self.seconds += time.process_time()
        self.students.close()
        self.teacher.close()

    @property
    def row(self) -> Row:
        """All of it, as columns."""
        counts = {"forward": self.students.forward, "backward": self.students.backward}
        return {**counts, "teacher_forward": self.teacher.forward, "seconds": self.seconds}


# -- samples


def row_numbers(dataset: DataSet, sizes: Sizes, seed: int) -> dict[str, Tensor]:
    """Draw which samples are for training, calibration and test: row numbers by the split's name, disjoint.

    The test set comes from the publisher's, the others from the rest.
    """
    assert dataset.official_test is not None  # noqa: S101 - true of all image data sets but digits
    order = torch.randperm(len(dataset), generator=seeding.generator(seed, "cqkd", "split"))
    test, rest = order[dataset.official_test[order]], order[~dataset.official_test[order]]
    share = min(sizes.calibration, len(rest) // 5)
    train = rest[share : share + sizes.train]
    return {"train": train, "calibration": rest[:share], "test": test[: sizes.test]}


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


def train_student(
    method: Method, students: Sequence[nn.Module], teacher: nn.Module, splits: Splits, epochs: int, seed: int
) -> Row:
    """Train the first student by a method (with the others, if it is mutual), and return what that took."""
    train = splits["train"]
    with Effort(students, teacher) as effort:
        if method.name == "supervised":
            objective: Objective = partial(supervised, labels=train.labels)
        elif method.name == "dml":
            objective = partial(mutual, labels=train.labels)
        else:
            logits = predict(teacher, train.full) / own_temperature(method, teacher, splits["calibration"])
            objective = partial(taught, labels=train.labels, teacher=logits, temperature=method.temperature or 1.0)
        fit(students, train.low, objective, epochs, seed)
    return effort.row


def own_temperature(method: Method, teacher: nn.Module, held_out: Split) -> float:
    """Return the teacher's temperature on samples that it was not trained on; 1 if the method does not fit it."""
    if method.name != "cqkd-fitted":
        return 1.0
    return calibration.fit_temperature(predict(teacher, held_out.full), held_out.labels)


def measure(trained: nn.Module, calibration_set: tuple[Tensor, Tensor], test_set: tuple[Tensor, Tensor]) -> Row:
    """Measure a network on the test set: as it is, and with its own temperature, fitted on the calibration split."""
    logits, labels = predict(trained, test_set[0]), test_set[1]
    own = calibration.fit_temperature(predict(trained, calibration_set[0]), calibration_set[1])
    gap = calibration.confidence_gap(logits.double().softmax(dim=1), labels).item()
    scaled = metrics.evaluate(logits / own, labels)["ece"]
    return metrics.evaluate(logits, labels) | {"gap": gap, "own_temperature": own, "ece_scaled": scaled}


def trained_teacher(dataset: DataSet, splits: Splits, epochs: int, seed: int) -> tuple[nn.Module, Row]:
    """Train the teacher on the full view by the labels, and return it frozen, with what that took."""
    train = splits["train"]
    teacher = network(dataset, FULL, TEACHER, seeding.derive_seed(seed, "teacher"))
    with Effort([teacher], None) as effort:
        objective = partial(supervised, labels=train.labels)
        fit([teacher], train.full, objective, epochs, seeding.derive_seed(seed, "order"))
    return teacher.requires_grad_(False).eval(), effort.row


def study(name: str, seed: int, sizes: Sizes, methods: Sequence[Method] = METHODS) -> list[Row]:
    """Train the teacher and all students of one data set and seed.

    Args:
        name: built-in data set of images.
        seed: of splits, starts and order; the students of a resolution share all three.
        sizes: how many samples and epochs.
        methods: how students are trained.

    Returns:
        A row for the teacher and one for each student.
    """
    seeding.pin_arithmetic(1)
    dataset = load(name)
    rows, side, order = (
        row_numbers(dataset, sizes, seed),
        view(dataset, FULL).shape[-1],
        seeding.derive_seed(seed, "order"),
    )
    whole, epochs = splits_in(dataset, rows, FULL), sizes.epochs(len(rows["train"]))
    teacher, effort = trained_teacher(dataset, whole, epochs, seed)
    cell: Row = {"data": name, "side": side, "seed": seed, "method": "teacher", "temperature": ""}
    found = [cell | measure(teacher, *held_out(whole, "full")) | effort]
    for factor in SHRINK:
        low = f"{FULL}@{side // factor}"
        splits = splits_in(dataset, rows, low)
        for method in methods:
            starts = [seeding.derive_seed(seed, "student", peer) for peer in range(1 + (method.name == "dml"))]
            students = [network(dataset, low, STUDENT, start) for start in starts]
            effort = train_student(method, students, teacher, splits, epochs, order)
            cell = {"data": name, "side": side // factor, "seed": seed, "method": method.name}
            cell["temperature"] = "" if method.temperature is None else method.temperature
            found.append(cell | measure(students[0], *held_out(splits, "low")) | effort)
    return found


def held_out(splits: Splits, which: str) -> list[tuple[Tensor, Tensor]]:
    """Return inputs and labels of the calibration split and the test set, in the ``full`` or the ``low`` view."""
    return [(getattr(splits[name], which), splits[name].labels) for name in ("calibration", "test")]


# -- what came out


def summarised(rows: Sequence[Row]) -> list[Row]:
    """Return a row of texts for each data set, side and method: mean ± sd over seeds."""
    found = []
    for members in reporting.grouped(rows, "data", "side", "method", "temperature"):
        first = members[0]
        cell = {"data": first["data"], "px": first["side"], "method": first["method"], "T": first["temperature"]}
        for name, (key, factor, digits) in COLUMNS.items():
            cell[name] = reporting.spread([factor * row[key] for row in members], digits)
        found.append(cell)
    return found


def gains(rows: Sequence[Row]) -> list[Row]:
    """Return what each method changes against the supervised student of the same seed: mean and 95 % interval."""
    found = []
    for members in reporting.grouped([row for row in rows if row["method"] != "teacher"], "data", "side"):
        base = {row["seed"]: row for row in members if row["method"] == "supervised"}
        for each in reporting.grouped(members, "method", "temperature"):
            if each[0]["method"] != "supervised":
                cell = {"data": each[0]["data"], "px": each[0]["side"], "method": each[0]["method"]}
                cell["T"] = each[0]["temperature"]
                for name, (key, factor, digits) in CHANGES.items():
                    changes = [factor * (row[key] - base[row["seed"]][key]) for row in each]
                    cell[name] = reporting.interval(changes, digits)
                cell["passes"] = f"{sum(map(passes, each)) / sum(passes(base[row['seed']]) for row in each):.2f}x"
                cell["time"] = f"{sum(r['seconds'] for r in each) / sum(base[r['seed']]['seconds'] for r in each):.2f}x"
                found.append(cell)
    return found


def passes(row: Row) -> int:
    """All samples that went through a network, forward or backward, large and small ones alike."""
    return int(row["forward"] + row["backward"] + row["teacher_forward"])


def figure(rows: Sequence[Row], out: Path) -> None:
    """Draw accuracy and ECE against the temperature, a column of panels for each data set and resolution."""
    from matplotlib.figure import Figure

    panels = reporting.grouped([row for row in rows if row["method"] != "teacher"], "data", "side")
    drawing = Figure(figsize=(3.2 * len(panels), 5.6), layout="constrained")
    axes = drawing.subplots(2, len(panels), squeeze=False, sharex=True)
    for column, members in enumerate(panels):
        axes[0][column].set_title(f"{members[0]['data']}, {members[0]['side']} px", fontsize=10)
        for axis, key in zip(axes[:, column], ("accuracy", "ece"), strict=True):
            _panel(axis, members, key)
        axes[1][column].set_xlabel("temperature T")
    axes[0][0].set_ylabel("accuracy, %")
    axes[1][0].set_ylabel("ECE, %")
    handles, labels = axes[0][0].get_legend_handles_labels()
    drawing.legend(handles, labels, loc="outside lower center", ncols=4)
    for kind in ("png", "svg"):
        drawing.savefig(out / f"cqkd.{kind}", dpi=130)


def _panel(axis: Any, rows: Sequence[Row], key: str) -> None:  # noqa: ANN401 - matplotlib's axes
    colours = {"supervised": "0.35", "dml": "tab:green", "cqkd": "tab:blue", "cqkd-fitted": "tab:orange"}
    for name, colour in colours.items():
        points = reporting.grouped([row for row in rows if row["method"] == name], "temperature")
        scores = [reporting.mean_sd([100 * row[key] for row in point]) for point in points]
        if not scores:
            continue
        if points[0][0]["temperature"] == "":
            middle, sd = scores[0]
            axis.axhline(middle, color=colour, linestyle="--", label=name)
            axis.axhspan(middle - sd, middle + sd, color=colour, alpha=0.12)
        else:
            at = [point[0]["temperature"] * (1.05 if name == "cqkd-fitted" else 1) for point in points]
            axis.errorbar(at, *zip(*scores, strict=True), color=colour, marker="o", capsize=2, label=name)
    axis.set_xscale("log")
    axis.set_xticks(TEMPERATURES, [f"{temperature:g}" for temperature in TEMPERATURES])
    axis.minorticks_off()


def main() -> None:
    """Run the study and write what came out."""
    parser = argparse.ArgumentParser(description="The CQKD study: table and figure in one command.")
    parser.add_argument("--data", default="fashion-mnist,cifar10-jpeg-small,caltech10", help="built-in data sets")
    parser.add_argument("--seeds", default="0,1,2", help="at least two for a spread")
    parser.add_argument("--out", type=Path, default=Path("runs/cqkd"))
    parser.add_argument("--workers", type=int, default=2, help="processes")
    parser.add_argument("--quick", action="store_true", help="few samples and steps: shows only that it runs")
    chosen, start = parser.parse_args(), time.perf_counter()
    names, seeds = chosen.data.split(","), [int(seed) for seed in chosen.seeds.split(",")]
    jobs = [(name, seed, QUICK if chosen.quick else Sizes()) for name in names for seed in seeds]
    chosen.out.mkdir(parents=True, exist_ok=True)
    rows: list[Row] = []
    for found in reporting.in_processes(study, jobs, chosen.workers):  # what is there is kept if the rest is cut off
        rows += found
        reporting.write_csv(chosen.out / "cqkd.csv", rows)
        text = f"{reporting.markdown(summarised(rows))}\n{reporting.markdown(gains(rows))}"
        (chosen.out / "cqkd.md").write_text(text, encoding="utf-8")
    figure(rows, chosen.out)
    print(text)
    print(f"{len(rows)} networks in {time.perf_counter() - start:.0f} s; tables and figure in {chosen.out}")


if __name__ == "__main__":
    main()
