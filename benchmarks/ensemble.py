"""What aggregation costs: 100 clients, 5,000 samples and 10 classes on one core, against a plain float32 mean.

    python benchmarks/ensemble.py [--json] [--clients 100] [--samples 5000] [--classes 10] [--repeats 15]

All rules are measured in turn, over and over, in processor time, and the smallest of their times counts: so a ratio is
of one run, and other programs on the machine disturb it little. *plain* is ``logits.mean(0)``: float32, in order of
arrival. The other rules give the same bits in any order.
"""

import argparse
import json
from collections.abc import Callable
from time import process_time

import torch
from torch import Tensor

from fedkd import ensemble

Rule = Callable[[Tensor], object]


def streamed(logits: Tensor) -> Tensor:
    """Average logits one client at a time."""
    stream = ensemble.StreamedMean(tuple(logits.shape[1:]))
    for client in logits:
        stream.add(client)
    return stream.mean()


RULES: dict[str, Rule] = {
    "plain": lambda logits: logits.mean(0),
    "mean_logits": ensemble.mean_logits,
    "streamed mean": streamed,
    "mean_probabilities": ensemble.mean_probabilities,
    "enhanced_era": ensemble.enhanced_era,
    "vote": ensemble.vote,
    "by_entropy": ensemble.by_entropy,
    "coordinate_median": ensemble.coordinate_median,
    "geometric_median": ensemble.geometric_median,
    "cronus": ensemble.cronus,
    "exp_guard": lambda logits: ensemble.exp_guard(logits, torch.zeros(len(logits)), eta=4.0),
}


def predictions(clients: int, samples: int, classes: int) -> Tensor:
    """Return float32 logits of clients that agree more or less: noise, and 3 more for the true class."""
    values = torch.Generator().manual_seed(0)
    logits = 1.5 * torch.randn(clients, samples, classes, generator=values)
    logits[:, torch.arange(samples), torch.randint(classes, (samples,), generator=values)] += 3
    return logits


def measure(logits: Tensor, repeats: int) -> dict[str, float]:
    """Return the smallest processor time of each rule, in seconds."""
    best = dict.fromkeys(RULES, float("inf"))
    for _ in range(repeats):
        for name, rule in RULES.items():
            started = process_time()
            rule(logits)
            best[name] = min(best[name], process_time() - started)
    return best


def main() -> None:
    """Print one line per rule, or JSON."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--clients", type=int, default=100)
    parser.add_argument("--samples", type=int, default=5000)
    parser.add_argument("--classes", type=int, default=10)
    parser.add_argument("--repeats", type=int, default=15)
    parser.add_argument("--json", action="store_true")
    given = parser.parse_args()
    torch.set_num_threads(1)
    seconds = measure(predictions(given.clients, given.samples, given.classes), given.repeats)
    ratios = {name: value / seconds["plain"] for name, value in seconds.items()}
    if given.json:
        print(json.dumps({"milliseconds": {k: 1000 * v for k, v in seconds.items()}, "ratios": ratios}, indent=2))
        return
    for name, value in seconds.items():
        print(f"{name:20} {1000 * value:8.2f} ms {ratios[name]:8.1f}x")


if __name__ == "__main__":
    main()
