"""What a GPU gives: rounds and single steps, clients one by one and in cohorts.

    python benchmarks/gpu.py --root FOLDER          # rounds with 100 and 1,000 clients, Fashion-MNIST's 60,000 images
    python benchmarks/gpu.py --steps                # one step of 32 clients, from small to large

Everything runs in this process (``engine.workers = 0``), so that one process drives the GPU.
"""

import argparse
import threading
import time
from collections.abc import Callable
from statistics import mean, median
from typing import Any

import torch
from torch.nn.functional import cross_entropy

from fedkd import simulate
from fedkd.config import parse
from fedkd.data.samples import Samples
from fedkd.learner import cohort, worth
from fedkd.learner.fit import fit
from fedkd.learner.model import fresh
from fedkd.learner.requests import Fit, OnTarget
from fedkd.models import ModelSpec
from fedkd.optimisers import Optimiser
from fedkd.seeding import pin_arithmetic

CLIENTS = 100, 1000
PLANS = ("one-by-one", 32), ("cohorts", 32), ("cohorts", 100)
ROUNDS = 6
TOGETHER, STEPS = 32, 20
SIZES = (
    ("cnn", (1, 8, 8), 4),
    ("mlp", (1, 28, 28), 32),
    ("cnn", (1, 28, 28), 32),
    ("cnn", (3, 32, 32), 32),
    ("cnn-wide", (3, 32, 32), 32),
    ("resnet-gn", (3, 32, 32), 32),
    ("cnn", (3, 64, 64), 64),
    ("cnn-wide", (3, 32, 32), 128),
    ("resnet-gn", (3, 32, 32), 128),
)


class Utilisation:
    """The share of the time, in percent, in which the GPU had work, as its driver tells."""

    def __enter__(self) -> "Utilisation":
        """Look ten times a second."""
        self._seen: list[int] = []
        self._done = threading.Event()
        self._thread = threading.Thread(target=self._watch, daemon=True)
        self._thread.start()
        return self

    def __exit__(self, *exception: object) -> None:
        """Stop looking."""
        self._done.set()
        self._thread.join()

    @property
    def percent(self) -> float:
        """The mean of what was seen."""
        return mean(self._seen) if self._seen else float("nan")

    def _watch(self) -> None:
        while not self._done.wait(0.1):
            self._seen.append(torch.cuda.utilization())


def rounds(root: str, clients: int, plan: str, size: int, dtype: str) -> None:
    """Print seconds per round, utilisation and memory of one run; its last round, with the evaluation, is left out."""
    values: dict[str, Any] = {
        "strategy": "fedavg",
        "rounds": ROUNDS,
        "data": {"name": "fashion-mnist", "root": root, "public": 0, "local_test": 0.0},
        "federation": {"clients": clients, "partition": "iid", "min_samples": 0},
        "train": {"local_epochs": 1, "optimizer": "sgd", "lr": 0.05, "device": "cuda", "dtype": dtype},
        "engine": {"plan": plan, "cohort_size": size, "evaluate_every": 0},
    }
    torch.cuda.reset_peak_memory_stats()
    held: list[int] = []
    with Utilisation() as utilisation:
        result = simulate(parse(values, {}, "gpu"), on_round=lambda _: held.append(torch.cuda.memory_allocated()))
    seconds = median(record["seconds"] for record in result.rounds[1:-1])
    accuracy = (result.metrics["server_global"] or {})["accuracy"]
    name = plan if plan == "one-by-one" else f"{plan} of {size}"
    print(
        f"{clients:>6} clients  {name:<15} {dtype:<10} {seconds:7.3f} s  {utilisation.percent:3.0f} %  peak "
        f"{torch.cuda.max_memory_allocated() / 1e9:5.2f} GB  after rounds 2 and {ROUNDS - 1}: {held[1] / 1e6:.1f} and "
        f"{held[-2] / 1e6:.1f} MB  accuracy {accuracy:.3f}",
        flush=True,
    )


def step(architecture: str, shape: tuple[int, ...], batch: int) -> None:
    """Print what a client's step takes alone and in a cohort."""
    pin_arithmetic(1)
    asked = [_request(k, ModelSpec(architecture, shape, 10, 64), batch) for k in range(TOGETHER)]
    few = asked[:4]
    alone = _seconds(lambda: [fit(one) for one in few]) / len(few) / STEPS
    together = _seconds(lambda: cohort.fit_cohort(asked)) / TOGETHER / STEPS
    size = worth.multiplications(asked[0].models["student"].spec) * batch / 1e6
    print(
        f"{architecture:<10} {'x'.join(map(str, shape)):<9} batch {batch:>3}  {size:7.1f} million multiplications  "
        f"alone {alone * 1e3:6.3f} ms  together {together * 1e3:6.3f} ms  {alone / together:5.1f} times",
        flush=True,
    )


def _request(client: int, spec: ModelSpec, batch: int) -> Fit:
    source, rows = torch.Generator().manual_seed(client), batch * STEPS
    inputs = torch.randn(rows, *spec.sample_shape, generator=source).cuda()
    labels = torch.randint(0, 10, (rows,), generator=source).cuda()
    student = fresh(spec, client, torch.empty(0, device="cuda"))
    samples = Samples(torch.arange(rows), inputs, {"labels": labels})
    objective = OnTarget(cross_entropy, "student", "labels")
    return Fit({"student": student}, samples, objective, 1, batch, Optimiser("sgd", 0.01), seed=client)


def _seconds(work: Callable[[], object]) -> float:
    """Return the seconds of the third time."""
    for _ in range(3):
        torch.cuda.synchronize()
        before = time.perf_counter()
        work()
        torch.cuda.synchronize()
    return time.perf_counter() - before


def main() -> None:
    """Measure, and print a line for each case."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--root", help="folder of Fashion-MNIST: measure rounds")
    parser.add_argument("--clients", type=int, nargs="+", default=CLIENTS)
    parser.add_argument("--dtypes", nargs="+", default=["float32"])
    parser.add_argument("--steps", action="store_true", help="measure single steps")
    arguments = parser.parse_args()
    print(f"{torch.cuda.get_device_name()}, torch {torch.__version__}")
    for clients in arguments.clients if arguments.root else ():
        for dtype in arguments.dtypes:
            for plan, size in PLANS:
                rounds(arguments.root, clients, plan, size, dtype)
    for size in SIZES if arguments.steps else ():
        step(*size)


if __name__ == "__main__":
    main()
