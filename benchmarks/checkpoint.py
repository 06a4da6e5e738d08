"""What a checkpoint costs beside a round: 20 clients with 2,000 Fashion-MNIST images each, cnn, batch 32, one epoch.

python benchmarks/checkpoint.py [--root FOLDER] [--rounds 3] [--participation 1.0]
"""

import argparse
import tempfile
from pathlib import Path
from time import perf_counter
from typing import Any

from fedkd.app.checkpoint import Checkpoints
from fedkd.config import Experiment
from fedkd.engine.simulate import simulate

ROOT = Path(__file__).resolve().parents[2] / "shared" / "data" / "fashion-mnist"


def experiment_of(root: str, rounds: int, participation: float) -> Experiment:
    """Return the experiment; only its last round is evaluated, so that a round is as short as it can be."""
    return Experiment(
        strategy="fedavg",
        rounds=rounds,
        data={"name": "fashion-mnist", "root": root, "public": 10_000},
        federation={"clients": 20, "partition": "iid", "participation": participation},
        train={"local_epochs": 1, "batch_size": 32},
        engine={"evaluate_every": 0},
    )


def measure(experiment: Experiment, folder: Path) -> tuple[list[float], list[float]]:
    """Return the seconds of each round without its checkpoint, and those of the checkpoint."""
    saved: list[float] = []
    save = Checkpoints.save

    def timed(self: Checkpoints, *arguments: Any) -> None:  # noqa: ANN401
        started = perf_counter()
        save(self, *arguments)
        saved.append(perf_counter() - started)

    Checkpoints.save = timed  # type: ignore[method-assign]
    try:
        rounds = simulate(experiment, out=folder).rounds
    finally:
        Checkpoints.save = save  # type: ignore[method-assign]
    return [float(record["seconds"]) for record in rounds], saved


def main() -> None:
    """Print one line per round."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--root", default=str(ROOT))
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--participation", type=float, default=1.0)
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        experiment = experiment_of(given.root, given.rounds, given.participation)
        rounds, saved = measure(experiment, Path(folder) / "run")
        newest = Path(folder) / "run" / "checkpoints" / f"round-{given.rounds:05d}"
        size = sum(path.stat().st_size for path in newest.rglob("*") if path.is_file())
    print(f"a checkpoint has {size / 1e6:.1f} MB")
    for number, (seconds, cost) in enumerate(zip(rounds, saved, strict=True), start=1):
        print(f"round {number}: {seconds:.2f} s, checkpoint {1000 * cost:.0f} ms: {cost / seconds:.2%}")


if __name__ == "__main__":
    main()
