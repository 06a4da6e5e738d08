"""How a round grows with the clients: seconds and memory from 100 to 10,000, in process and on one or two workers.

Every client holds 17 digits of 8x8 pixels; FedAvg, ``cnn``, one epoch in batches of 4, in cohorts. Ratios are measured
in one run. The first reply counts from the call to the first reply that the server reads. In process, torch's
compiler is imported before, which torch asks for in the first vectorised step; on Ray each worker's import counts.

    python benchmarks/scaling.py                    # ten minutes
    python benchmarks/scaling.py --clients 100 1000 --workers 0 --json
"""

import argparse
import json
import subprocess
import sys
import time
from collections.abc import Sequence
from statistics import median
from typing import Any

from common import PER_CLIENT, TEST, Memory, noisy_digits

ROUNDS = {100: 30, 1000: 9}
FEWEST_ROUNDS = 5


def measure(clients: int, workers: int) -> dict[str, float]:
    """Run one case in this process; return seconds per round, seconds to the first reply, and peak gigabytes."""
    from fedkd import simulate
    from fedkd.app import server
    from fedkd.config import parse

    if workers:
        import fedkd.engine.ray  # noqa: F401 - what follows is timed without it
    else:
        import torch._dynamo  # noqa: F401

    arrivals: list[float] = []
    read = server.read_reply

    def timed(*arguments: Any) -> Any:  # noqa: ANN401
        arrivals.append(time.perf_counter())
        server.read_reply = read  # the first one is enough
        return read(*arguments)

    server.read_reply = timed
    with noisy_digits(clients) as path:
        experiment = parse(
            {
                "strategy": "fedavg",
                "rounds": ROUNDS.get(clients, FEWEST_ROUNDS),
                "data": {"name": path, "public": 0, "local_test": 0.0, "test": TEST},
                "federation": {"clients": clients, "partition": "iid", "min_samples": PER_CLIENT},
                "train": {"local_epochs": 1, "optimizer": "sgd", "lr": 0.1, "batch_size": 4},
                "engine": {"evaluate_every": 0, "workers": workers, "plan": "cohorts"},
            },
            {},
            where="scaling",
        )
        with Memory() as memory:
            before = time.perf_counter()
            rounds = simulate(experiment).rounds
    seconds = median([record["seconds"] for record in rounds][2:-1])
    return {"seconds": seconds, "first reply": arrivals[0] - before, "gigabytes": memory.peak / 1e9}


def run_all(numbers: Sequence[int], workers: Sequence[int]) -> list[dict[str, float]]:
    """Measure every case in a process of its own; cost per client also relative to that of the fewest clients."""
    rows: list[dict[str, float]] = []
    for count in workers:
        first = None
        for clients in numbers:
            command = [sys.executable, __file__, "--one", str(clients), str(count)]
            done = subprocess.run(command, capture_output=True, text=True, check=False)
            if done.returncode:
                raise SystemExit(f"{clients} clients on {count} workers failed:\n{done.stderr[-2000:]}")
            found = json.loads(done.stdout.splitlines()[-1])
            each = found["seconds"] / clients
            first = first or each
            rows.append(
                {"workers": count, "clients": clients, **found, "ms each": each * 1e3, "relative": each / first}
            )
            print(rows[-1], file=sys.stderr)
    return rows


def main() -> None:
    """Measure, and print a table or JSON."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--clients", nargs="+", type=int, default=[100, 1000, 10000])
    parser.add_argument("--workers", nargs="+", type=int, default=[0, 1, 2], help="0: in process")
    parser.add_argument("--json", action="store_true", help="print the result as JSON")
    parser.add_argument("--one", nargs=2, type=int, metavar=("CLIENTS", "WORKERS"), help="measure one, in this process")
    arguments = parser.parse_args()
    if arguments.one:
        print(json.dumps(measure(*arguments.one)))
        return
    rows = run_all(arguments.clients, arguments.workers)
    if arguments.json:
        print(json.dumps(rows))
        return
    names = list(rows[0])
    print("  ".join(f"{name:>11}" for name in names))
    for row in rows:
        print("  ".join(f"{row[name]:>11.4g}" for name in names))


if __name__ == "__main__":
    main()
