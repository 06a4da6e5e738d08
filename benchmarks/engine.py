"""Seconds per round of one experiment on four engines: Flower's simulation, our Ray grid in both plans, and the ideal.

The ideal is what a hand-written simulation does: as many processes as cores, each with a plain PyTorch loop over its
share of the clients, the same batches, no messages, no state, no validation; only sums of weights come back.

    python benchmarks/engine.py                     # the two cases with digits: about four minutes
    python benchmarks/engine.py --cases fashion --json
    python benchmarks/engine.py --cases 10000 --engines one-by-one cohorts ideal

Every engine runs in a process of its own; the figure is the median over the rounds between the first two, in which
everything is loaded, and the last, in which clients are evaluated. Ratios are measured in one run.
"""

import argparse
import json
import multiprocessing
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from statistics import median
from typing import Any

from common import TEST, Memory, noisy_digits

from fedkd.config import Experiment, parse

ENGINES = ("flower", "one-by-one", "cohorts", "ideal")
CORES = 2
BASE: Mapping[str, Any] = {
    "strategy": "fedavg",
    "data": {"public": 0.0, "local_test": 0.0, "test": TEST},
    "federation": {"clients": 100, "partition": "iid", "min_samples": 0},
    "train": {"local_epochs": 1, "optimizer": "sgd", "lr": 0.1, "batch_size": 4},
    "engine": {"evaluate_every": 0},
}
FASHION = {"data.name": "fashion-mnist", "data.public": 0, "train.batch_size": 32}
CASES: Mapping[str, Mapping[str, Any]] = {
    "100x17": {},
    "dirichlet": {"federation.partition": "dirichlet", "federation.alpha": 0.5},
    "fashion": {**FASHION, "federation.clients": 20, "data.public": 20000},
    "1000": {"federation.clients": 1000},
    "10000": {"federation.clients": 10000},
}
ROUNDS = {"flower": 4, "one-by-one": 12, "cohorts": 40, "ideal": 12}
MANY = {"1000": 1000, "10000": 10000}
"""Clients of the cases for which there are not enough digits: 17 noisy ones each."""
FEWER = {"fashion": 9, "1000": 6, "10000": 4}


def experiment_of(case: str, engine: str, root: str | None) -> Experiment:
    """Return the experiment of a case on an engine."""
    rounds = min(ROUNDS[engine], FEWER.get(case, ROUNDS[engine]))
    changes: dict[str, Any] = {**CASES[case], "rounds": max(4, rounds)}
    if root:
        changes["data.name" if case in MANY else "data.root"] = root
    if engine == "flower":
        changes |= {"engine.name": "flower", "engine.workers": CORES}
    elif engine != "ideal":
        changes |= {"engine.workers": CORES, "engine.plan": engine}
    return parse(BASE, changes, where=case)


def measure(case: str, engine: str, root: str | None) -> dict[str, float]:
    """Run one case on one engine; return seconds per round, and peak proportional memory in GB."""
    with noisy_digits(MANY.get(case, 0)) as file:
        return _measure(experiment_of(case, engine, file or root), engine)


def _measure(experiment: Experiment, engine: str) -> dict[str, float]:
    with Memory() as memory:
        seconds = ideal(experiment) if engine == "ideal" else ours(experiment)
    return {"seconds": median(seconds[2:-1]), "gigabytes": memory.peak / 1e9}


def ours(experiment: Experiment) -> list[float]:
    """Return the seconds of each round on an engine of ours, or Flower's."""
    from fedkd import simulate

    return [float(record["seconds"]) for record in simulate(experiment).rounds]


# -- the ideal


def ideal(experiment: Experiment) -> list[float]:
    """Return the seconds of each round of hand-written loops in as many processes as there are cores."""
    context = multiprocessing.get_context("spawn")
    pipes = [context.Pipe() for _ in range(CORES)]
    text = experiment.model_dump_json()
    workers = [
        context.Process(target=loop, args=(text, share, other)) for share, (_, other) in enumerate(pipes)
    ]  # fmt: skip
    for worker in workers:
        worker.start()
    weights = pipes[0][0].recv()
    for ours_, _ in pipes[1:]:
        ours_.recv()
    seconds = []
    for _ in range(experiment.rounds):
        before = time.perf_counter()
        for ours_, _ in pipes:
            ours_.send(weights)
        sums = [ours_.recv() for ours_, _ in pipes]
        total = sum(count for _, count in sums)
        weights = {name: sum(part[name] for part, _ in sums) / total for name in weights}
        seconds.append(time.perf_counter() - before)
    for (ours_, _), worker in zip(pipes, workers, strict=True):
        ours_.send(None)
        worker.join()
    return seconds


def loop(text: str, share: int, pipe: Any) -> None:  # noqa: ANN401
    """Train every second client, round after round, and send back the weighted sum of their weights."""
    import torch
    from torch.nn.functional import cross_entropy

    from fedkd.data.federation import build
    from fedkd.learner.fit import batches
    from fedkd.models import build as build_model

    experiment = Experiment.model_validate_json(text)
    torch.set_num_threads(1)
    federation, train = build(experiment), experiment.train
    torch.manual_seed(0)
    model = build_model(federation.model_spec("cnn", "image"))
    shards = [federation.private(key) for key in list(federation.holdings)[share::CORES]]
    data = [(shard.inputs.clone(), shard.labels.clone()) for shard in shards if len(shard)]
    pipe.send({name: tensor.numpy() for name, tensor in model.state_dict().items()})
    while (received := pipe.recv()) is not None:
        start = {name: torch.from_numpy(array).float() for name, array in received.items()}
        sums = {name: torch.zeros(tensor.shape, dtype=torch.float64) for name, tensor in start.items()}
        count = 0
        for number, (inputs, labels) in enumerate(data):
            model.load_state_dict(start)
            optimiser = torch.optim.SGD(model.parameters(), train.lr)
            for rows in batches(len(inputs), train.local_epochs, train.batch_size, seed=number):
                optimiser.zero_grad()
                cross_entropy(model(inputs[rows]), labels[rows]).backward()
                optimiser.step()
            for name, tensor in model.state_dict().items():
                sums[name].add_(tensor, alpha=len(inputs))
            count += len(inputs)
        pipe.send(({name: tensor.numpy() for name, tensor in sums.items()}, count))


# -- all of it


def run_all(cases: Sequence[str], engines: Sequence[str], root: str | None) -> list[dict[str, Any]]:
    """Measure every case on every engine, each in a process of its own."""
    rows = []
    for case in cases:
        found = {}
        for engine in engines:
            command = [sys.executable, __file__, "--one", case, engine, *(["--root", root] if root else [])]
            done = subprocess.run(command, capture_output=True, text=True, check=False)
            if done.returncode:
                raise SystemExit(f"{case} on {engine} failed:\n{done.stderr[-2000:]}")
            found[engine] = json.loads(done.stdout.splitlines()[-1])
            print(f"{case}  {engine}  {found[engine]}", file=sys.stderr)
        rows.append({"case": case, "engines": found, "ratios": ratios(found)})
    return rows


def ratios(found: Mapping[str, Mapping[str, float]]) -> dict[str, float]:
    """Return how many times faster each of our plans is than Flower's engine and than the ideal."""
    return {
        f"{plan} vs {other}": round(found[other]["seconds"] / found[plan]["seconds"], 3)
        for plan in ("one-by-one", "cohorts")
        for other in ("flower", "ideal")
        if plan in found and other in found
    }


def main() -> None:
    """Measure, and print a table or JSON."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--cases", nargs="+", default=["100x17", "dirichlet"], choices=CASES)
    parser.add_argument("--engines", nargs="+", default=ENGINES, choices=ENGINES)
    parser.add_argument("--root", help="folder of Fashion-MNIST")
    parser.add_argument("--json", action="store_true", help="print the result as JSON")
    parser.add_argument("--one", nargs=2, metavar=("CASE", "ENGINE"), help="measure one, in this process")
    arguments = parser.parse_args()
    root = str(Path(arguments.root).resolve()) if arguments.root else None
    if arguments.one:
        print(json.dumps(measure(*arguments.one, root)))
        return
    rows = run_all(arguments.cases, arguments.engines, root)
    if arguments.json:
        print(json.dumps(rows))
        return
    for row in rows:
        print(row["case"])
        for engine, figures in row["engines"].items():
            print(f"  {engine:<12} {figures['seconds']:8.4f} s per round  {figures['gigabytes']:5.1f} GB")
        for name, ratio in row["ratios"].items():
            print(f"  {name:<28} {ratio:8.2f} times faster")


if __name__ == "__main__":
    main()
