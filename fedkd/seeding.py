"""Stateless randomness: every draw seeds from what it is for, never from what was drawn before it.

A task that is run again, in another process or in another order, therefore draws the same numbers.
"""

import hashlib
import random
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch

# torch, NumPy and Python all accept seeds of 63 bits; NumPy's legacy global generator only 32.
_SEED_BITS = 63
_NUMPY_SEED_BITS = 32


def derive_seed(run_seed: int, *purpose: str | int) -> int:
    """Derive the seed of one draw from the run's seed and what the draw is for.

    Args:
        run_seed: the seed in the experiment file.
        purpose: what is drawn, such as ``("round", 3, "client-07", "fit", 0)``.

    Returns:
        A seed of 63 bits, from SHA-256 and therefore equal on every machine.
    """
    text = "|".join(f"{type(part).__name__}:{part}" for part in (run_seed, *purpose))
    digest = hashlib.sha256(text.encode()).digest()
    return int.from_bytes(digest[:8], "big") >> (64 - _SEED_BITS)


def generator(run_seed: int, *purpose: str | int) -> torch.Generator:
    """Return a fresh CPU generator for one purpose (see :func:`derive_seed`)."""
    return torch.Generator().manual_seed(derive_seed(run_seed, *purpose))


def seed_everything(seed: int) -> None:
    """Seed the global generators of Python, NumPy and torch, for code that draws from them (user code may)."""
    _seed_outside_torch(seed)
    seed_torch(seed)


def seed_cpu(seed: int) -> None:
    """Seed those of the global generators that :func:`generators_restored` restores."""
    _seed_outside_torch(seed)
    torch.default_generator.manual_seed(seed)


def _seed_outside_torch(seed: int) -> None:
    random.seed(seed)
    np.random.seed(seed % 2**_NUMPY_SEED_BITS)


@contextmanager
def expect_no_draws() -> Iterator[None]:
    """Refuse what draws from the global generators of Python or NumPy: within ``vmap``, once for all clients.

    Raises:
        RuntimeError: something has drawn.
    """
    before = _drawn_outside_torch()
    yield
    if _drawn_outside_torch() != before:
        raise RuntimeError("a model or an objective draws from a global generator of Python or NumPy")


def drawn_so_far() -> tuple[object, ...]:
    """Return something that differs after each draw from a global generator, of torch's the one for CPUs."""
    return *_drawn_outside_torch(), torch.default_generator.get_state().numpy().tobytes()


def _drawn_outside_torch() -> tuple[object, ...]:
    numpy: Any = np.random.get_state()
    return random.getstate(), numpy[1].tobytes(), numpy[2:]


def seed_torch(seed: int) -> None:
    """Seed torch's global generators.

    Not ``torch.manual_seed``: without a GPU that remembers, with a whole traceback, to seed one that may come, which
    takes a millisecond and is never forgotten.
    """
    torch.default_generator.manual_seed(seed)
    if torch.cuda.is_available():
        torch.cuda.manual_seed_all(seed)


@contextmanager
def generators_restored() -> Iterator[None]:
    """Leave the global generators of Python, NumPy and torch (on the CPU) as they were, whatever is drawn meanwhile."""
    before = random.getstate(), np.random.get_state(), torch.default_generator.get_state()
    try:
        yield
    finally:
        random.setstate(before[0])
        np.random.set_state(before[1])
        torch.default_generator.set_state(before[2])


def pin_arithmetic(threads: int) -> None:
    """Let torch compute in this process what depends on the experiment alone.

    Args:
        threads: that torch computes with on a CPU: their number changes floating-point results.

    On a GPU, convolutions take the kernels that give equal bits every time, and a float32 is one: torch's default
    there, TF32, keeps 10 bits of 23.
    """
    if torch.get_num_threads() != threads:
        torch.set_num_threads(threads)
    torch.backends.cudnn.deterministic, torch.backends.cudnn.benchmark = True, False
    torch.backends.cudnn.allow_tf32 = torch.backends.cuda.matmul.allow_tf32 = False


@contextmanager
def arithmetic_restored() -> Iterator[None]:
    """Give a process back its own settings (see :func:`pin_arithmetic`) at the end."""
    cudnn, matmul, threads = torch.backends.cudnn, torch.backends.cuda.matmul, torch.get_num_threads()
    before = cudnn.deterministic, cudnn.benchmark, cudnn.allow_tf32, matmul.allow_tf32
    try:
        yield
    finally:
        torch.set_num_threads(threads)
        cudnn.deterministic, cudnn.benchmark, cudnn.allow_tf32, matmul.allow_tf32 = before
