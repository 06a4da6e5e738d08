"""What a client's step takes alone and in a cohort of 32, from small steps to large: whether the plan is right.

python benchmarks/steps.py                    # on one core
python benchmarks/steps.py --device cuda
"""

import argparse
import time
from collections.abc import Callable

import torch
from torch.nn.functional import cross_entropy

from fedkd.data.samples import Samples
from fedkd.learner import cohort, worth
from fedkd.learner.fit import fit
from fedkd.learner.model import fresh
from fedkd.learner.requests import Fit, OnTarget
from fedkd.models import ModelSpec
from fedkd.optimisers import Optimiser
from fedkd.seeding import pin_arithmetic

TOGETHER, STEPS, ALONE, REPEATS = 32, 20, 4, 3
Size = tuple[str, tuple[int, ...], int]
SIZES: dict[str, tuple[Size, ...]] = {
    "cpu": (
        ("cnn", (1, 8, 8), 4),
        ("cnn", (1, 8, 8), 17),
        ("cnn-wide", (1, 8, 8), 4),
        ("cnn", (1, 8, 8), 32),
        ("resnet-gn", (1, 8, 8), 4),
        ("mlp", (1, 28, 28), 32),
        ("cnn", (1, 28, 28), 4),
        ("cnn-wide", (1, 8, 8), 16),
        ("cnn", (1, 28, 28), 8),
        ("resnet-gn", (1, 8, 8), 17),
        ("cnn-wide", (1, 8, 8), 32),
        ("cnn", (1, 28, 28), 32),
    ),
    "cuda": (
        ("cnn", (1, 8, 8), 4),
        ("mlp", (1, 28, 28), 32),
        ("cnn", (1, 28, 28), 32),
        ("cnn", (3, 32, 32), 32),
        ("cnn-wide", (3, 32, 32), 32),
        ("resnet-gn", (3, 32, 32), 32),
        ("cnn", (3, 64, 64), 64),
        ("cnn-wide", (3, 32, 32), 128),
        ("resnet-gn", (3, 32, 32), 128),
    ),
}


def step(architecture: str, shape: tuple[int, ...], batch: int, device: str) -> None:
    """Print what a client's step takes alone and in a cohort."""
    asked = [_request(k, ModelSpec(architecture, shape, 10, 64), batch, device) for k in range(TOGETHER)]
    alone = _seconds(lambda: [fit(one) for one in asked[:ALONE]], device) / ALONE / STEPS
    together = _seconds(lambda: cohort.fit_cohort(asked), device) / TOGETHER / STEPS
    spec = asked[0].models["student"].spec
    plan = "together" if worth.worth_it([spec], batch, torch.device(device)) else "alone"
    print(
        f"| {batch}, {'x'.join(map(str, shape))} | {architecture} | {worth.multiplications(spec) * batch / 1e6:,.1f} "
        f"| {alone * 1e3:.3f} | {together * 1e3:.3f} | {alone / together:.1f} | {plan} |",
        flush=True,
    )


def _request(client: int, spec: ModelSpec, batch: int, device: str) -> Fit:
    source, rows = torch.Generator().manual_seed(client), batch * STEPS
    inputs = torch.randn(rows, *spec.sample_shape, generator=source).to(device)
    labels = torch.randint(0, 10, (rows,), generator=source).to(device)
    student = fresh(spec, client, torch.empty(0, device=device))
    samples = Samples(torch.arange(rows), inputs, {"labels": labels})
    objective = OnTarget(cross_entropy, "student", "labels")
    return Fit({"student": student}, samples, objective, 1, batch, Optimiser("sgd", 0.01), seed=client)


def _seconds(work: Callable[[], object], device: str) -> float:
    """Return the least seconds of several times, after one that is not counted."""
    work()
    return min(_once(work, device) for _ in range(REPEATS))


def _once(work: Callable[[], object], device: str) -> float:
    wait: Callable[[], object] = torch.cuda.synchronize if device == "cuda" else lambda: None
    wait()
    before = time.perf_counter()
    work()
    wait()
    return time.perf_counter() - before


def main() -> None:
    """Measure, and print a row for each size."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--device", choices=SIZES, default="cpu")
    device = parser.parse_args().device
    pin_arithmetic(1)
    print(f"{torch.cuda.get_device_name() if device == 'cuda' else 'one core'}, torch {torch.__version__}\n")
    print("| batch, pixels | model | million multiplications | alone, ms | together, ms each | times faster | plan |")
    print("|---|---|---|---|---|---|---|")
    for size in SIZES[device]:
        step(*size, device)


if __name__ == "__main__":
    main()
