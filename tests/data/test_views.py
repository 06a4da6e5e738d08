"""Views by name: parsing, resizing, several parts, and errors."""

import gc
import weakref

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from fedkd.data.sources import DataSet
from fedkd.data.views import parse, present, shape, view
from fedkd.errors import UserError


def data_set(images: torch.Tensor, **others: torch.Tensor) -> DataSet:
    labels = torch.zeros(len(images), dtype=torch.int64)
    return DataSet("tiny", {"image": images, **others}, labels, ("only",))


def antialias_weights(size: int, new: int) -> NDArray[np.float64]:
    """Weights (new, size) of a bilinear filter stretched to the new pixel's width: a triangle around its centre."""
    scale = size / new
    centres = (np.arange(new) + 0.5) * scale
    distance = np.abs(np.arange(size) + 0.5 - centres[:, None]) / scale
    weights: NDArray[np.float64] = np.clip(1 - distance, 0, None)
    weights /= weights.sum(axis=1, keepdims=True)
    return weights


@pytest.mark.parametrize(("height", "width", "new"), [(8, 8, 4), (28, 28, 9), (7, 12, 5), (6, 6, 1)])
def test_a_size_is_an_antialiased_resize(height: int, width: int, new: int) -> None:
    images = np.random.default_rng(0).random((3, 2, height, width))
    rows, columns = antialias_weights(height, new), antialias_weights(width, new)
    expected = np.einsum("ah,nchw,bw->ncab", rows, images, columns)
    resized = view(data_set(torch.tensor(images, dtype=torch.float32)), f"image@{new}")
    assert resized.dtype == torch.float32
    np.testing.assert_allclose(resized.numpy(), expected, atol=1e-6)


def test_chunks_join_without_a_seam() -> None:
    images = torch.rand(4097, 1, 2, 2, generator=torch.Generator().manual_seed(0))
    resized = view(data_set(images), "image@1")
    np.testing.assert_allclose(resized.flatten(), images.numpy().mean(axis=(1, 2, 3)), atol=1e-6)


def test_a_view_is_made_once_for_a_data_set_and_lasts_as_long_as_it_does() -> None:
    images = torch.rand(2, 1, 4, 4, generator=torch.Generator().manual_seed(1))
    data = data_set(images)
    resized, joined = view(data, "image@2"), view(data, "image+image@2")
    assert view(data, "image@2") is resized
    assert view(data, "image+image@2") is joined
    assert not torch.equal(view(data_set(images + 1), "image@2"), resized)
    kept = weakref.ref(resized), weakref.ref(joined)
    del data, resized, joined
    gc.collect()
    assert [view() for view in kept] == [None, None]


def test_without_a_size_and_at_the_original_size_nothing_changes() -> None:
    images = torch.rand(2, 1, 4, 4, generator=torch.Generator().manual_seed(2))
    data = data_set(images, gyro=torch.ones(2, 3, 5))
    assert view(data, "image") is images
    assert torch.equal(view(data, "image@4"), images)
    assert view(data, "gyro").shape == (2, 3, 5)


def with_facts(data: DataSet, **facts: object) -> DataSet:
    """Give a data set the rates and the presence of its views."""
    for name, values in facts.items():
        object.__setattr__(data, name, values)
    return data


def test_several_parts_are_flattened_and_joined() -> None:
    images = torch.rand(2, 1, 4, 4, generator=torch.Generator().manual_seed(3))
    gyro, height = torch.arange(12.0).reshape(2, 3, 2), torch.tensor([7.0, 8.0])
    data = data_set(images, gyro=gyro, height=height)
    joined = view(data, "gyro+image@2+height")
    assert joined.shape == (2, 6 + 4 + 1)
    assert torch.equal(joined[:, :6], gyro.flatten(1))
    assert torch.equal(joined[:, 6:10], view(data, "image@2").flatten(1))
    assert torch.equal(joined[:, 10], height)
    assert shape(data, "gyro+image@2+height") == ((3, 2), (1, 2, 2), ())
    assert view(data, "gyro+image@2+height") is joined


def test_a_part_that_is_named_twice_is_refused() -> None:
    data = data_set(torch.rand(2, 1, 4, 4))
    with pytest.raises(UserError, match=r"^view 'image\+image@2\+image': expected each part once, found 'image' more"):
        view(data, "image+image@2+image")
    assert shape(data, "image+image@2") == ((1, 4, 4), (1, 2, 2))


def test_the_shape_of_one_part_is_that_of_its_samples() -> None:
    data = with_facts(data_set(torch.rand(2, 3, 9, 5), audio=torch.zeros(2, 1, 800)), rates={"audio": 8000.0})
    names = ("image", "image@4@jpeg30", "audio@4000hz", "audio@logmel", "audio@4000hz@logmel16")
    shapes = [(3, 9, 5), (3, 4, 4), (1, 400), (1, 32, 7), (1, 16, 7)]
    assert [shape(data, name) for name in names] == shapes
    assert [tuple(view(data, name).shape[1:]) for name in names] == shapes


def test_another_rate_is_another_view() -> None:
    audio = torch.zeros(2, 1, 800)
    slow = with_facts(data_set(torch.rand(2, 1, 2, 2), audio=audio), rates={"audio": 4000.0})
    fast = with_facts(data_set(slow.views["image"], audio=audio), rates={"audio": 8000.0})
    assert slow.digest != fast.digest
    assert view(slow, "audio@2000hz").shape[-1] == 400
    assert view(fast, "audio@2000hz").shape[-1] == 200


def test_a_sample_is_present_with_all_its_parts() -> None:
    data = data_set(torch.rand(3, 1, 2, 2), acc=torch.zeros(3, 4), gyro=torch.zeros(3, 4))
    assert present(data, "acc+gyro").tolist() == [True, True, True]
    facts = {"acc": torch.tensor([True, False, True]), "gyro": torch.tensor([True, True, False])}
    data = with_facts(data, present=facts)
    assert present(data, "acc+gyro").tolist() == [True, False, False]
    assert present(data, "acc@noise0.1").tolist() == [True, False, True]
    assert present(data, "image").tolist() == [True, True, True]
    with pytest.raises(UserError, match="unknown view 'gyr'"):
        present(data, "acc+gyr")


@pytest.mark.parametrize(
    ("name", "parts"),
    [
        ("image", [("image", [])]),
        ("acc left@12", [("acc left", ["12"])]),
        ("a@16@jpeg30+b+c@noise0.1", [("a", ["16", "jpeg30"]), ("b", []), ("c", ["noise0.1"])]),
    ],
)
def test_parse(name: str, parts: list[tuple[str, list[str]]]) -> None:
    assert [(part.base, [step.text for step in part.steps]) for part in parse(name)] == parts


@pytest.mark.parametrize("name", ["", "@4", "+", "image+", "+image", "image+@4", "a++b"])
def test_parse_refuses_other_forms(name: str) -> None:
    with pytest.raises(UserError, match=r"expected 'base' or 'base@transform'.* joined by"):
        parse(name)


@pytest.mark.parametrize("name", ["image@", "image@0", "image@4@", "gyro+image@x", "image@jpeg96+gyro"])
def test_parse_refuses_other_transforms(name: str) -> None:
    with pytest.raises(UserError, match=r"^view '.*': (expected a|unknown transform)"):
        parse(name)


def test_noise_is_the_same_in_every_process() -> None:
    images = torch.rand(5, 1, 4, 4, generator=torch.Generator().manual_seed(5))
    first = view(data_set(images), "image@noise0.1")
    torch.manual_seed(99)
    assert torch.equal(view(data_set(images), "image@noise0.1"), first)


def test_errors_name_what_was_found() -> None:
    data = data_set(torch.zeros(2, 1, 4, 6), gyro=torch.ones(2, 3, 5))
    with pytest.raises(UserError, match=r"data set 'tiny': unknown view 'imag': did you mean 'image'\? Known: gyro"):
        view(data, "imag@2")
    with pytest.raises(UserError, match="'image@5': expected a size of at most 4, the original's, found 5"):
        view(data, "image@5")
    with pytest.raises(UserError, match=r"'gyro@2': expected images .* found \(2, 3, 5\)"):
        view(data, "gyro@2")


def test_parties_that_hold_other_samples_agree_on_the_noise_of_those_that_they_share() -> None:
    images = torch.rand(6, 1, 4, 4, generator=torch.Generator().manual_seed(3))
    everything = with_facts(data_set(images), given_ids=torch.arange(6))
    mine, theirs = everything.take(torch.tensor([0, 2, 4])), everything.take(torch.tensor([2, 3, 4, 5]))

    views = [view(data, "image@2@noise0.1") for data in (mine, theirs)]

    assert torch.equal(views[0][1:], views[1][[0, 2]])
    assert not torch.equal(views[0], view(mine, "image@2"))
