"""Seeds: the documented formula, and independence from everything but the purpose."""

import hashlib
import os
import random
import subprocess
import sys

import numpy as np
import pytest
import torch

from fedkd.seeding import arithmetic_restored, derive_seed, generator, pin_arithmetic, seed_everything

Part = str | int


@pytest.mark.parametrize(
    ("parts", "text"),
    [
        ((7,), "int:7"),
        ((7, "round", 3, "client-07"), "int:7|str:round|int:3|str:client-07"),
        ((-1, "ä", 0), "int:-1|str:ä|int:0"),
    ],
)
def test_a_seed_is_the_first_63_bits_of_the_hash_of_its_purpose(parts: tuple[int, Part], text: str) -> None:
    bits = bin(int(hashlib.sha256(text.encode("utf-8")).hexdigest(), 16))[2:].zfill(256)
    assert derive_seed(*parts) == int(bits[:63], 2)


def test_a_seed_is_the_same_on_every_machine() -> None:
    # printf 'int:7' | sha256sum gives a6abe6506e94a095...; a shift by one bit leaves 63.
    assert derive_seed(7) == 0xA6ABE6506E94A095 >> 1


def test_the_type_and_the_place_of_a_part_matter() -> None:
    purposes: list[tuple[int, *tuple[Part, ...]]] = [
        (1,), (1, 1), (1, "1"), (1, "a", 2), (1, 2, "a"), (1, "a2"), (1, "a", 2, ""), (2, "a", 2), (1, True),
    ]  # fmt: skip
    assert len({derive_seed(*purpose) for purpose in purposes}) == len(purposes)


def test_torch_and_numpy_accept_every_seed() -> None:
    seeds = [derive_seed(0, number) for number in range(200)]
    assert max(seeds) < 2**63
    assert max(seeds) > 2**62
    torch.Generator().manual_seed(2**63 - 1)
    np.random.default_rng(2**63 - 1)


def test_draws_do_not_depend_on_the_draws_before() -> None:
    alone = torch.randn(5, generator=generator(3, "b"))
    torch.manual_seed(99)
    torch.randn(17)
    torch.randn(17, generator=generator(3, "a"))
    assert torch.equal(torch.randn(5, generator=generator(3, "b")), alone)
    assert not torch.equal(torch.randn(5, generator=generator(3, "a")), alone)


def test_a_generator_leaves_the_global_one_alone() -> None:
    torch.manual_seed(1)
    expected = torch.randn(3)
    torch.manual_seed(1)
    torch.randn(4, generator=generator(0, "x"))
    assert torch.equal(torch.randn(3), expected)


@pytest.mark.parametrize("hash_seed", ["1", "2"])
def test_pythons_hash_seed_changes_nothing(hash_seed: str) -> None:
    code = "from fedkd.seeding import derive_seed; print(derive_seed(7, 'round', 3, 'client-07'))"
    environment = {**os.environ, "PYTHONHASHSEED": hash_seed}
    done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=True)
    assert int(done.stdout) == derive_seed(7, "round", 3, "client-07")


@pytest.mark.parametrize("seed", [0, 5, 2**63 - 1])
def test_seed_everything_seeds_all_three_global_generators(seed: int) -> None:
    seed_everything(seed)
    seeded = random.getstate()
    random.seed(seed)
    assert random.getstate() == seeded
    assert np.random.rand() == np.random.RandomState(seed & 0xFFFFFFFF).rand()
    assert torch.equal(torch.rand(3), torch.rand(3, generator=torch.Generator().manual_seed(seed)))


def test_arithmetic_is_pinned_and_given_back() -> None:
    threads, cudnn = torch.get_num_threads(), torch.backends.cudnn
    torch.set_num_threads(1)
    cudnn.deterministic, cudnn.allow_tf32 = False, True
    with arithmetic_restored():
        pin_arithmetic(2)
        assert torch.get_num_threads() == 2
        assert cudnn.deterministic
        assert not cudnn.benchmark
        assert not cudnn.allow_tf32
        assert not torch.backends.cuda.matmul.allow_tf32
    assert torch.get_num_threads() == 1
    assert not cudnn.deterministic
    assert cudnn.allow_tf32
    torch.set_num_threads(threads)
