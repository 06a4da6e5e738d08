"""What a GPU gives: rounds with 100 and 1,000 clients and Fashion-MNIST's 60,000 images, one by one and in cohorts.

    python benchmarks/gpu.py --root FOLDER

Everything runs in this process (``engine.workers = 0``), so that one process drives the GPU.
"""

import argparse
import threading
from statistics import mean, median
from typing import Any

import torch

from fedkd import simulate
from fedkd.config import parse

CLIENTS = 100, 1000
PLANS = ("one-by-one", 32), ("cohorts", 32), ("cohorts", 100)
ROUNDS = 6


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


def main() -> None:
    """Measure, and print a line for each case."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--root", help="folder of Fashion-MNIST", required=True)
    parser.add_argument("--clients", type=int, nargs="+", default=CLIENTS)
    parser.add_argument("--dtypes", nargs="+", default=["float32"])
    arguments = parser.parse_args()
    print(f"{torch.cuda.get_device_name()}, torch {torch.__version__}")
    for clients in arguments.clients:
        for dtype in arguments.dtypes:
            for plan, size in PLANS:
                rounds(arguments.root, clients, plan, size, dtype)


if __name__ == "__main__":
    main()
