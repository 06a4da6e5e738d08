"""What aggregation costs: 100 clients, 5,000 samples and 10 classes on one core, against a plain float32 mean.

    python benchmarks/ensemble.py [--json] [--clients 100] [--samples 5000] [--classes 10] [--repeats 15]
    python benchmarks/ensemble.py --permutations 1000 --repeats 1     # a quarter of an hour: are the bits the same?

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

Rule = Callable[[Tensor], Tensor]


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
    "exp_guard": lambda logits: ensemble.exp_guard(logits, torch.zeros(len(logits)), eta=4.0).probabilities,
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


def differing(logits: Tensor, permutations: int) -> dict[str, int]:
    """Return for each rule but the plain one how many random orders of the clients changed a bit of its result."""
    orders = torch.Generator().manual_seed(1)
    expected = {name: rule(logits) for name, rule in RULES.items() if name != "plain"}
    found = dict.fromkeys(expected, 0)
    for _ in range(permutations):
        permuted = logits[torch.randperm(len(logits), generator=orders)]
        for name, values in expected.items():
            found[name] += not torch.equal(RULES[name](permuted), values)
    return found


def main() -> None:
    """Print one line per rule, or JSON."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--clients", type=int, default=100)
    parser.add_argument("--samples", type=int, default=5000)
    parser.add_argument("--classes", type=int, default=10)
    parser.add_argument("--repeats", type=int, default=15)
    parser.add_argument("--permutations", type=int, default=0, help="also count orders that change a bit")
    parser.add_argument("--json", action="store_true")
    given = parser.parse_args()
    torch.set_num_threads(1)
    logits = predictions(given.clients, given.samples, given.classes)
    seconds, changed = measure(logits, given.repeats), differing(logits, given.permutations)
    ratios = {name: value / seconds["plain"] for name, value in seconds.items()}
    if given.json:
        times = {name: 1000 * value for name, value in seconds.items()}
        print(json.dumps({"milliseconds": times, "ratios": ratios, "changed": changed}, indent=2))
        return
    for name, value in seconds.items():
        counted = f"  {changed[name]} of {given.permutations} orders changed a bit" if name in changed else ""
        print(f"{name:20} {1000 * value:8.2f} ms {ratios[name]:8.1f}x{counted if given.permutations else ''}")


if __name__ == "__main__":
    main()
